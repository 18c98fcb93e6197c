"""The verbs of evaluation through public names: a report says what counting by hand does; wrong use is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import bseq_plugin
from bseq_plugin import RunError, SchemaError, UsageError


@pytest.fixture(scope="module")
def report(tiny_run):
    return bseq_plugin.evaluate(tiny_run, ks=(3, 5))


def test_the_models_figures_equal_a_loop(report, tiny_run):
    """Leave one out: the last event is the target, the items before it are masked."""
    run = bseq_plugin.Run.open(tiny_run)
    model, log = run.model(), run.sequences()
    vectors_VD = model.item_vectors_VD.double()
    hits = []
    for user in range(log.n_users):
        items = log.items[log.offsets[user] : log.offsets[user + 1]]
        if len(items) < 3 or items[-1] == 0 or items[-1] in items[:-1]:
            continue
        history = log.slices(np.array([user]), log.offsets[[user]], log.offsets[[user + 1]] - 1)
        scores_V = (model.encode(history)[0, 0].double() @ vectors_VD.T).numpy()
        scores_V[[0, *items[:-1]]] = -np.inf
        hits.append(items[-1] in np.argsort(-scores_V, kind="stable")[:5])
    assert report.comparison.n_users == len(hits)
    assert report.mean("recall@5") == pytest.approx(np.mean(hits), abs=1e-9)
    assert report.mean("recall@5", "popularity") == report.to_dict()["baselines"]["popularity"]["recall@5"]


def test_a_run_and_its_folder_are_the_same(report, tiny_run):
    again = bseq_plugin.evaluate(bseq_plugin.Run.open(tiny_run), ks=(3, 5))
    documents = [json.loads(json.dumps({**one.to_dict(), "seconds": None})) for one in (report, again)]
    assert documents[0] == documents[1]


def test_a_report_is_a_table_and_a_picture(report, tmp_path):
    assert str(report.table("tiny").title) == "tiny"
    with pytest.raises(UsageError, match="k = 7 was not measured"):
        report.table(k=7)
    report.draw(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_baselines_can_be_left_out(tiny_run):
    alone = bseq_plugin.evaluate(tiny_run, ks=(5,), baselines=False)
    assert alone.to_dict()["baselines"] == {}


def test_what_can_not_be_evaluated_is_refused(tiny_run, tiny_frame, tiny_recipe, tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        bseq_plugin.evaluate(tmp_path)
    with pytest.raises(UsageError, match="use test or validation"):
        bseq_plugin.evaluate(tiny_run, "training")
    with pytest.raises(UsageError, match="k >= 1"):
        bseq_plugin.evaluate(tiny_run, ks=(0,))
    events = bseq_plugin.read_events(tiny_frame)
    run = bseq_plugin.train(events, tiny_recipe.replace(split="none"), tmp_path / "run", progress=False)
    with pytest.raises(SchemaError, match="holds nothing out"):
        bseq_plugin.evaluate(run)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"protocol": "random"}, "leave-one-out"), ({"seeds": []}, "no seeds"), ({"recipe": "gone"}, "gone")],
)
def test_a_benchmark_that_can_not_be_run_is_refused(tiny_frame, wrong, words):
    with pytest.raises(UsageError, match=words):
        bseq_plugin.benchmark(tiny_frame, **{"recipe": "reference", **wrong})


def test_files_of_a_run(tiny_run):
    files = bseq_plugin.Run.open(tiny_run).files
    assert {"run.json", "recipe.json", "vocabulary.parquet", "model/items.safetensors"} <= set(files)
    assert all(path.is_file() for path in files.values())
