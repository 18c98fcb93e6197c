import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Negatives, RecipeError, Targets
from bseq_plugin import matmul as machine
from bseq_plugin.losses import chunked, precision
from bseq_plugin.losses.bce import BCELoss, GeneralisedBCELoss
from bseq_plugin.losses.softmax import SoftmaxLoss, SoftmaxOptions
from bseq_plugin.testing.losses import LossTests


def settled(loss, matmul):
    """The loss, whose products are of that type as if this machine had been measured."""
    loss.settle({"matmul": matmul})
    return loss


class TestSoftmax(LossTests):
    loss = SoftmaxLoss


class TestSmoothedSoftmax(LossTests):
    loss = SoftmaxLoss
    options: ClassVar = {"label_smoothing": 0.2}

    def test_own_targets_are_no_negatives(self):
        """Not so here: by its definition smoothing gives every item of the catalogue its share."""


class TestBCE(LossTests):
    loss = BCELoss


class TestGBCE(LossTests):
    loss = GeneralisedBCELoss

    @pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
    @pytest.mark.parametrize("sampled", [False, True])
    def test_a_target_and_its_negatives_are_balanced_at_scores_of_zero(self, calibration, sampled):
        """Their gradients add up to nothing, so that there is no common direction in which all rows would run."""
        state_QD = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
        target_SD, vectors_ND = (torch.zeros(n, 3, dtype=torch.float64, requires_grad=True) for n in (1, 30))
        counts_N = torch.full((30,), math.log(30 / 1000), dtype=torch.float64) if sampled else None
        one = torch.ones(1, dtype=torch.float64)
        targets = Targets(target_SD, torch.tensor([7]), torch.tensor([0]), one)
        loss = self.loss(self.loss.Options(calibration=calibration))
        loss(state_QD, targets, Negatives(vectors_ND, torch.arange(1, 31), counts_N)).backward()
        assert target_SD.grad.abs().sum() > 0
        torch.testing.assert_close(vectors_ND.grad.sum(0), -target_SD.grad[0])


def negative_logits(state, targets, negatives):
    """(logit of each negative that is no target of the state, corrected), as Python floats."""
    own = {int(i) for i, s in zip(targets.ids_S, targets.state_S, strict=True) if int(s) == state[0]}
    found = []
    for place, item in enumerate(negatives.ids_N.tolist()):
        if item not in own:
            logit = float(negatives.vectors_ND[place] @ state[1])
            correction = negatives.log_expected_count_N
            found.append((logit, 0.0 if correction is None else float(correction[place])))
    return found


def softmax_loop(states, targets, negatives):
    total = 0.0
    for place in range(len(targets.ids_S)):
        state = int(targets.state_S[place])
        positive = float(targets.vectors_SD[place] @ states[state])
        logits = negative_logits((state, states[state]), targets, negatives)
        others = sum(math.exp(logit - logq) for logit, logq in logits)
        for other in range(len(targets.ids_S)):
            if other != place and int(targets.state_S[other]) == state:
                others += math.exp(float(targets.vectors_SD[other] @ states[state]))
        total += float(targets.weights_S[place]) * (math.log(math.exp(positive) + others) - positive)
    return total / float(targets.weights_S.sum())


def bce_loop(states, targets, negatives):
    total = 0.0
    for place in range(len(targets.ids_S)):
        state = int(targets.state_S[place])
        positive = float(targets.vectors_SD[place] @ states[state])
        others = [
            math.log1p(math.exp(logit)) for logit, _ in negative_logits((state, states[state]), targets, negatives)
        ]
        loss = math.log1p(math.exp(-positive)) + (sum(others) / len(others) if others else 0.0)
        total += float(targets.weights_S[place]) * loss
    return total / float(targets.weights_S.sum())


def gbce_loop(states, targets, negatives):
    counts = [0.0] if negatives.log_expected_count_N is None else negatives.log_expected_count_N.tolist()
    rate = min(1.0, len(counts) / sum(math.exp(-c) for c in counts))
    beta = 1 - 0.75 * (1 - rate)
    total = 0.0
    for place in range(len(targets.ids_S)):
        state = int(targets.state_S[place])
        others = [logit for logit, _ in negative_logits((state, states[state]), targets, negatives)]
        offset = math.log(max(1, len(others)) / beta)
        positive = float(targets.vectors_SD[place] @ states[state]) - offset
        pushed = sum(math.log1p(math.exp(logit - offset)) for logit in others)
        loss = (beta * math.log1p(math.exp(-positive)) + pushed) / (len(others) + 1)
        total += float(targets.weights_S[place]) * loss
    return total / float(targets.weights_S.sum())


