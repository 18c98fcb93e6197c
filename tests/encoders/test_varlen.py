"""``VarlenView`` on a fake of torch's kernel that keeps the kernel's limits, against lines of attention."""

import types

import pytest
import torch
from torch.nn.attention import varlen as kernels

from bseq_plugin import PackedEvents, RecipeError, parse_options
from bseq_plugin.encoders import causal
from bseq_plugin.encoders.causal import CausalEncoder, CausalOptions
from bseq_plugin.encoders.packed import varlen
from bseq_plugin.encoders.packed.varlen import VarlenView, varlen_serves

LENGTHS = (3, 0, 1, 7, 2)
kinds = {"allowed": [torch.float16, torch.bfloat16]}  # of numbers, that the kernel takes


def packed(dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(sum(LENGTHS), 32, generator=generator).to(device, dtype)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0).to(device)
    return PackedEvents(x_TD, offsets)


def fake_varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), **other):
    """What torch.nn.attention.varlen documents, in loops; refuses what FlashAttention refuses."""
    assert not other
    assert query.dtype in kinds["allowed"]
    assert query.dtype == key.dtype == value.dtype
    assert query.shape == key.shape == value.shape
    assert query.shape[2] % 8 == 0
    assert query.shape[2] <= 256
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    for bounds, longest in ((cu_seq_q, max_q), (cu_seq_k, max_k)):
        assert bounds.dtype == torch.int32
        assert int(bounds[0]) == 0
        assert int(bounds[-1]) == len(query)
        assert int(bounds.diff().max()) <= longest
    assert window_size == (-1, 0)
    out = []
    for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        for row in range(begin, end):
            scores_H = torch.einsum("hd,lhd->hl", query[row].double(), key[begin : row + 1].double())
            shares = (scores_H * (scale or query.shape[2] ** -0.5)).softmax(1)
            out.append(torch.einsum("hl,lhd->hd", shares, value[begin : row + 1].double()))
    return torch.stack(out).to(query.dtype)


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(kernels, "varlen_attn", fake_varlen_attn)


def encoder(asked=True, **options):
    torch.manual_seed(0)
    return CausalEncoder(32, 10, 0.2, CausalOptions(n_heads=2, varlen_attention=asked, **options))


def states_and_gradient(part, events):
    """Of all events, of some, and d (states in some direction) / d (weights of the first queries, keys and values)."""
    states = part(events)
    direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(states.dtype)
    (states * direction).sum().backward()
    with torch.no_grad():
        some = part.states_at(events, torch.tensor([0, 2, 5, 9]))
    return states.detach(), some, part.blocks[0].attention.query_key_value.weight.grad


@pytest.mark.usefixtures("kernel")
def test_rows_are_the_lines(monkeypatch):
    """In float64, which the fake takes for once: to the last digits."""
    monkeypatch.setitem(kinds, "allowed", [torch.float64])
    found = {}
    for serves in (False, True):
        monkeypatch.setattr(causal, "varlen_serves", lambda x_TD, width, serves=serves: serves)
        part = encoder(attention_dropout=0.0, hidden_dropout=0.0, embedding_dropout=0.0).train().double()
        assert isinstance(part.all_look(packed(), None), VarlenView) == serves
        found[serves] = states_and_gradient(part, packed(torch.float64))
    for rows, lines in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(rows, lines, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[True][1], found[True][0][[0, 2, 5, 9]])


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_limits_of_the_kernel(monkeypatch, dtype):
    monkeypatch.setattr(causal, "varlen_serves", lambda x_TD, width: True)
    found = encoder().eval().to(dtype)(packed(dtype)).float()
    monkeypatch.undo()
    exact = encoder().eval()(packed())
    assert float((found - exact).norm() / exact.norm()) < 2**-5


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({}, True),  # drops attention weights
        ({"event_dropout": 0.2, "attention_dropout": 0.0}, True),
        ({"asked": False}, False),  # it is nobody's default
    ],
)
def test_what_the_kernel_does_not_know_goes_another_way(monkeypatch, options, training):
    monkeypatch.setattr(causal, "varlen_serves", lambda x_TD, width: True)
    part = encoder(**options).train(training)
    events = packed()
    assert not isinstance(part.all_look(events, part.hidden(events)), VarlenView)
    view = VarlenView.of(events)
    q = torch.randn(len(events.x_TD), 2, 16)
    with pytest.raises(ValueError, match="no dropout"):
        view.attend(q, q, q, 0.1)
    with pytest.raises(ValueError, match="no moving average"):
        view.average(events.x_TD)


def test_it_is_off_by_default_and_does_not_go_with_the_filter():
    assert CausalOptions().varlen_attention is False
    with pytest.raises(RecipeError, match=r"varlen_attention does not go with filter_weight = 0\.5"):
        parse_options(CausalOptions, {"varlen_attention": True, "filter_weight": 0.5}, "encoder")


def test_it_serves_half_precision_on_a_gpu_that_has_the_kernel(monkeypatch):
    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])

    class OnGpu:
        device = types.SimpleNamespace(type="cuda")

        def __init__(self, dtype, n_rows=5):
            self.dtype, self.n_rows = dtype, n_rows

        def __len__(self):
            return self.n_rows

    assert varlen_serves(OnGpu(torch.bfloat16), 32)
    assert varlen_serves(OnGpu(torch.float16), 256)
    assert not varlen_serves(OnGpu(torch.float32), 32)
    with monkeypatch.context() as autocast:  # torch itself turns it off where there is no GPU
        autocast.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        for dtype, serves in ((torch.bfloat16, True), (torch.float32, False)):
            autocast.setattr(torch, "get_autocast_dtype", lambda device, dtype=dtype: dtype)
            assert varlen_serves(OnGpu(torch.float32), 32) == serves
    for width in (12, 264):
        assert not varlen_serves(OnGpu(torch.bfloat16), width)
    assert not varlen_serves(OnGpu(torch.bfloat16, n_rows=0), 32)
    capability[0] = (7, 5)
    assert not varlen_serves(OnGpu(torch.bfloat16), 32)
    assert not varlen_serves(torch.zeros(5, 32, dtype=torch.bfloat16), 32)


@pytest.mark.gpu
def test_the_kernel_itself():
    part = encoder().eval().bfloat16().cuda()
    with torch.no_grad():
        assert isinstance(part.all_look(packed(torch.bfloat16, "cuda"), None), varlen.VarlenView)
        found = part(packed(torch.bfloat16, "cuda")).float().cpu()
    exact = encoder().eval()(packed())
    assert float((found - exact).norm() / exact.norm()) < 2**-6
