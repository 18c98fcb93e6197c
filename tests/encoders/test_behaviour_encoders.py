"""``gru``, ``hstu`` and ``cross_session``: the conformance suite, and loops in float64."""

import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bseq_plugin import PackedEvents, RecipeError
from bseq_plugin.encoders.causal import CausalEncoder
from bseq_plugin.encoders.cross_session import NO_GAP, CrossSessionEncoder
from bseq_plugin.encoders.gru import GruEncoder
from bseq_plugin.encoders.hstu import HstuEncoder
from bseq_plugin.encoders.packed.pairs import distance_bucket, n_distance_buckets, time_bucket
from bseq_plugin.testing.encoders import DIM, MAX_LENGTH, EncoderTests

SECOND = 1_000_000


class TestGru(EncoderTests):
    encoder = GruEncoder


class TestDeepGru(EncoderTests):
    encoder = GruEncoder
    options: ClassVar = {"n_layers": 2, "hidden": 5}


class TestHstu(EncoderTests):
    encoder = HstuEncoder


class TestHstuWithoutBias(EncoderTests):
    encoder = HstuEncoder
    options: ClassVar = {
        "relative_position_bias": False,
        "relative_time_bias": False,
        "n_blocks": 1,
        "position": "none",
    }


class TestCrossSession(EncoderTests):
    encoder = CrossSessionEncoder


class TestSessionOnly(EncoderTests):
    encoder = CrossSessionEncoder
    options: ClassVar = {"paths": "session", "n_session_blocks": 2}


class TestCrossSessionPlain(EncoderTests):
    encoder = CrossSessionEncoder
    options: ClassVar = {"gap": False, "gate": False, "n_history_blocks": 2}


class TestHistoryOnly(EncoderTests):
    encoder = CrossSessionEncoder
    options: ClassVar = {"paths": "history"}

    def test_gradients_reach_events_and_parameters(self):
        """The events of the session that goes on are not read: those of completed ones are."""
        events = self.events(self.lengths)
        x_TD = events.x_TD.clone().requires_grad_()
        encoder = self.build().train()
        encoder(events.with_x(x_TD)).square().sum().backward()
        last = events.sessions_T == events.sessions_T[events.offsets_B1[1:] - 1][events.user_T]
        assert torch.equal(x_TD.grad.abs().sum(1) > 0, ~last)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


def build(kind, options, max_length=MAX_LENGTH):
    """Random everywhere, also where parameters begin at zero or one."""
    torch.manual_seed(0)
    encoder = kind(DIM, max_length, 0.0, kind.Options(**options)).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder.eval()


def events_of(lengths, seed=1):
    """Float64 events with gaps from 0.1 s to 3 years; a gap of more than a minute begins a session."""
    events = EncoderTests.events(lengths, seed)
    generator = torch.Generator().manual_seed(seed)
    gaps = (2.0 ** (torch.rand(sum(lengths), generator=generator) * 30)).long() * 100_000
    sessions, number = [], 0
    for place, gap in zip(events.position_T.tolist(), gaps.tolist(), strict=True):
        number = 0 if place == 0 else number + (gap > 60 * SECOND)
        sessions.append(number)
    sessions_T = torch.tensor(sessions, dtype=torch.int64)
    return replace(events, x_TD=events.x_TD.double(), timestamps_T=gaps.cumsum(0), sessions_T=sessions_T)


def each_user(events):
    """Of each user: slice of rows."""
    return [slice(a, b) for a, b in zip(events.offsets_B1[:-1].tolist(), events.offsets_B1[1:].tolist(), strict=True)]


lengths_of_batches = st.lists(st.integers(0, MAX_LENGTH), min_size=1, max_size=5).filter(sum)


def check(encoder, events, states_of):
    """``states_of(events of one user)`` for every user is what the encoder gives, whole and in part."""
    expected = [states_of(rows) for rows in each_user(events) if rows.stop > rows.start]
    with torch.no_grad():
        found = encoder(events)
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-9)
        newest = (events.offsets_B1[1:] - 1)[events.lengths_B > 0]
        torch.testing.assert_close(encoder.states_at(events, newest), found[newest], rtol=1e-9, atol=1e-9)


