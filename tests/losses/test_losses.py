import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin.losses import chunked
from bseq_plugin.losses.bce import BCELoss
from bseq_plugin.losses.softmax import SoftmaxLoss
from bseq_plugin.schema.parts import Candidates, Targets
from bseq_plugin.testing.losses import LossTests


class TestSoftmax(LossTests):
    loss = SoftmaxLoss


class TestBCE(LossTests):
    loss = BCELoss


def negatives(state, targets, candidates):
    """(logit of each candidate that is no target of the state, corrected), as Python floats."""
    own = {int(i) for i, s in zip(targets.ids_S, targets.state_S, strict=True) if int(s) == state[0]}
    found = []
    for place, item in enumerate(candidates.ids_N.tolist()):
        if item not in own:
            logit = float(candidates.vectors_ND[place] @ state[1])
            correction = candidates.log_expected_count_N
            found.append((logit, 0.0 if correction is None else float(correction[place])))
    return found


def softmax_loop(states, targets, candidates):
    total = 0.0
    for place in range(len(targets.ids_S)):
        state = int(targets.state_S[place])
        positive = float(targets.vectors_SD[place] @ states[state])
        others = sum(math.exp(logit - logq) for logit, logq in negatives((state, states[state]), targets, candidates))
        for other in range(len(targets.ids_S)):
            if other != place and int(targets.state_S[other]) == state:
                others += math.exp(float(targets.vectors_SD[other] @ states[state]))
        total += float(targets.weights_S[place]) * (math.log(math.exp(positive) + others) - positive)
    return total / float(targets.weights_S.sum())


def bce_loop(states, targets, candidates):
    total = 0.0
    for place in range(len(targets.ids_S)):
        state = int(targets.state_S[place])
        positive = float(targets.vectors_SD[place] @ states[state])
        others = [math.log1p(math.exp(logit)) for logit, _ in negatives((state, states[state]), targets, candidates)]
        loss = math.log1p(math.exp(-positive)) + (sum(others) / len(others) if others else 0.0)
        total += float(targets.weights_S[place]) * loss
    return total / float(targets.weights_S.sum())


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
        candidates = Candidates(
            vectors[ids_N], ids_N, torch.randn(len(ids_N), generator=generator, dtype=torch.float64)
        )
    else:
        candidates = Candidates(vectors[1:], torch.arange(1, n_items + 1))
    queries = torch.randn(n_states, dim, generator=generator, dtype=torch.float64)
    return queries, Targets(vectors[ids], ids, states, weights), candidates


@pytest.mark.parametrize(("loss", "loop"), [(SoftmaxLoss(), softmax_loop), (BCELoss(), bce_loop)])
@settings(max_examples=80, deadline=None)
@given(problem=problems(), chunk=st.integers(1, 40))
def test_equals_the_loop_whatever_the_chunk(loss, loop, problem, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK_ELEMENTS", chunk)
        assert float(loss(*problem)) == pytest.approx(loop(*problem), rel=1e-9, abs=1e-9)


def test_full_softmax_is_torchs_cross_entropy():
    states, targets, candidates = LossTests.problem(sampled=False)
    single = Targets(targets.vectors_SD[:1], targets.ids_S[:1], targets.state_S[:1], targets.weights_S[:1])
    expected = torch.nn.functional.cross_entropy(states[:1] @ candidates.vectors_ND.T, targets.ids_S[:1] - 1)
    torch.testing.assert_close(SoftmaxLoss()(states, single, candidates), expected)


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
        SoftmaxLoss()(states, targets, Candidates(vectors, torch.arange(1, n_items + 1))).backward()
    for event in profile.events():
        largest = max(largest, *(abs(math.prod(s)) for s in event.input_shapes if s), 0)
    assert largest <= chunked.CHUNK_ELEMENTS
