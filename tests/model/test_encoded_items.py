"""Items known by vectors: fusion, id dropout, items that come after training, warm starts, publishing."""

import numpy as np
import pandas as pd
import pytest
import torch

from bseq_plugin.data.events import Events
from bseq_plugin.data.item_vectors import ItemVectors
from bseq_plugin.data.prepare import prepare
from bseq_plugin.errors import PluginError, RecipeError, RunError, SchemaError, UsageError
from bseq_plugin.item_encoders.columns import ColumnsItemEncoder
from bseq_plugin.model.encoded_items import BEGIN, EncodedItems
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.new_items import rows_of_items, with_new_items
from bseq_plugin.publishing.publish import publish
from bseq_plugin.schema.recipe import Recipe
from bseq_plugin.serving.retriever import Retriever
from bseq_plugin.training.item_init import principal_components
from bseq_plugin.training.train import train

OPTIONS = {"columns": {"categories": ["kind"], "numbers": ["place"], "buckets": 16}}


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        encoder="mean", dim=8, max_length=10, epochs=6, batch_users=16, split="none", learning_rate=0.02,
        item_encoders=["columns"], item_encoder_options=OPTIONS, item_fusion="sum", id_dropout=0.5,
    )  # fmt: skip


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


def tower(vectors, fusion="sum", id_dropout=0.0, dim=3):
    torch.manual_seed(0)
    recipe = Recipe(dim=dim, item_encoders=["columns"], item_fusion=fusion, id_dropout=id_dropout)
    return EncodedItems(recipe, vectors.shape[1], ItemVectors(vectors, "ab" * 32))


VECTORS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
VECTORS[[0, 5]] = 0.0


@pytest.mark.parametrize("fusion", ["sum", "gate"])
def test_fusion_row_by_row(fusion):
    encoded = tower(VECTORS, fusion)
    if fusion == "gate":
        torch.nn.init.normal_(encoded.gate.linear.weight)
    ids = [torch.tensor([1, 1, 6, 5]), torch.empty(0, dtype=torch.int64), torch.tensor([4, 0])]
    rows = [torch.randn(len(i), 3) for i in ids]
    for found_ND, row_ND, id_N in zip(encoded(rows, ids), rows, ids, strict=True):
        assert found_ND.shape == row_ND.shape
        for found, row, item in zip(found_ND, row_ND, id_N, strict=True):
            white = (torch.from_numpy(VECTORS[item]) - encoded.centre_E) @ encoded.axes_EE
            said = encoded.projection.weight @ white if VECTORS[item].any() else torch.zeros(3)
            share = 0.5
            if fusion == "gate":
                share = torch.sigmoid(encoded.gate.linear(torch.cat([row, said])))
            torch.testing.assert_close(found, 2 * share * row + 2 * (1 - share) * said)


@torch.no_grad()
def test_id_dropout_drops_an_item_everywhere_but_never_one_without_a_vector():
    encoded = tower(VECTORS, id_dropout=0.4).train()
    ids = [torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([6, 5, 4, 3, 2, 1, 0])]
    rows = [torch.ones(len(i), 3) for i in ids]
    said = encoded.projected(torch.from_numpy(VECTORS))
    kept = torch.zeros(7)
    for _ in range(400):
        first, second = encoded(rows, ids)
        left = torch.stack([(first[i - 1] - said[i]).mean() for i in range(1, 7)])
        again = torch.stack([(second[6 - i] - said[i]).mean() for i in range(1, 7)])
        torch.testing.assert_close(left, again, atol=1e-5, rtol=0)
        assert ((left.abs() < 1e-5) | ((left - 1).abs() < 1e-5)).all()
        kept[1:] += left
    assert round(float(kept[5])) == 400
    share = kept[[1, 2, 3, 4, 6]] / 400
    assert ((share > 0.5) & (share < 0.7)).all()  # 0.6; four deviations are 0.1
    assert torch.equal(encoded.eval()(rows, ids)[0], encoded(rows, ids)[0])


def test_whitened_vectors_have_mean_0_and_even_directions_and_those_of_most_variance_come_first():
    random = np.random.default_rng(1)
    mixed = (random.normal(size=(400, 5)) * [9.0, 3.0, 1.0, 3.0, 9.0]) @ np.linalg.qr(random.normal(size=(5, 5)))[0] + 7
    vectors = np.concatenate([np.zeros((1, 5)), mixed]).astype(np.float32)
    encoded = tower(vectors, dim=3)
    encoded.projection.weight.data = torch.eye(5)
    white = encoded.projected(torch.from_numpy(vectors)).detach().numpy()[1:].astype(np.float64)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-5)
    variances = np.linalg.svd(mixed - mixed.mean(0), compute_uv=False) ** 2 / 400
    # with a tenth of the mean variance added, direction by direction
    wanted = np.diag(variances / (variances + variances.mean() / 10))
    np.testing.assert_allclose(np.cov(white.T, bias=True), wanted, atol=1e-4)
    rows = tower(vectors, dim=3).rows_of(torch.from_numpy(vectors)).detach().numpy()
    assert not rows[0].any()
    np.testing.assert_allclose(rows[1:], white[:, :3] * BEGIN, atol=1e-5)