def naive_gru(encoder, x_LD, n_layers):
    for layer in range(n_layers):
        w = {
            name: getattr(encoder.gru, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        h, outs = torch.zeros(encoder.gru.hidden_size, dtype=torch.float64), []
        for x in x_LD:
            ri, zi, ni = (w["weight_ih"] @ x + w["bias_ih"]).chunk(3)
            rh, zh, nh = (w["weight_hh"] @ h + w["bias_hh"]).chunk(3)
            r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
            h = (1 - z) * torch.tanh(ni + r * nh) + z * h
            outs.append(h)
        x_LD = torch.stack(outs)
    return x_LD @ encoder.out.weight.T + encoder.out.bias


@given(lengths_of_batches, st.sampled_from([1, 2]))
@settings(max_examples=25, deadline=None)
def test_gru_is_its_equations(lengths, n_layers):
    encoder, events = build(GruEncoder, {"n_layers": n_layers, "hidden": 5}), events_of(lengths)
    check(encoder, events, lambda rows: naive_gru(encoder, events.x_TD[rows], n_layers))


def distance_bucket_of(distance):
    """Below 8 itself, then two a doubling: 8..11, 12..15 (8 * sqrt(2) = 11.3), 16..22, ..."""
    bucket = min(distance, 8)
    while distance >= 8 and 8 * 2 ** ((bucket - 8 + 1) / 2) <= distance:
        bucket += 1
    return bucket


def time_bucket_of(microseconds):
    return min((microseconds // 1_000_000).bit_length(), 32)


def test_buckets_are_those_of_the_loop():
    distances = range(2000)
    assert distance_bucket(torch.tensor(distances)).tolist() == [distance_bucket_of(d) for d in distances]
    assert n_distance_buckets(2000) == distance_bucket_of(1999) + 1
    times = [0, 1, SECOND - 1, *(2**k * SECOND + d for k in range(36) for d in (-1, 0, 1))]
    assert time_bucket(torch.tensor(times)).tolist() == [time_bucket_of(t) for t in times]
    assert time_bucket(torch.tensor([-5 * SECOND])).tolist() == [0]  # times out of order


def naive_unit(block, x_LD, n_heads, times_L=None, values_LD=None):
    """A hierarchical sequential transduction unit, pair by pair; ``values_LD`` in place of its own values."""
    n, width = len(x_LD), DIM // n_heads
    normed = F.layer_norm(x_LD, (DIM,), block.norm_in.weight, block.norm_in.bias)
    u, q = F.silu(normed @ block.gate_query.weight.T + block.gate_query.bias).split(DIM, 1)
    k, v = F.silu(normed @ block.key_value.weight.T + block.key_value.bias).split(DIM, 1)
    v = v if values_LD is None else values_LD
    rows = []
    for i in range(n):
        summed = torch.zeros(DIM, dtype=torch.float64)
        for h in range(n_heads):
            own = slice(h * width, (h + 1) * width)
            for j in range(i + 1):
                score = q[i, own] @ k[j, own] / math.sqrt(width)
                if block.bias is not None and block.bias.distance is not None:
                    score = score + block.bias.distance[distance_bucket_of(i - j), h]
                if block.bias is not None and block.bias.time is not None:
                    score = score + block.bias.time[time_bucket_of(int(times_L[i] - times_L[j])), h]
                summed[own] += F.silu(score) * v[j, own]
        normed_out = F.layer_norm(summed, (DIM,), block.norm_out.weight, block.norm_out.bias)
        rows.append(x_LD[i] + block.out(normed_out * u[i]))
    return torch.stack(rows)


def naive_hstu(encoder, x_LD, times_L):
    n, options = len(x_LD), encoder.options
    if options.position != "none":
        ages = range(n - 1, -1, -1) if options.position == "newest" else range(n)
        x_LD = x_LD + encoder.position.weight[list(ages)]
    for block in encoder.blocks:
        assert (block.bias is not None and block.bias.distance is not None) == options.relative_position_bias
        assert (block.bias is not None and block.bias.time is not None) == options.relative_time_bias
        x_LD = naive_unit(block, x_LD, options.n_heads, times_L)
    return F.layer_norm(x_LD, (DIM,), encoder.norm.weight, encoder.norm.bias)


HSTU = [
    {},
    {"relative_position_bias": False, "relative_time_bias": False, "position": "oldest"},
    {"relative_time_bias": False, "n_heads": 4, "n_blocks": 1},
    {"relative_position_bias": False, "position": "none", "n_blocks": 1},
]


@given(lengths_of_batches, st.sampled_from(HSTU))
@settings(max_examples=15, deadline=None)
def test_hstu_is_its_equations(lengths, options):
    encoder, events = build(HstuEncoder, options), events_of(lengths)
    with torch.no_grad():
        check(encoder, events, lambda rows: naive_hstu(encoder, events.x_TD[rows], events.timestamps_T[rows]))


def test_hstu_weights_are_not_shared_out():
    """Pointwise aggregation keeps how much there was: an event seen twice counts twice, where softmax takes a mean."""
    encoder = build(HstuEncoder, {"n_blocks": 1, "position": "none", "relative_position_bias": False,
                                  "relative_time_bias": False})  # fmt: skip
    seen = []
    encoder.blocks[0].norm_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    events = events_of((2,))
    with torch.no_grad():
        encoder(events.with_x(events.x_TD[:1].expand(2, -1)))
    rows = seen[0][seen[0].abs().sum(1) > 0]  # a line may be wider than the history
    torch.testing.assert_close(rows[1], 2 * rows[0])


def naive_cross_session(encoder, x_LD, times_L, sessions_L):
    options = encoder.options
    runs = [[0]]
    for place in range(1, len(x_LD)):
        if sessions_L[place] != sessions_L[place - 1]:
            runs.append([])
        runs[-1].append(place)
    shorts = []
    for run in runs:
        x = x_LD[run] + encoder.position.weight[: len(run)]
        for block in encoder.session_blocks:
            x = naive_unit(block, x, options.n_heads)
        shorts.append(x)
    states = []
    for number, short in enumerate(shorts):
        if options.paths == "session":
            states.append(short)
            continue
        path = encoder.history

        def gap_of(s):
            if s == 0:
                return NO_GAP
            return time_bucket_of(int(times_L[runs[s][0]] - times_L[runs[s - 1][-1]]))

        if number == 0:
            long = path.nothing_before.weight[0]
        else:
            x = torch.stack([path.own_share_D * shorts[s][-1] for s in range(number)])
            ends = None
            if options.gap:
                x = x + path.gap_before.weight[[gap_of(s) for s in range(number)]]
                ends = torch.stack([times_L[runs[s][-1]] for s in range(number)])
            values = None
            for block in path.blocks:
                if values is None:  # the first block adds up what the events of a session are worth one by one
                    values = torch.stack([block.values(x_LD[runs[s]]).sum(0) for s in range(number)])
                    x = naive_unit(block, x, options.n_heads, ends, values)
                else:
                    x = naive_unit(block, x, options.n_heads, ends)
            long = x[-1]
        if options.gap:
            long = long + path.gap_since.weight[gap_of(number)]
        for place, event in enumerate(short):
            gate = 0.5
            if options.paths == "history":
                gate = 0.0
            elif options.gate:
                odds = (place + 1) / max(runs[number][0], 1)
                gate = torch.sigmoid(encoder.gate(torch.cat([event, long])) + math.log(odds))
            states.append((gate * event + (1 - gate) * long)[None])
    return F.layer_norm(torch.cat(states), (DIM,), encoder.norm.weight, encoder.norm.bias)


CROSS = [{}, {"gap": False}, {"gate": False, "n_history_blocks": 2}, {"paths": "session"}, {"paths": "history"}]


@given(lengths_of_batches, st.sampled_from(CROSS), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_cross_session_is_its_definition(lengths, options, seed):
    encoder, events = build(CrossSessionEncoder, options), events_of(lengths, seed)
    with torch.no_grad():
        check(
            encoder,
            events,
            lambda r: naive_cross_session(encoder, events.x_TD[r], events.timestamps_T[r], events.sessions_T[r]),
        )


BEGINNINGS = [
    (HstuEncoder, {"n_blocks": 1}),
    (HstuEncoder, {"n_blocks": 1, "relative_time_bias": False}),
    (CrossSessionEncoder, {}),
    (CrossSessionEncoder, {"paths": "history"}),
    (CausalEncoder, {"begin": "mean", "n_blocks": 1}),
]


@pytest.mark.parametrize(("kind", "options"), BEGINNINGS)
@pytest.mark.parametrize("on_meta", [False, True])
def test_they_begin_near_the_sum_of_what_was(kind, options, on_meta):
    """Untrained, the state of a history points to the items that it has most of, whatever came last."""
    dim, n_events = 64, 31
    torch.manual_seed(0)
    with torch.device("meta" if on_meta else "cpu"):
        encoder = kind(dim, 40, 0.0, kind.Options(**options))
    if on_meta:
        encoder.to_empty(device="cpu")
        for module in encoder.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.reset_parameters()
    items_VD = F.normalize(torch.randn(30, dim), dim=1)
    often = torch.tensor([3] * 9 + [7] * 6 + list(range(10, 24)))
    bought = torch.cat([often[torch.randperm(len(often))], torch.tensor([4, 8])])
    times_T = torch.arange(n_events) * 3600 * SECOND
    events = PackedEvents(0.1 * items_VD[bought], torch.tensor([0, n_events]), times_T)
    with torch.no_grad():
        states_TD = encoder.eval()(replace(events, sessions_T=events.position_T // 10))
    assert (items_VD @ states_TD[-1]).topk(2).indices.tolist() == [3, 7]


def test_events_of_the_session_that_goes_on_are_summarised_for_nobody():
    """The long path of a state changes with completed sessions only, the short one with its own session only."""
    events = events_of((9,))
    events = replace(events, sessions_T=events.position_T // 3)
    past, own = events.x_TD.clone(), events.x_TD.clone()
    past[2, 0] += 1.0  # a completed session, to events from 3 on
    own[3, 0] += 1.0  # in the session of events 3 to 5
    for paths, changed, same in (("history", past, own), ("session", own, past)):
        encoder = build(CrossSessionEncoder, {"paths": paths})
        before = encoder(events)[5]
        torch.testing.assert_close(encoder(events.with_x(same))[5], before)
        assert not torch.allclose(encoder(events.with_x(changed))[5], before)


def test_what_events_lack_is_named():
    events = events_of((3,))
    encoder = CrossSessionEncoder(DIM, MAX_LENGTH, 0.0).double()
    with pytest.raises(RecipeError, match="events have no session_number"):
        encoder(replace(events, sessions_T=None))
    with pytest.raises(RecipeError, match="set gap = false"):
        encoder(replace(events, timestamps_T=None))
    with pytest.raises(RecipeError, match="relative_time_bias reads times"):
        HstuEncoder(DIM, MAX_LENGTH, 0.0).double()(replace(events, timestamps_T=None))
    for kind in (HstuEncoder, CrossSessionEncoder):
        with pytest.raises(RecipeError, match="dim = 9 is not a multiple"):
            kind(9, MAX_LENGTH, 0.0)


@pytest.mark.parametrize("kind", [GruEncoder, HstuEncoder, CrossSessionEncoder])
def test_events_unlike_any_other(kind):
    """Sessions of one event, all at one instant, gaps of decades, times out of order: finite, and nothing raised."""
    encoder, events = build(kind, {}), events_of((6, 1))
    zeros = torch.zeros_like(events.sessions_T)
    for times_T, sessions_T in (
        (events.timestamps_T, events.position_T),
        (zeros + 5, zeros),
        (events.position_T * 30 * 365 * 86_400 * SECOND, events.position_T),
        (-events.position_T * SECOND, zeros),
    ):
        found = encoder(replace(events, timestamps_T=times_T, sessions_T=sessions_T))
        assert torch.isfinite(found).all()
