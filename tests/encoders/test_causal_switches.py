"""Every switch of ``causal`` against loops over users, events and pairs in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bseq_plugin import PackedEvents
from bseq_plugin.encoders.causal import CausalEncoder
from bseq_plugin.encoders.packed.attention import NewestView, TileView
from bseq_plugin.encoders.packed.pairs import PairFeatures
from bseq_plugin.testing.encoders import EncoderTests

SWITCHES = {
    "none": {},
    "narrow": {"feed_forward": 6},
    "post-norm": {"norm": "post"},
    "oldest": {"position": "oldest"},
    "no position": {"position": "none"},
    "filter": {"filter_weight": 0.3, "filter_half_life": 1.5},
    "one block": {"n_blocks": 1},
    "no final norm": {"final_norm": False, "n_blocks": 3},
    "all": {"norm": "post", "position": "oldest", "filter_weight": 0.7, "final_norm": False, "n_heads": 4},
}
LENGTHS = (3, 0, 1, 12, 5)


def build(options, share=0.0, max_length=12):
    """Random everywhere, also where parameters begin at zero or one."""
    torch.manual_seed(0)
    encoder = CausalEncoder(8, max_length, share, CausalEncoder.Options(**options)).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder.eval()


def events_of(lengths, seed=1):
    events = EncoderTests.events(lengths)
    generator = torch.Generator().manual_seed(seed)
    gaps = (2.0 ** (torch.rand(sum(lengths), generator=generator) * 30)).long() * 100_000  # from 0.1 s to 3 years
    return PackedEvents(events.x_TD.double(), events.offsets_B1, gaps.cumsum(0), events.event_types_T)


def attention_of(attention, x):
    query, key, value = attention.query_key_value(x).chunk(3, 1)
    width = x.shape[1] // attention.n_heads
    out = torch.zeros_like(x)
    for i in range(len(x)):
        for head in range(attention.n_heads):
            part = slice(head * width, (head + 1) * width)
            scores = [query[i, part] @ key[j, part] / math.sqrt(width) for j in range(i + 1)]
            out[i, part] = F.softmax(torch.stack(scores), 0) @ value[: i + 1, part]
    return attention.out(out)


def filter_of(module, x, half_life):
    out = torch.zeros_like(x)
    for i in range(len(x)):
        weights = torch.tensor([0.5 ** ((i - j) / half_life) for j in range(i + 1)], dtype=x.dtype)
        low = weights @ x[: i + 1] / weights.sum()
        out[i] = low + module.beta**2 * (x[i] - low)
    return out


def feed_forward_of(module, x):
    inner = module.into(x)
    return module.out(0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))


def residual_of(module, options, x, sublayer):
    found = sublayer(x if options.norm == "post" else module.norm(x))
    return module.norm(x + found) if options.norm == "post" else x + found


def oracle(encoder, events):
    options, states = encoder.options, []
    offsets = events.offsets_B1.tolist()
    for start, end in itertools.pairwise(offsets):
        x = events.x_TD[start:end]
        if options.position != "none":
            rows = range(end - start)
            x = x + encoder.position.weight[list(rows if options.position == "oldest" else reversed(rows))]
        for block in encoder.blocks:

            def mixed(h, block=block):
                attended, alpha = attention_of(block.attention, h), options.filter_weight
                if alpha == 0:
                    return attended
                return (1 - alpha) * attended + alpha * filter_of(block.filter, h, options.filter_half_life)

            x = residual_of(block.attention_residual, options, x, mixed)
            x = residual_of(
                block.feed_forward_residual, options, x, lambda h, block=block: feed_forward_of(block.feed_forward, h)
            )
        states.append(encoder.norm(x))
    return torch.cat(states)


@pytest.mark.parametrize("options", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_is_what_the_loop_computes(options):
    encoder, events = build(options), events_of(LENGTHS)
    with torch.no_grad():
        expected = oracle(encoder, events)
        torch.testing.assert_close(encoder(events), expected)
        for rows in ([20, 2, 15], [15, 3, 20, 2], [0, 5, 20], [2, 2], list(range(21))):  # newest ones, and others
            torch.testing.assert_close(encoder.states_at(events, torch.tensor(rows)), expected[rows])
        alone = events_of((9,))
        torch.testing.assert_close(encoder.states_at(alone, torch.tensor([8])), oracle(encoder, alone)[8:])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.fixed_dictionaries(
        {
            "n_blocks": st.integers(1, 2),
            "norm": st.sampled_from(["pre", "post"]),
            "position": st.sampled_from(["newest", "oldest", "none"]),
            "filter_weight": st.sampled_from([0.0, 0.5, 1.0]),
            "final_norm": st.booleans(),
        }
    ),
)
def test_combinations_are_what_the_loop_computes(lengths, options):
    encoder, events = build(options), events_of(lengths)
    with torch.no_grad():
        expected = oracle(encoder, events)
        torch.testing.assert_close(encoder(events), expected)
        newest = events.offsets_B1[1:][events.lengths_B > 0] - 1
        torch.testing.assert_close(encoder.states_at(events, newest), expected[newest])


def test_long_and_short_histories_in_one_batch_are_what_each_is_alone():
    encoder, lengths = (build({"filter_weight": 0.2}, max_length=300), (290, 3, 70, 0, 280))
    events = events_of(lengths)
    whole = encoder(events)
    for start, end in zip(events.offsets_B1[:-1].tolist(), events.offsets_B1[1:].tolist(), strict=True):
        alone = PackedEvents(events.x_TD[start:end], torch.tensor([0, end - start]), events.timestamps_T[start:end])
        torch.testing.assert_close(encoder(alone), whole[start:end])


@pytest.mark.parametrize("options", SWITCHES.values(), ids=SWITCHES)
def test_training_without_dropout_is_evaluation_and_gradients_agree_on_both_ways(options):
    encoder, events = build(options), events_of(LENGTHS)
    torch.testing.assert_close(encoder.train()(events), encoder.eval()(events))
    rows, gradients = events.offsets_B1[1:][events.lengths_B > 0] - 1, []
    for states in (encoder.states_at(events, rows), encoder(events)[rows]):
        encoder.zero_grad()
        states.cos().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    torch.testing.assert_close(*gradients)


def test_state_dict_goes_round():
    options = SWITCHES["all"]
    encoder, other = build(options), CausalEncoder(8, 12, 0.0, CausalEncoder.Options(**options)).double().eval()
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other(events_of(LENGTHS)), encoder(events_of(LENGTHS)))


@pytest.mark.parametrize("place", ["embedding", "attention", "hidden", "event"])
def test_each_dropout_acts_while_training_and_only_then(place):
    encoder, events = build({f"{place}_dropout": 0.5}), events_of(LENGTHS)
    newest = torch.tensor([2, 3, 15, 20])
    exact = encoder(events)
    assert not torch.allclose(encoder.train()(events), exact)
    assert not torch.allclose(encoder.states_at(events, newest), exact[newest])
    dropout_is_zero = build({f"{name}_dropout": 0.0 for name in ("embedding", "attention", "hidden")}, share=0.5)
    torch.testing.assert_close(dropout_is_zero.train()(events), exact)


@pytest.mark.parametrize("view", [TileView, NewestView])
def test_a_hidden_event_is_seen_by_itself_alone(view):
    events = events_of((4, 2))
    hidden = torch.tensor([False, True, False, False, True, True])
    seen = view.of(events, PairFeatures(), hidden)
    x = seen.layout.spread(torch.eye(6)) if view is TileView else torch.eye(6)
    x = x.double()
    zeros = x.new_zeros(len(x), 1, 6)
    found = seen.attend(seen.queries(zeros), zeros, x[:, None], 0.0)[:, 0]
    found = seen.layout.gather(found) > 0 if view is TileView else found > 0
    rows = ["100000", "110000", "101000", "101100", "000010", "000001"]
    expected = torch.tensor([[letter == "1" for letter in row] for row in rows])
    assert torch.equal(found, expected if view is TileView else expected[[3, 5]])


@pytest.mark.parametrize("name", ["none", "one block", "no final norm", "all"])
def test_attention_shares_are_the_softmax_of_the_last_block(name):
    """Pair by pair, from what the last block of each user alone is given; and they sum to 1 a user."""
    encoder, events = build(SWITCHES[name]), events_of(LENGTHS)
    given = []
    attention = encoder.blocks[-1].attention
    attention.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        found = encoder.attention(events)
        assert encoder.attention(events_of((0, 0))).shape == (0,)
        for begin, end in zip(events.offsets_B1[:-1].tolist(), events.offsets_B1[1:].tolist(), strict=True):
            if begin == end:
                continue
            own = PackedEvents(events.x_TD[begin:end], torch.tensor([0, end - begin]), events.timestamps_T[begin:end])
            given.clear()
            encoder(own)
            query, key, _ = attention.query_key_value(given[0][: end - begin]).chunk(3, 1)
            width, newest, shares = 8 // attention.n_heads, end - begin - 1, []
            for head in range(attention.n_heads):
                part = slice(head * width, (head + 1) * width)
                scores = [query[newest, part] @ key[j, part] / math.sqrt(width) for j in range(newest + 1)]
                shares.append(torch.stack([torch.as_tensor(score) for score in scores]).softmax(0))
            torch.testing.assert_close(found[begin:end], torch.stack(shares).mean(0), rtol=1e-9, atol=1e-9)
            assert found[begin:end].sum().item() == pytest.approx(1)
