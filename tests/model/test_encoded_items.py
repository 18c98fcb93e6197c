"""Items known by vectors: whitening, publishing with an items table, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from bseq_plugin import (
    Events,
    InterestModel,
    PluginError,
    Recipe,
    RecipeError,
    Retriever,
    RunError,
    SchemaError,
    UsageError,
    publish,
    train,
)
from bseq_plugin.data.prepare import prepare
from bseq_plugin.item_encoders.columns import ColumnsItemEncoder
from bseq_plugin.model.neighbours import whitening
from bseq_plugin.model.new_items import rows_of_items, with_new_items

COLUMNS = {"name": "columns", "categories": ["kind"], "numbers": ["place"], "buckets": 16}


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        encoder={"name": "mean", "max_length": 10},
        vectors={"dim": 8},
        items={"encoders": [COLUMNS]},
        split="none",
        training={"epochs": 6, "batch": {"users": 16}},
    )


@pytest.fixture(scope="module")
def items():
    """Items 5, 15, ... of the log, three kinds in a row of ten; and three that nobody has had."""
    ids = [*range(5, 305, 10), 1000, 1001, 1002]
    return pd.DataFrame(
        {"item_id": ids, "kind": [*np.repeat(["a", "b", "c"], 10), "a", "c", None], "place": [0.1] * 32 + [None]}
    )


@pytest.fixture(scope="module")
def by_kind(make_frame):
    """Users who stay with items of one kind."""
    frame = make_frame(n_users=90)
    number = (frame["item_id"] - 5) // 10
    return frame.assign(item_id=(number % 10 + 10 * (frame["user_id"] // 3 % 3)) * 10 + 5)


@pytest.fixture(scope="module")
def run(by_kind, recipe, items, tmp_path_factory):
    return train(
        Events.from_frame(by_kind), recipe, tmp_path_factory.mktemp("encoded") / "run", items=items, progress=False
    )


def test_whitened_vectors_have_mean_0_and_even_directions_and_those_of_most_variance_come_first():
    random = np.random.default_rng(1)
    mixed = (random.normal(size=(400, 5)) * [9.0, 3.0, 1.0, 3.0, 9.0]) @ np.linalg.qr(random.normal(size=(5, 5)))[0] + 7
    vectors = np.concatenate([np.zeros((1, 5)), mixed]).astype(np.float32)
    centre, axes = (value.numpy().astype(np.float64) for value in whitening(vectors))
    white = (mixed - centre) @ axes
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-5)
    variances = np.linalg.svd(mixed - mixed.mean(0), compute_uv=False) ** 2 / 400
    # with a tenth of the mean variance added, direction by direction
    wanted = np.diag(variances / (variances + variances.mean() / 10))
    np.testing.assert_allclose(np.cov(white.T, bias=True), wanted, atol=1e-4)


def test_items_that_are_there_already_change_nothing(run, items):
    longer = with_new_items(InterestModel.from_run(run.path), items)
    assert with_new_items(longer, items) is longer
    assert with_new_items(longer, items.iloc[:0]) is longer


def test_published_with_an_items_table_they_are_found_the_same_day(run, items, tmp_path):
    publish(run, tmp_path / "store", items=items)
    retriever = Retriever.open(tmp_path / "store")
    of_kind_a = int(run.sequences().user_ids[run.sequences().user_ids // 3 % 3 == 0][0])
    hits = retriever.retrieve([of_kind_a], k=32, exclude="none")
    assert {1000, 1001} <= set(hits["item_id"])
    histories = retriever.histories
    assert sorted(retriever.model.vocabulary.item_ids[histories.items - 1]) == sorted(
        run.vocabulary().item_ids[run.sequences().items - 1]
    )


def test_what_does_not_fit_is_refused(by_kind, run, recipe, items, tmp_path, monkeypatch):
    events, model = Events.from_frame(by_kind), InterestModel.from_run(run.path)
    with pytest.raises(SchemaError, match="reads items with items.encoders; give the items table"):
        prepare(events, recipe)
    with pytest.raises(SchemaError, match="lacks column 'place'"):
        prepare(events, recipe, items.drop(columns="place"))
    with pytest.raises(SchemaError, match="has item 5 twice"):
        prepare(events, recipe, pd.concat([items, items.iloc[:1]]))
    with pytest.raises(SchemaError, match="has none of the 30 items of the log"):
        prepare(events, recipe, items.iloc[-3:])
    with pytest.raises(UsageError, match="unknown item encoder 'pictures'"):
        prepare(events, recipe.replace(items={"encoders": ["pictures"]}), items)
    unfinished(run, tmp_path)
    with pytest.raises(RunError, match="begun with other vectors of its items"):
        train(events, recipe, tmp_path / "run", items=items.assign(place=3.0), progress=False, resume=True)
    bare = recipe.replace(items={"encoders": ()})
    plain = train(events, bare, tmp_path / "plain", progress=False)
    with pytest.raises(UsageError, match="trained without item encoders"):
        with_new_items(InterestModel.from_run(plain.path), items)
    with pytest.raises(RecipeError, match="another items.encoders"):
        train(events, recipe, tmp_path / "x", items=items, progress=False, warm_start=plain.path)
    monkeypatch.setattr(ColumnsItemEncoder, "identity", "cd" * 32)  # as if its weights had changed
    with pytest.raises(UsageError, match="give other vectors than those the model was trained with"):
        rows_of_items(model, items)
    with pytest.raises(RecipeError, match="its item encoders had other weights"):
        train(events, recipe, tmp_path / "x", items=items, progress=False, warm_start=run.path)
    monkeypatch.setattr(ColumnsItemEncoder, "encode", lambda self, items, progress: np.zeros((len(items), 3)))
    with pytest.raises(PluginError, match=r"item encoder 'columns' gave \(3[03], 3\) float64; wanted finite float32"):
        prepare(events, recipe, items)


def unfinished(run, folder):
    """A copy of a run that says it is still training."""
    import json
    import shutil

    shutil.copytree(run.path, folder / "run")
    info = json.loads((folder / "run" / "run.json").read_text())
    (folder / "run" / "run.json").write_text(json.dumps({**info, "status": "training"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own_direction": 0.5}, "own_direction = 0.5 goes with encoders, and there are none"),
        ({"encoders": ["columns", "columns"]}, "names one twice"),
        ({"encoders": ["columns"], "text": {}}, "unknown key 'items.text'; the keys are: .*encoders"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(items=settings)