def test_an_item_nobody_has_had_goes_to_those_who_like_its_kind(run, items):
    model = InterestModel.from_run(run.path)
    longer = with_new_items(model, items)
    assert longer.vocabulary.item_ids.tolist() == [*range(5, 305, 10), 1000, 1001]  # of 1002 nothing is known
    interests = longer.encode(run.sequences())[:, 0]
    scores = interests @ longer.item_vectors_VD[longer.vocabulary.item_rows([1000, 1001])].T
    kind = run.sequences().user_ids // 3 % 3
    assert (scores[kind == 0, 0] > scores[kind == 0, 1]).all()  # 1000 is of kind a, 1001 of kind c
    assert (scores[kind == 2, 1] > scores[kind == 2, 0]).all()
    old = longer.vocabulary.item_rows(model.vocabulary.item_ids)
    assert torch.equal(longer.item_vectors_VD[old], model.item_vectors_VD[1:])
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


def test_a_warm_start_keeps_the_scores_and_gives_new_items_what_is_said_of_them(by_kind, run, recipe, items, tmp_path):
    later = by_kind.iloc[-3:].assign(item_id=[1000, 1001, 1002])
    grown = pd.concat([by_kind, later], ignore_index=True)
    barely = recipe.replace(epochs=1, learning_rate=1e-9, table_learning_rate=1e-9)
    with pytest.warns(UserWarning, match=r"1 of 33 items have no row in the items table, or an empty one.*\[1002\]"):
        again = train(
            Events.from_frame(grown), barely, tmp_path / "run", items=items, progress=False, warm_start=run.path
        )
    old, new = InterestModel.from_run(run.path), InterestModel.from_run(again.path)
    known = new.vocabulary.item_rows(old.vocabulary.item_ids)
    torch.testing.assert_close(new.item_vectors_VD[known], old.item_vectors_VD[1:], atol=1e-5, rtol=1e-5)
    said = rows_of_items(old, items.iloc[-3:])
    places = new.vocabulary.item_rows([1000, 1001, 1002])
    torch.testing.assert_close(new.item_vectors_VD[places], said, atol=1e-5, rtol=1e-5)
    gated = recipe.replace(item_fusion="gate")
    with pytest.raises(RecipeError, match="another item_fusion"):
        train(Events.from_frame(by_kind), gated, tmp_path / "x", items=items, progress=False, warm_start=run.path)


def test_rows_begin_as_principal_components(by_kind, recipe, items, tmp_path):
    random = np.random.default_rng(0)
    vectors = np.zeros((50, 6), np.float32)
    vectors[1:45] = random.normal(size=(44, 2)) @ random.normal(size=(2, 6)) + 3
    found = principal_components(vectors, 4)
    centred = vectors[1:45] - vectors[1:45].mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found[1:45]), np.abs(u * s)[:, :4], atol=1e-4)
    assert not found[[0, *range(45, 50)]].any()
    still = recipe.replace(item_init="encoder", epochs=1, learning_rate=1e-9, table_learning_rate=1e-9)
    run = train(Events.from_frame(by_kind), still, tmp_path / "run", items=items, progress=False)
    model = InterestModel.from_run(run.path)
    known = items[items["item_id"].isin(model.vocabulary.item_ids)].set_index("item_id")
    ids = known.loc[model.vocabulary.item_ids].reset_index()
    own = model.item_vectors_VD[1:] - rows_of_items(model, ids)
    kinds = ids["kind"].to_numpy()
    assert float(own[kinds == "a", :2].std(0).max()) < 1e-5  # of one kind, one place
    assert float((own[kinds == "a", :2].mean(0) - own[kinds == "c", :2].mean(0)).norm()) > recipe.table_init


def test_what_does_not_fit_is_refused(by_kind, run, recipe, items, tmp_path, monkeypatch):
    events, model = Events.from_frame(by_kind), InterestModel.from_run(run.path)
    with pytest.raises(SchemaError, match="reads items with item_encoders; give the items table"):
        prepare(events, recipe)
    with pytest.raises(SchemaError, match="lacks column 'place'"):
        prepare(events, recipe, items.drop(columns="place"))
    with pytest.raises(SchemaError, match="has item 5 twice"):
        prepare(events, recipe, pd.concat([items, items.iloc[:1]]))
    with pytest.raises(SchemaError, match="has none of the 30 items of the log"):
        prepare(events, recipe, items.iloc[-3:])
    with pytest.raises(UsageError, match="unknown item encoder 'pictures'"):
        prepare(events, recipe.replace(item_encoders=["pictures"], item_encoder_options={}), items)
    unfinished(run, tmp_path)
    with pytest.raises(RunError, match="begun with other vectors of its items"):
        train(events, recipe, tmp_path / "run", items=items.assign(place=3.0), progress=False, resume=True)
    bare = recipe.replace(item_encoders=(), item_encoder_options={})
    plain = train(events, bare, tmp_path / "plain", progress=False)
    with pytest.raises(UsageError, match="trained without item encoders"):
        with_new_items(InterestModel.from_run(plain.path), items)
    with pytest.raises(RecipeError, match="another item_encoders"):
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
        ({"item_fusion": "gate"}, "item_fusion goes with item_encoders"),
        ({"item_init": "encoder"}, "item_init goes with item_encoders"),
        ({"item_encoders": ["columns", "columns"]}, "names one twice"),
        ({"item_encoders": ["columns"], "item_encoder_options": {"text": {}}}, "which item_encoders does not name"),
        ({"item_encoders": ["columns"], "item_fusion": "gate", "sharding": "column_wise"}, "whole rows"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**settings)