def smoothed_loop(states, targets, negatives):
    """(1 - e) of the target's and e of the average item's negative log probability; sampled: weighted by 1 / q."""
    correction = negatives.log_expected_count_N
    weights = [1.0] * len(negatives.ids_N) if correction is None else [math.exp(-c) for c in correction.tolist()]
    total = 0.0
    for place in range(len(targets.ids_S)):
        state = states[int(targets.state_S[place])]
        positive = float(targets.vectors_SD[place] @ state)
        scores = [float(vector @ state) for vector in negatives.vectors_ND]
        mean = sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)
        total += float(targets.weights_S[place]) * 0.2 * (positive - mean)
    return softmax_loop(states, targets, negatives) + total / float(targets.weights_S.sum())


@st.composite
def problems(draw):
    n_items, n_states, dim = draw(st.integers(1, 9)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n_items + 1, dim, generator=generator, dtype=torch.float64)
    pair = st.tuples(st.integers(0, n_states - 1), st.integers(1, n_items))
    pairs = sorted(draw(st.lists(pair, min_size=1, max_size=12, unique=True)))
    states, ids = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
    weights = torch.rand(len(pairs), generator=generator, dtype=torch.float64) + 0.1
    if draw(st.booleans()):
        ids_N = torch.tensor(draw(st.lists(st.integers(1, n_items), min_size=1, max_size=12)))
        negatives = Negatives(vectors[ids_N], ids_N, torch.randn(len(ids_N), generator=generator, dtype=torch.float64))
    else:
        negatives = Negatives(vectors[1:], torch.arange(1, n_items + 1))
    queries = torch.randn(n_states, dim, generator=generator, dtype=torch.float64)
    return queries, Targets(vectors[ids], ids, states, weights), negatives


LOSSES = [
    (SoftmaxLoss(), softmax_loop),
    (SoftmaxLoss(SoftmaxOptions(label_smoothing=0.2)), smoothed_loop),
    (BCELoss(), bce_loop),
    (GeneralisedBCELoss(), gbce_loop),
]


@pytest.mark.parametrize(("loss", "loop"), LOSSES)
@settings(max_examples=80, deadline=None)
@given(problem=problems(), chunk=st.integers(1, 40))
def test_equals_the_loop_whatever_the_chunk(loss, loop, problem, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK_ELEMENTS", chunk)
        patch.setattr(chunked, "CHUNK_STEP", 1)
        assert float(loss(*problem)) == pytest.approx(loop(*problem), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES])
