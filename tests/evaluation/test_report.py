import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from bseq_plugin import Sequences, UsageError, ranking_metrics
from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.evaluation.rankers import interest_ranker
from bseq_plugin.evaluation.report import compare, metrics_document

torch.set_num_threads(1)
U, V = 40, 60


@pytest.fixture
def evaluated():
    """User n had item n + 1; target is item n + 2."""
    users = np.arange(U)
    histories = Sequences(users, np.arange(U + 1), users + 1)
    return EvaluationSet(histories, np.arange(U + 1), users + 2)


def fixed(top):
    return lambda histories, k, mask_seen: top[:, :k]


def right_for(n_users):
    """Finds the target of the first ``n_users`` in place 1, of the others never."""
    top = np.tile(np.arange(V - 9, V + 1), (U, 1))
    top[:n_users, 0] = np.arange(n_users) + 2
    return fixed(top)


def test_a_clear_win_is_told_from_noise(evaluated):
    rankers = {"worse": right_for(2), "better": right_for(10), "model": right_for(40), "also": right_for(11)}
    got = compare(evaluated, rankers, V, ks=(1, 5), models=("model", "also"))
    assert (got.models, got.baselines) == (("model", "also"), ("worse", "better"))
    assert [got.mean(name, "ndcg@5") for name in rankers] == [2 / 40, 10 / 40, 1.0, 11 / 40]
    clear, close = got.differences["model"]["ndcg@5"], got.differences["also"]["ndcg@5"]
    assert (clear.baseline, clear.mean, clear.within_noise) == ("better", 0.75, False)
    assert (close.mean, close.within_noise) == (pytest.approx(1 / 40), True)
    assert got.intervals["model"]["recall@1"] == (1.0, 1.0)
    low, high = got.intervals["better"]["recall@1"]
    assert low < 10 / 40 < high
    assert got.coverage["model"] == {"coverage@1": 40 / V, "coverage@5": 44 / V}


def test_rankers_are_told_whether_to_mask(evaluated):
    asked = []

    def ranker(histories, k, mask_seen):
        asked.append((histories.n_users, k, mask_seen))
        return np.full((U, k), -1)

    for seen in ("keep", "mask"):
        assert compare(evaluated, {"model": ranker}, V, ks=(3, 7), seen=seen).differences == {}
    assert asked == [(U, 7, False), (U, 7, True)]


def test_documents_are_json_of_the_agreed_shape(evaluated):
    rankers = {"popularity": right_for(4), "model": right_for(9), "served": right_for(12)}
    both = {part: compare(evaluated, rankers, V, ks=(5, 20)[:1], models=("model", "served")) for part in ("all", "new")}
    document = json.loads(json.dumps(metrics_document({"split": "time"}, both, {"train": 1.5})))
    assert set(document) == {"protocol", "model", "served", "baselines", "seconds"}
    assert document["model"]["all"]["recall@5"] == 9 / 40
    assert document["baselines"]["popularity"]["new"]["ndcg@5"] == 4 / 40
    assert document["model"]["new"]["versus_best_baseline"]["ndcg@5"]["baseline"] == "popularity"
    assert document["protocol"]["evaluated"]["all"] == {"users": U, "targets": U, "seen": "keep"}
    single = json.loads(json.dumps(both["all"].to_dict()))
    assert single["baselines"]["popularity"] == document["baselines"]["popularity"]["all"]
    assert len(single["model"]["intervals"]["mrr@5"]) == 2


def test_the_table_marks_best_and_noise(evaluated):
    rankers = {"baseline": right_for(10), "model": right_for(11), "served": right_for(40)}
    got = compare(evaluated, rankers, V, ks=(1, 5), models=("model", "served"))
    out = io.StringIO()
    Console(file=out, width=140, force_terminal=True, color_system="standard").print(got.table("Test"))
    lines = out.getvalue().splitlines()
    assert [name for line in lines if "│" in line for name in rankers if f" {name} " in line[:20]] == [
        "baseline",
        "model",
        "served",
    ]
    served = next(line for line in lines if " served " in line[:20])
    assert "\x1b[1m1.0000" in served
    assert sum("within noise" in line for line in lines) == 2  # under the model's figures, and in the caption
    assert "seen items kept" in out.getvalue()
    with pytest.raises(UsageError, match="k = 20 was not measured"):
        got.table("Test", k=20)


def test_wrong_use_is_told(evaluated):
    with pytest.raises(UsageError, match=r"ranker 'model' returned \(3, 5\), expected \(40, 5\)"):
        compare(evaluated, {"model": lambda h, k, m: np.zeros((3, k), int)}, V, ks=(5,))
    for wrong in ({"seen": "hide"}, {"ks": ()}, {"ks": (0, 5)}):
        with pytest.raises(UsageError, match="seen is 'keep' or 'mask'"):
            compare(evaluated, {"model": right_for(1)}, V, **wrong)


def test_interest_ranker_takes_the_best_interest(evaluated):
    class Scorer:
        item_vectors_VD = torch.randn(V + 1, 4, generator=torch.Generator().manual_seed(0))

        def encode(self, histories):
            return torch.stack([self.item_vectors_VD[histories.items], self.item_vectors_VD[histories.items + 1]], 1)

    model = Scorer()
    rank = interest_ranker(model)
    for mask in (False, True):
        score = (model.encode(evaluated.histories) @ model.item_vectors_VD.T).amax(1)
        score[:, 0] = -torch.inf
        if mask:
            score[torch.arange(U), torch.arange(U) + 1] = -torch.inf
        top = rank(evaluated.histories, 10, mask)
        np.testing.assert_array_equal(top, score.sort(1, descending=True).indices[:, :10].numpy())
    assert ranking_metrics(top, evaluated.target_offsets, evaluated.target_items, (10,))["hit@10"].mean() > 0.5
