import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.errors import UsageError
from bseq_plugin.evaluation.blended import LEAST_SHARE, AveragedScorer, best_weight, blended_ranker

torch.set_num_threads(1)
U, V, D = 30, 12, 4


class Model:
    """Interests drawn once for each user, by the user's id; two a user."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.item_vectors_VD = torch.randn(V + 1, D, generator=generator)
        self._interests = torch.randn(U, 2, D, generator=generator)

    def encode(self, histories):
        return self._interests[torch.from_numpy(histories.user_ids)]


class Single(Model):
    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.item_vectors_VD = torch.randn(V + 1, D + seed, generator=generator)
        self._interests = torch.randn(U, 1, D + seed, generator=generator)


class Table:
    """A baseline with given scores, some of them below 0."""

    def __init__(self, seed=1):
        self.scores_UV = np.random.default_rng(seed).normal(size=(U, V + 1)).astype(np.float32)

    def scores(self, histories):
        return torch.from_numpy(self.scores_UV[histories.user_ids])


def histories():
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 5, U)
    return Sequences(np.arange(U), np.concatenate([[0], np.cumsum(lengths)]), rng.integers(1, V + 1, lengths.sum()))


def by_hand(model, baseline, log, weight, k, mask_seen):
    found = np.full((U, k), -1)
    for user in range(U):
        interests = model._interests[user].double().numpy()
        logits = [max(i @ vector for i in interests) for vector in model.item_vectors_VD.double().numpy()]
        norm = math.log(sum(math.exp(x) for x in logits[1:]))
        positive = np.maximum(baseline.scores_UV[user].astype(float), 0)
        shares = positive / positive.sum()
        seen = set(log.items[log.offsets[user] : log.offsets[user + 1]]) if mask_seen else set()
        items = [i for i in range(1, V + 1) if i not in seen]
        items.sort(key=lambda i: -(logits[i] - norm + weight * math.log(shares[i] + LEAST_SHARE)))
        found[user, : len(items[:k])] = items[:k]
    return found


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("mask_seen", [True, False])
def test_equals_the_loop(weight, mask_seen):
    model, baseline, log = Model(), Table(), histories()
    expected = by_hand(model, baseline, log, weight, 5, mask_seen)
    np.testing.assert_array_equal(blended_ranker(model, baseline, weight)(log, 5, mask_seen), expected)


def test_the_weight_follows_who_is_right():
    """Targets are the baseline's first choice, then the model's: it gets weight, and none."""
    model, baseline, log = Model(), Table(), histories()
    for weight in (50.0, 0.0):
        targets = blended_ranker(model, baseline, weight)(log, 1, False).ravel()
        chosen, found = best_weight(model, baseline, EvaluationSet(log, np.arange(U + 1), targets), 1, False)
        assert (chosen > 0) == (weight > 0)
        assert found[chosen] == max(found.values())
    assert found[0.0] == 1.0


def test_a_user_without_any_opinion_of_the_baseline_is_ranked_by_interest():
    model, log = Model(), histories()
    silent = SimpleNamespace(scores=lambda h: -torch.ones(h.n_users, V + 1))
    alone = blended_ranker(model, silent, 0.0)(log, 5, True)
    np.testing.assert_array_equal(blended_ranker(model, silent, 0.5)(log, 5, True), alone)


def test_averaged_scores_are_the_mean_of_the_models():
    models, log = [Single(seed) for seed in range(3)], histories()
    together = AveragedScorer(models)
    found = together.encode(log)[:, 0] @ together.item_vectors_VD.T
    each = [model.encode(log)[:, 0] @ model.item_vectors_VD.T for model in models]
    torch.testing.assert_close(found, sum(each) / 3)
    with pytest.raises(UsageError, match="several interests"):
        AveragedScorer([Model(), *models]).encode(log)
