"""Target attention against a loop over pairs, and the laws of packing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instants import DAY_US

from bseq_plugin import PackedEvents, TargetAttention, UsageError

DIM = 5


def packed(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    times = torch.arange(sum(lengths)) * DAY_US // 2
    return PackedEvents(torch.randn(sum(lengths), DIM, generator=generator), offsets, times)


def by_hand(module, candidates, events, users, at):
    """The paper's formula: the first layer on (e, c, e - c, e * c), one pair at a time."""
    # the parts of the first layer, put together again: of_event = E + M, of_candidate = C - M for any M; M = 0 here
    result = torch.zeros_like(candidates)
    for n, user in enumerate(users.tolist()):
        logits, rows = [], range(int(events.offsets_B1[user]), int(events.offsets_B1[user + 1]))
        for row in rows:
            e, c = events.x_TD[row], candidates[n]
            zero = torch.zeros_like(module.of_event.weight)
            first = torch.cat([module.of_event.weight, module.of_candidate.weight, zero, module.of_product.weight], 1)
            hidden = first @ torch.cat([e, c, e - c, e * c]) + module.of_candidate.bias
            logit = module.score(module.activation(hidden))[0]
            if module.decay is not None:
                rate = math.log1p(math.exp(float(module.decay.raw.detach())))
                factor = -rate * math.log1p(float(at[n] - events.timestamps_T[row]) / DAY_US)
                logit = logit + factor if module.softmax else logit * math.exp(factor)
            logits.append(logit)
        if logits:
            weights = torch.stack(logits)
            weights = torch.softmax(weights, 0) if module.softmax else weights
            result[n] = sum(w * events.x_TD[row] for w, row in zip(weights, rows, strict=True))
    return result


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.booleans(), st.booleans(), st.integers(0, 99), st.data())
def test_it_equals_the_loop(lengths, softmax, decay, seed, data):
    torch.manual_seed(seed)
    module = TargetAttention(DIM, 4, "softmax" if softmax else "sum", decay)
    events = packed(lengths, seed)
    users = torch.tensor(
        data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=0, max_size=6)), dtype=torch.int64
    )
    candidates, at = torch.randn(len(users), DIM), torch.full((len(users),), 30 * DAY_US)
    got = module(candidates, events, users, at)
    torch.testing.assert_close(got, by_hand(module, candidates, events, users, at), rtol=1e-4, atol=1e-5)


def test_weights_of_the_softmax_average_equal_events():
    module = TargetAttention(DIM, 4, "softmax")
    event = torch.randn(DIM)
    events = PackedEvents(event.expand(3, DIM), torch.tensor([0, 3]))
    torch.testing.assert_close(module(torch.randn(1, DIM), events)[0], event)


def test_a_decayed_old_event_counts_less():
    torch.manual_seed(0)
    module = TargetAttention(1, 4, "softmax", time_decay=True)
    torch.nn.init.zeros_(module.score.weight)
    events = PackedEvents(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 2]), torch.tensor([0, 9 * DAY_US]))
    young = module(torch.zeros(1, 1), events, at_N=torch.tensor([10 * DAY_US]))
    # weights (1 + 10)^-0.1 : (1 + 1)^-0.1
    assert float(young) == pytest.approx(2**-0.1 / (2**-0.1 + 11**-0.1), rel=1e-5)


def test_gradients_reach_every_parameter_and_other_users_do_not_matter():
    torch.manual_seed(1)
    module = TargetAttention(DIM, 4, time_decay=True)
    events, candidates, at = packed([3, 0, 2]), torch.randn(3, DIM), torch.full((3,), 30 * DAY_US)
    module(candidates, events, at_N=at).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and (p.grad != 0).any() for p in module.parameters())
    changed = events.x_TD.clone()
    changed[:3] += 1
    other = module(candidates, PackedEvents(changed, events.offsets_B1, events.timestamps_T), at_N=at)
    torch.testing.assert_close(other[1:], module(candidates, events, at_N=at)[1:])
    assert (other[1] == 0).all()


def test_it_learns_whether_the_history_has_the_candidate():
    """What pooling without the candidate can't tell."""
    torch.manual_seed(0)
    table, module, head = torch.randn(20, 16), TargetAttention(16, 32), torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(250):
        items = torch.randint(0, 20, (64, 4))
        candidate = torch.randint(0, 20, (64,))
        candidate = torch.where(torch.rand(64) < 0.5, items[:, 1], candidate)
        label = (items == candidate[:, None]).any(1).float()
        context = module(table[candidate], PackedEvents(table[items.flatten()], torch.arange(65) * 4))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(context * table[candidate])[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.15  # 0.69 for a coin


def test_made_on_the_meta_device_it_gets_its_memory():
    module = TargetAttention.__new__(TargetAttention)
    with torch.device("meta"):
        module.__init__(DIM, time_decay=True)
    module.to_empty(device="cpu")
    for child in module.modules():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()
    assert float(torch.nn.functional.softplus(module.decay.raw)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: TargetAttention(0), "dim = 0"),
        (lambda: TargetAttention(4, weights="max"), "weights = 'max'; use 'sum' or 'softmax'"),
        (lambda: TargetAttention(DIM)(torch.zeros(2, DIM), packed([1])), "2 candidates and 1 users"),
        (lambda: TargetAttention(4)(torch.zeros(1, 4), packed([1])), r"events.x_TD has shape \(1, 5\)"),
        (lambda: TargetAttention(DIM)(torch.zeros(1, DIM), packed([1]), torch.zeros(2).long()), "user_N has shape"),
        (lambda: TargetAttention(DIM, time_decay=True)(torch.zeros(1, DIM), packed([1])), "needs events with timest"),
    ],
)
def test_wrong_use(call, text):
    with pytest.raises(UsageError, match=text):
        call()
