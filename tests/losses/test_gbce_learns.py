"""gBCE trained on a log whose right answer is known, beside the binary cross-entropies it is meant to improve on."""

import numpy as np
import pandas as pd
import pytest

from bseq_plugin import Events, Recipe, train

N_USERS, N_ITEMS, N_EVENTS = 300, 200, 12
FOLLOWS = 0.9  # share of events that are the one successor of the item before; the others are any item
BASE = Recipe(
    encoder={"max_length": N_EVENTS, "dropout": 0.0, "n_blocks": 1, "n_heads": 2, "feed_forward": 64},
    vectors={"dim": 32},
    split={"every": 10, "patience": 10, "mask_seen": False},
    training={"epochs": 10, "batch": {"users": 20}, "dense": {"rate": 3e-3}},
)


@pytest.fixture(scope="module")
def successions():
    """Every item has one successor, which nine in ten events take: no ranking is better than NDCG@10 of about 0.9."""
    random = np.random.default_rng(0)
    successor = random.permutation(N_ITEMS)
    rows = []
    for user in range(N_USERS):
        item = int(random.integers(N_ITEMS))
        for day in range(N_EVENTS):
            rows.append((user, item, day))
            item = int(successor[item]) if random.random() < FOLLOWS else int(random.integers(N_ITEMS))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "day"])
    frame["timestamp"] = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(frame.pop("day"), unit="D")
    return Events.from_frame(frame)


@pytest.fixture(scope="module")
def ndcg(successions, tmp_path_factory):
    """A function that trains with these settings and returns the validation NDCG@10."""

    def trained(**settings):
        run = train(successions, BASE.replace(**settings), tmp_path_factory.mktemp("run") / "run", progress=False)
        return run.info["validation"]["ndcg@10"]

    return trained


def test_gbce_learns_and_beats_bce_with_one_negative(ndcg):
    """One negative as drawn once a batch, and as the mean over the same negatives: SASRec's, without its noise."""
    many = ndcg(loss="gbce", negatives={"kind": "uniform", "n": 50})
    assert many > ndcg(loss="bce", negatives={"kind": "uniform", "n": 50}) + 0.05
    assert many > ndcg(loss="bce", negatives={"kind": "uniform", "n": 1}) + 0.4


@pytest.mark.parametrize("negatives", ["all", {"kind": "mixed", "n": 50}], ids=["all", "mixed"])
def test_gbce_finds_the_successor(ndcg, negatives):
    """About what the log allows, from negatives without the noise of an even sample."""
    assert ndcg(loss="gbce", negatives=negatives) > 0.98 * FOLLOWS
