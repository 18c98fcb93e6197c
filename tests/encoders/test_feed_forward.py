"""Feed-forward in bfloat16 while training: against float64, and where it is taken."""

import pytest
import torch
from torch.nn import functional as F

from bseq_plugin import matmul
from bseq_plugin.encoders.causal import CausalEncoder, CausalOptions
from bseq_plugin.encoders.packed import block as feed_forward
from bseq_plugin.encoders.packed.block import FeedForward
from bseq_plugin.model.ensemble import Ensemble


def exact(part, x):
    """W2 gelu(W1 x), from the formula, in float64."""
    w1, b1, w2, b2 = (t.detach().double().requires_grad_() for t in part.parameters())
    x = x.detach().double().requires_grad_()
    inner = x @ w1.T + b1
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    return inner @ w2.T + b2, [x, w1, b1, w2, b2]


@pytest.mark.parametrize("n_rows", [0, 1, 45])
def test_bfloat16_is_float64_to_a_bfloat16s_precision(n_rows):
    """Values and all gradients, which keep the model's type."""
    torch.manual_seed(0)
    part = FeedForward(64, 96, matmul="bfloat16")
    x, weights = torch.randn(n_rows, 64, requires_grad=True), torch.randn(n_rows, 64)
    found = part(x)
    (found * weights).sum().backward()
    wanted, leaves = exact(part, x)
    (wanted * weights).sum().backward()
    assert found.dtype == torch.float32
    pairs = [(found, wanted), *((t.grad, leaf.grad) for t, leaf in zip([x, *part.parameters()], leaves, strict=True))]
    for rounded, true in pairs:
        assert rounded.dtype == torch.float32
        assert float((rounded - true).detach().norm()) <= 2**-6 * float(true.norm())


@pytest.mark.parametrize("kind", ["bfloat16", "auto", "float32"])
def test_only_bfloat16_rounds_and_only_in_training(kind):
    torch.manual_seed(0)
    part, x = FeedForward(64, 96, matmul=kind), torch.randn(7, 64)
    plain = F.linear(F.gelu(F.linear(x, part.into.weight, part.into.bias)), part.out.weight, part.out.bias)
    assert torch.equal(part.eval()(x), plain)
    assert torch.equal(part.train()(x), plain) == (kind != "bfloat16")


def test_a_float64_model_stays_float64():
    part, x = FeedForward(64, 64, matmul="bfloat16").double(), torch.randn(5, 64).double()
    assert torch.equal(part.train()(x), part.eval()(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_gain_is_measured_wherever_it_is_asked_for(mode):
    """And the random numbers of who asks are the same afterwards."""
    feed_forward.feed_forward_gain.cache_clear()
    before = torch.get_rng_state()
    with mode():
        assert feed_forward.feed_forward_gain(32, 64) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_it_pays_only_with_a_unit_and_some_width(monkeypatch):
    monkeypatch.setattr(feed_forward, "feed_forward_gain", lambda *_: 3.0)
    for unit in (True, False):
        monkeypatch.setattr(matmul, "_has_bfloat16_unit", lambda unit=unit: unit)
        assert feed_forward.feed_forward_pays(64, 256) == unit
        assert not feed_forward.feed_forward_pays(16, 64)


def test_what_was_measured_reaches_every_block_of_every_member(monkeypatch):
    monkeypatch.setattr(matmul, "_has_bfloat16_unit", lambda: True)
    members = Ensemble([CausalEncoder(64, 8, 0.0, CausalOptions()) for _ in range(2)])
    for gain, expected in ((1.0, "float32"), (3.0, "bfloat16")):
        monkeypatch.setattr(feed_forward, "feed_forward_gain", lambda *_, gain=gain: gain)
        choices = members.machine_choices(64)
        assert choices == {"matmul": expected}
        members.settle(choices)
        assert {b.feed_forward.matmul for part in members.parts for b in part.blocks} == {expected}
        members = Ensemble([CausalEncoder(64, 8, 0.0, CausalOptions()) for _ in range(2)])
    unsettled = CausalEncoder(64, 8, 0.0, CausalOptions())
    assert {b.feed_forward.matmul for b in unsettled.blocks} == {"float32"}