@settings(max_examples=40, deadline=None)
@given(problem=problems(), chunk=st.integers(1, 40), weights=st.booleans())
def test_targets_read_from_the_negatives_change_nothing(loss, problem, chunk, weights):
    """Neither the loss nor the gradient of states and of the table that both were looked up in."""
    states, targets, negatives = problem
    n_items = int(max(negatives.ids_N.max(), targets.ids_S.max()))
    table = torch.randn(n_items + 1, states.shape[1], dtype=torch.float64)
    ids_N = torch.arange(1, n_items + 1)
    counts = torch.randn(n_items, dtype=torch.float64) if weights else None
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK_ELEMENTS", chunk)
        patch.setattr(chunked, "CHUNK_STEP", 1)
        for places in (None, targets.ids_S - 1):
            leaves = [states.clone().requires_grad_(), table.clone().requires_grad_()]
            vectors_ND = leaves[1][ids_N]
            positive = leaves[1][targets.ids_S] if places is None else vectors_ND[places]
            told = Targets(positive, targets.ids_S, targets.state_S, targets.weights_S, places)
            value = loss(leaves[0], told, Negatives(vectors_ND, ids_N, counts))
            value.backward()
            found.append([value.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("loss", [SoftmaxLoss, BCELoss])
def test_bfloat16_products_are_close(loss):
    """8 bits of every factor: a relative error of 2^-8 in loss and gradients, whatever unit multiplies them."""
    generator = torch.Generator().manual_seed(0)
    vectors, states = torch.randn(500, 32, generator=generator), torch.randn(70, 32, generator=generator) / 4
    ids = torch.randint(1, 501, (70,), generator=generator)
    found = []
    for matmul in ("float32", "bfloat16"):
        leaves = [states.clone().requires_grad_(), vectors.clone().requires_grad_()]
        targets = Targets(leaves[1][ids - 1], ids, torch.arange(70), torch.ones(70), ids - 1)
        value = settled(loss(), matmul)(leaves[0], targets, Negatives(leaves[1], torch.arange(1, 501)))
        value.backward()
        found.append((float(value.detach()), *(leaf.grad for leaf in leaves)))
    assert found[1][0] == pytest.approx(found[0][0], rel=2**-8)
    for exact, rounded in zip(found[0][1:], found[1][1:], strict=True):
        assert float((rounded - exact).norm() / exact.norm()) < 2**-7
        assert not torch.equal(rounded, exact)  # it was another unit's work


@pytest.mark.parametrize("matmul", ["float32", "bfloat16"])
@pytest.mark.parametrize("shift", [0.0, -40.0])
def test_scores_of_any_sign_and_states_without_negatives(matmul, shift):
    """All logits below zero, or a lone negative that is the target: the loss is what float64 says."""
    generator = torch.Generator().manual_seed(1)
    vectors, states = torch.randn(60, 8, generator=generator), torch.randn(9, 8, generator=generator)
    vectors[:, 0], states[:, 0] = 1.0, shift
    ids = torch.randint(1, 61, (9,), generator=generator)
    for n in (60, 1):
        ids = ids.clamp(max=n)
        targets = Targets(vectors[ids - 1], ids, torch.arange(9), torch.ones(9), ids - 1)
        states_, vectors_ = states.clone().requires_grad_(), vectors[:n].clone().requires_grad_()
        loss = settled(SoftmaxLoss(), matmul)(states_, targets, Negatives(vectors_, torch.arange(1, n + 1)))
        loss.backward()
        expected = torch.nn.functional.cross_entropy(states.double() @ vectors[:n].double().T, ids - 1)
        assert float(loss.detach()) == pytest.approx(float(expected), rel=2**-7, abs=1e-6)
        assert torch.isfinite(states_.grad).all()
        assert torch.isfinite(vectors_.grad).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bfloat16_logits_in_several_chunks_are_close_to_float64(smoothing):
    """Several targets a state, a last chunk that is filled up; a relative error of 2^-8, as the products have."""
    generator = torch.Generator().manual_seed(2)
    vectors, states = torch.randn(300, 32, generator=generator), torch.randn(150, 32, generator=generator) / 3
    state_S = torch.arange(150).repeat_interleave(torch.arange(150) % 3)
    ids = torch.randint(1, 301, (len(state_S),), generator=generator)
    state_S, ids = torch.unique(torch.stack([state_S, ids]), dim=1).contiguous()
    found = []
    for matmul, kind, chunk in (("bfloat16", torch.float32, 4_800), ("float32", torch.float64, 1 << 20)):
        leaves = [x.to(kind, copy=True).requires_grad_() for x in (states, vectors)]
        targets = Targets(leaves[1][ids - 1], ids, state_S, torch.ones(len(ids), dtype=kind), ids - 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunked, "CHUNK_ELEMENTS", chunk)
            loss = settled(SoftmaxLoss(SoftmaxOptions(label_smoothing=smoothing)), matmul)
            value = loss(leaves[0], targets, Negatives(leaves[1], torch.arange(1, 301)))
        value.backward()
        found.append((float(value.detach()), *(leaf.grad.double() for leaf in leaves)))
    assert found[0][0] == pytest.approx(found[1][0], rel=2**-9)
    for rounded, exact in zip(found[0][1:], found[1][1:], strict=True):
        assert float((rounded - exact).norm() / exact.norm()) < 2**-6


@pytest.mark.parametrize("matmul", ["float32", "bfloat16"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_vector_that_is_no_number_is_not_hidden(matmul, sign):
    """Whichever sign its bits have; training stops at such a loss."""
    vectors, states = torch.randn(50, 8), torch.randn(4, 8)
    vectors[7, 3] = torch.copysign(torch.tensor(torch.nan), torch.tensor(sign))
    ids = torch.arange(1, 5)
    targets = Targets(vectors[:4], ids, torch.arange(4), torch.ones(4), ids - 1)
    loss = settled(SoftmaxLoss(), matmul)(states, targets, Negatives(vectors, torch.arange(1, 51)))
    assert torch.isnan(loss)


@pytest.mark.parametrize("case", ["far below", "all own targets"])
def test_a_sum_is_found_where_the_first_negatives_have_no_share_of_it(case):
    """bfloat16 products read the sum of exponentials off one of the first negatives, unless its share is lost."""
    generator = torch.Generator().manual_seed(0)
    vectors, states = torch.randn(200, 8, generator=generator), torch.randn(4, 8, generator=generator)
    vectors[:, 0], states[:, 0] = 0.0, 10.0
    targets = Targets(vectors[150:154], torch.arange(151, 155), torch.arange(4), torch.ones(4), torch.arange(150, 154))
    if case == "far below":
        vectors[:100, 0] = -20.0  # a logit of -200: its exponential is 0 in any type
    else:
        own = torch.arange(100)
        targets = Targets(vectors[own], own + 1, torch.zeros(100, dtype=torch.int64), torch.ones(100), own)
    with_grad = [x.clone().requires_grad_() for x in (states, vectors)]
    loss = settled(SoftmaxLoss(), "bfloat16")(with_grad[0], targets, Negatives(with_grad[1], torch.arange(1, 201)))
    loss.backward()
    exact = [x.bfloat16().double().requires_grad_() for x in (states, vectors)]
    shares = (exact[0] @ exact[1].T).log_softmax(1)  # of the catalogue: own targets compete with each other
    expected = -shares[targets.state_S, targets.ids_S - 1].mean()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=2**-7)
    for found, wanted in zip(with_grad, exact, strict=True):
        assert float((found.grad - wanted.grad).norm() / wanted.grad.norm()) < 2**-6


def test_bfloat16_is_taken_only_where_it_gains(monkeypatch):
    vectors = torch.randn(8, 64)
    for gain, expected in ((1.0, False), (3.0, True)):
        monkeypatch.setattr(precision, "bfloat16_gain", lambda dim, gain=gain: gain)
        monkeypatch.setattr(machine, "_has_bfloat16_unit", lambda: True)
        assert precision.multiplies_in_bfloat16(vectors, "auto") == expected
        assert not precision.multiplies_in_bfloat16(vectors.double(), "auto")
        assert not precision.multiplies_in_bfloat16(vectors[:, :16], "auto")
        monkeypatch.setattr(machine, "_has_bfloat16_unit", lambda: False)
        assert not precision.multiplies_in_bfloat16(vectors, "auto")
    monkeypatch.undo()
    assert precision.bfloat16_gain(8, n_negatives=64) > 0
    with pytest.raises(RecipeError, match="'float8'; choose one of auto, float32, bfloat16"):
        precision.multiplies_in_bfloat16(vectors, "float8")


def test_chunks_are_even_and_bounded():
    for n_states in (1, 31, 32, 33, 732, 5000):
        for n_negatives in (1, 1000, 12_101, 10_000_000):
            chunk = chunked.chunk_size(n_states, n_negatives, chunked.CHUNK_ELEMENTS)
            assert chunk % chunked.CHUNK_STEP == 0
            assert chunk * n_negatives <= max(chunked.CHUNK_ELEMENTS, chunked.CHUNK_STEP * n_negatives)
            last = n_states - (-(-n_states // chunk) - 1) * chunk
            assert 0 < last <= chunk


def test_torch_compile_accepts_it():
    states, targets, negatives = LossTests.problem(sampled=False)
    leaves = [x.clone().requires_grad_() for x in (states, states)]
    values = [SoftmaxLoss(), torch.compile(SoftmaxLoss(), backend="aot_eager")]
    for loss, leaf in zip(values, leaves, strict=True):
        loss(leaf, targets, negatives).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_full_softmax_is_torchs_cross_entropy():
    states, targets, negatives = LossTests.problem(sampled=False)
    single = Targets(targets.vectors_SD[:1], targets.ids_S[:1], targets.state_S[:1], targets.weights_S[:1])
    expected = torch.nn.functional.cross_entropy(states[:1] @ negatives.vectors_ND.T, targets.ids_S[:1] - 1)
    torch.testing.assert_close(SoftmaxLoss()(states, single, negatives), expected)


def test_logits_are_never_held_at_once():
    """Peak memory stays far below the [Q, N] matrix."""
    generator = torch.Generator().manual_seed(0)
    n_states, n_items = 4000, 5000  # the whole matrix: 80 MB
    vectors = torch.randn(n_items, 4, generator=generator, requires_grad=True)
    states = torch.randn(n_states, 4, generator=generator, requires_grad=True)
    ids = torch.randint(1, n_items + 1, (n_states,), generator=generator)
    targets = Targets(vectors[ids - 1], ids, torch.arange(n_states), torch.ones(n_states))
    largest = 0
    with torch.profiler.profile(profile_memory=True, record_shapes=True) as profile:
        SoftmaxLoss()(states, targets, Negatives(vectors, torch.arange(1, n_items + 1))).backward()
    for event in profile.events():
        largest = max(largest, *(abs(math.prod(s)) for s in event.input_shapes if s), 0)
    assert largest <= 2 * chunked.CHUNK_ELEMENTS  # with bfloat16; 1 without
