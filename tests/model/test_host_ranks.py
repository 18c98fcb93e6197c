"""What is wrong with an argument on one rank is told on all: nobody waits, and nobody's users are lost.

``python test_host_ranks.py FOLDER RANK WORLD_SIZE`` is one of two processes.
"""

from __future__ import annotations

import re
from dataclasses import replace

import host_job
import numpy as np
import pytest
import torch
from small_hosts import LENGTH, N_ITEMS, make_histories, make_vocabulary, recipe
from torch import distributed as dist
from torch import nn
from torchrec import KeyedJaggedTensor

import bseq_plugin as bseq

HISTORIES, VOCABULARY = make_histories(), make_vocabulary()
EVERY = np.arange(HISTORIES.n_users)
LATER = replace(HISTORIES, timestamps=HISTORIES.timestamps + 1)
TURNED = replace(VOCABULARY, item_ids=VOCABULARY.item_ids[::-1].copy())

# what rank 1 passes instead, and what both are told
WRONG = {
    "nobody": ({"histories": HISTORIES.take(EVERY[:0])}, "no user of the histories has an event"),
    "users without events": ({"histories": HISTORIES.without_last(99)}, "no user of the histories has an event"),
    "its own users": ({"histories": HISTORIES.take(EVERY[20:])}, "same histories.*rank 0: 40 users.*rank 1: 20 users"),
    "another order": ({"histories": HISTORIES.take(EVERY[::-1])}, "every rank must pass the same histories"),
    "other times": ({"histories": LATER}, "every rank must pass the same histories"),
    "another vocabulary": ({"vocabulary": TURNED}, "every rank must pass the same vocabulary"),
    "other counts": (
        {"vocabulary": replace(VOCABULARY, item_counts=VOCABULARY.item_counts + 1)},
        "every rank must pass the same vocabulary",
    ),
    "another instant": ({"trained_until": "2026-03-01T00:00Z"}, "every rank must pass the same trained_until"),
    "no instant": ({"trained_until": "soon"}, "trained_until"),
    "no histories": ({"histories": None}, "histories=, vocabulary="),
    "a table": ({"histories": HISTORIES.to_table(VOCABULARY)}, r"histories is a Table; give bseq\.Sequences"),
    "a list": ({"vocabulary": VOCABULARY.item_ids.tolist()}, r"vocabulary is a list; give bseq\.Vocabulary"),
    "no item": (
        {"vocabulary": bseq.Vocabulary(np.empty(0, np.int64), np.empty(0, np.int64))},
        "the vocabulary has 0 items",
    ),
    "float users": ({"histories": replace(HISTORIES, user_ids=EVERY / 2)}, "ids of users are floating, for example"),
    "bool users": ({"histories": replace(HISTORIES, user_ids=EVERY > 3)}, "ids of users are boolean"),
    "float items": ({"vocabulary": replace(VOCABULARY, item_ids=VOCABULARY.item_ids / 2)}, "ids of items are floating"),
    "rows beyond the items": (
        {"histories": replace(HISTORIES, items=HISTORIES.items.clip(29) + 2)},
        "items of user 0 have 3[12] in place 0, which is no row of the vocabulary: it has 30 items",
    ),
    "rows below": ({"histories": replace(HISTORIES, items=HISTORIES.items - 9)}, "items of user .* have -"),
    "rows of types": ({"histories": replace(HISTORIES, event_types=HISTORIES.items)}, "it has 0 event types"),
    "float rows": ({"histories": replace(HISTORIES, items=HISTORIES.items / 1)}, "items is float64; give int64"),
    "loose offsets": ({"histories": replace(HISTORIES, offsets=HISTORIES.offsets[:-1])}, "offsets don't cut"),
    "short times": (
        {"histories": replace(HISTORIES, timestamps=HISTORIES.timestamps[1:])},
        "timestamps has 279 values",
    ),
    "a log": ({"log": "events"}, "log brings the events of new items"),
}


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.interest = bseq.SequenceInterestEncoder(recipe(), N_ITEMS, item_keys=["target"], device="meta")

    def forward(self, batch):
        interest, items = self.interest.interest_and_items(batch)
        scores = interest["user_interest"] @ items["target"].T
        loss = nn.functional.cross_entropy(scores, torch.arange(scores.shape[0]))
        return loss, (loss.detach(), scores.detach())


def batch(seed, n=16):
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, N_ITEMS + 1, (n * LENGTH + n,), generator=generator)
    return KeyedJaggedTensor(["event", "target"], items, lengths=torch.tensor([LENGTH] * n + [1] * n))


def told(publish):
    try:
        return str(publish())
    except bseq.BseqError as error:
        return f"{type(error).__name__}: {error}"


def work(folder):
    host, pipeline, _ = host_job.train(Host(), [], "row_wise", "row_wise_adagrad", 3, batch)
    right = {"histories": HISTORIES, "vocabulary": VOCABULARY, "trained_until": "2026-02-01T00:00Z"}
    found = {}
    for name, (wrong, _) in WRONG.items():
        given = right | (wrong if dist.get_rank() == 1 else {})
        found[name] = [told(lambda given=given: bseq.publish(host, folder / "wrong" / "store", **given))]
        if "log" not in wrong:
            found[name].append(told(lambda given=given: bseq.Run.from_host(host, folder / "wrong" / "run", **given)))
    found["left"] = [str(path) for path in folder.glob("wrong/*")]
    found["right"] = told(lambda: bseq.publish(host, folder / "right", **right))
    pipeline.detach()
    return found


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    return host_job.on_two_processes(__file__, tmp_path_factory.mktemp("ranks"), timeout=120)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_on_one_rank_is_told_on_all(of_ranks, name):
    first, second = (of_rank[name] for of_rank in of_ranks)
    assert first == second
    for said in first:
        assert re.match(f"(Usage|Schema)Error: .*{WRONG[name][1]}", said), said


def test_nothing_is_kept_and_the_right_arguments_are_published(of_ranks):
    first, second = of_ranks
    assert first["left"] == []
    assert first["right"] == second["right"]
    assert first["right"].startswith("v00000001")


if __name__ == "__main__":
    host_job.as_a_process(work)
