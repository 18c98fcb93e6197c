"""Items placed among those that are like them: by hand, through training, publishing and warm starts."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from bseq_plugin import (
    Events,
    InterestModel,
    Recipe,
    RecipeError,
    Retriever,
    RunError,
    SchemaError,
    UsageError,
    publish,
    train,
)
from bseq_plugin.data.items import ItemVectors
from bseq_plugin.model import neighbours as module
from bseq_plugin.model.interest_model import KEYS
from bseq_plugin.model.neighbours import NeighbourItems, blocks_of, completed
from bseq_plugin.model.new_items import rows_of_items, with_new_items
from bseq_plugin.serving.served import Served
from bseq_plugin.store.store import Store
from bseq_plugin.training.checkpoint import Checkpoints, Position
from bseq_plugin.training.trainer import build_task


def by_hand(keys, counts, rows, key, own=None):
    """The guess, item by item: distinct keys by nearness, the nearest of them, every item of such a key once."""
    known = [i for i in range(1, len(keys)) if keys[i].any() and counts[i - 1] > 0]
    distinct = sorted({tuple(keys[i]) for i in known}, key=lambda k: -float(np.dot(key, k)))
    near = set(distinct[: module.N_NEIGHBOURS])
    weights = {i: np.exp(float(np.dot(key, keys[i])) / module.TEMPERATURE) for i in known if tuple(keys[i]) in near}
    weights.pop(own, None)
    if not weights or not key.any():
        return None
    return sum(w * rows[i] for i, w in weights.items()) / sum(weights.values())


@pytest.fixture
def problem(monkeypatch):
    """60 items, some of one text, some of none, some never bought; keys float64, rows float64."""
    monkeypatch.setattr(module, "N_NEIGHBOURS", 4)
    random = np.random.default_rng(0)
    vectors = np.zeros((61, 6), np.float32)
    vectors[1:] = random.normal(size=(60, 6))
    vectors[[7, 9, 30]] = 0.0
    vectors[[3, 11, 12]] = vectors[2]
    counts = random.integers(0, 9, 60)
    rows = random.normal(size=(61, 5)).astype(np.float32)
    encoded = NeighbourItems(6, ItemVectors(vectors, "ab" * 32))
    encoded.keys_VK = encoded.keys_of(torch.from_numpy(vectors))
    return vectors, counts, rows, encoded


def test_rows_are_completed_as_by_hand(problem, monkeypatch):
    _, counts, rows, encoded = problem
    keys = encoded.keys_VK.double().numpy()
    lengths = np.linalg.norm(keys, axis=1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=1e-3)
    monkeypatch.setattr(module, "ROWS", 16)
    table = torch.from_numpy(rows)

    def blocks():
        return ((first, table[first : first + 25]) for first in range(0, 61, 25))

    parts = list(completed(encoded.keys_VK, counts, 3.0, blocks))
    assert [first for first, _ in parts] == [0, 16, 25, 41, 50]
    found = torch.cat([part for _, part in parts]).numpy()
    assert np.array_equal(found[[0, 7, 9, 30]], rows[[0, 7, 9, 30]])  # of these nothing is known
    for item in range(1, 61):
        guess = by_hand(keys, counts, rows.astype(np.float64), keys[item], own=item)
        n = counts[item - 1]
        wanted = rows[item] if guess is None else (n * rows[item] + 3 * guess) / (n + 3)
        np.testing.assert_allclose(found[item], wanted, atol=2e-4)
    whole = torch.cat([part for _, part in completed(encoded.keys_VK, counts, 3.0, blocks, whole=True)]).numpy()
    n = np.concatenate([[0], counts])[:, None]
    # a row that stays whole has the share more that the guess took from it
    np.testing.assert_allclose(whole - found, rows * 3 / (n + 3) * (found != rows), atol=2e-4)
    (_, unchanged), *_ = completed(encoded.keys_VK, counts + 1, 0.0, lambda: blocks_of(table))
    np.testing.assert_allclose(unchanged[:10], rows[:10], atol=1e-6)


def test_new_items_have_the_guess_as_by_hand(problem):
    _, counts, rows, encoded = problem
    asked = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    asked[4] = 0.0
    found = encoded.rows_of(torch.from_numpy(asked), torch.from_numpy(rows), counts).numpy()
    keys, new = encoded.keys_VK.double().numpy(), encoded.keys_of(torch.from_numpy(asked)).double().numpy()
    for place in range(9):
        wanted = by_hand(keys, counts, rows.astype(np.float64), new[place])
        np.testing.assert_allclose(found[place], np.zeros(5) if wanted is None else wanted, atol=2e-4)
    nobody = encoded.rows_of(torch.from_numpy(asked), torch.from_numpy(rows), np.zeros(60, np.int64))
    assert nobody.shape == (9, 5)
    assert not nobody.any()


def test_a_large_catalogue_is_searched_by_lists(problem, monkeypatch):
    _, counts, rows, encoded = problem
    asked = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    exact = encoded.rows_of(asked, torch.from_numpy(rows), counts)
    monkeypatch.setattr(module, "EXACT_PAIRS", 0)
    torch.testing.assert_close(encoded.rows_of(asked, torch.from_numpy(rows), counts), exact, atol=1e-4, rtol=1e-4)


def test_a_model_that_is_not_exported_or_whose_keys_are_others_is_refused(problem, run):
    vectors, counts, rows, encoded = problem
    encoded.keys_VK = None
    with pytest.raises(RunError, match="has no keys of its items"):
        encoded.rows_of(torch.from_numpy(vectors), torch.from_numpy(rows), counts)
    model = InterestModel.from_run(run.path)
    state = dict(model.encoder.state_dict())
    state[KEYS] = state[KEYS][:-1]
    with pytest.raises(RunError, match="does not fit its recipe"):
        InterestModel.from_state(model.recipe, model.vocabulary, state, None, None)


COLUMNS = {"name": "columns", "categories": ["kind"], "numbers": ["place"], "buckets": 16}
STILL = {"table": {"rate": 1e-9}}  # as good as no learning


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        encoder={"name": "mean", "max_length": 10},
        vectors={"dim": 8},
        items={"encoders": [COLUMNS]},
        negatives={"kind": "uniform", "n": 16},
        split="none",
        training={"epochs": 6, "batch": {"users": 16}},
    )


@pytest.fixture(scope="module")
def items():
    """Items 5, 15, ... of the log, three kinds in a row of ten; and three that nobody has had."""
    ids = [*range(5, 305, 10), 1000, 1001, 1002]
    kinds = [*np.repeat(["a", "b", "c"], 10), "a", "c", None]
    return pd.DataFrame({"item_id": ids, "kind": kinds, "place": [*np.linspace(0, 1, 30), 0.5, 0.2, None]})


@pytest.fixture(scope="module")
def by_kind(make_frame):
    """Users who stay with items of one kind."""
    frame = make_frame(n_users=90)
    number = (frame["item_id"] - 5) // 10
    return frame.assign(item_id=(number % 10 + 10 * (frame["user_id"] // 3 % 3)) * 10 + 5)


@pytest.fixture(scope="module")
def run(by_kind, recipe, items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbours")
    return train(Events.from_frame(by_kind), recipe, folder / "run", items=items, progress=False)


def trained_rows(run, log):
    """The item table as training left it."""
    task = build_task(log, device="cpu")
    Checkpoints(run.path).load_plain(task, Position(run.info["best_epoch"]))
    return task.interest_encoder.embedding_collection.embeddings["item"].weight.detach()


def test_the_export_completes_what_ids_have_learned(run, by_kind, recipe, items, tmp_path):
    from bseq_plugin.data.prepare import prepare

    log = prepare(Events.from_frame(by_kind), recipe, items)
    rows, model = trained_rows(run, log), InterestModel.from_run(run.path)
    bare = recipe.replace(items={"encoders": ()})
    alone = train(Events.from_frame(by_kind), bare, tmp_path / "alone", progress=False)
    assert torch.equal(rows, InterestModel.from_run(alone.path).item_table_VD)  # the training is that of ids alone
    keys = load_file(run.path / "model" / "encoder.safetensors")[KEYS]
    assert keys.dtype == torch.float16
    wanted = torch.cat(
        [part for _, part in completed(keys, model.vocabulary.item_counts, 2.0, lambda: blocks_of(rows))]
    )
    torch.testing.assert_close(model.item_table_VD, wanted)
    assert float((model.item_table_VD - rows)[1:].abs().max()) > 1e-3


def test_an_item_nobody_has_had_goes_to_those_who_like_its_kind(run, items, tmp_path):
    model = InterestModel.from_run(run.path)
    longer = with_new_items(model, items)
    assert longer.vocabulary.item_ids.tolist() == [*range(5, 305, 10), 1000, 1001]  # of 1002 nothing is known
    scores = longer.encode(run.sequences())[:, 0] @ longer.item_vectors_VD[-2:].T
    kind = run.sequences().user_ids // 3 % 3
    assert (scores[kind == 0, 0] > scores[kind == 0, 1]).all()  # 1000 is of kind a, 1001 of kind c
    assert (scores[kind == 2, 1] > scores[kind == 2, 0]).all()
    assert torch.equal(longer.item_vectors_VD[:-2], model.item_vectors_VD)
    longer.save(tmp_path)  # and once more from there: those who came without events are nobody's neighbours
    torch.testing.assert_close(rows_of_items(InterestModel.load(tmp_path), items), rows_of_items(model, items))
    publish(run, tmp_path / "store", items=items)
    hits = Retriever.open(tmp_path / "store").retrieve([int(run.sequences().user_ids[0])], k=32, exclude="none")
    assert {1000, 1001} <= set(hits["item_id"])


def test_a_new_item_has_a_direction_of_its_own_where_people_have_things_again(run, items):
    plain = InterestModel.from_run(run.path)
    recipe = plain.recipe.replace(items={"own_direction": 1.5})
    state = plain.encoder.state_dict()
    model = InterestModel.from_state(recipe, plain.vocabulary, state, None, plain.trained_until_us)
    new = items.iloc[-3:]
    own = rows_of_items(model, new) - rows_of_items(plain, new)
    usual = float(plain.item_table_VD[1:].norm(dim=1).mean())
    lengths = own.norm(dim=1).tolist()
    assert lengths == pytest.approx([1.5 * usual, 1.5 * usual, 0.0], rel=1e-4)  # nothing is known of the last
    assert torch.equal(rows_of_items(model, new.iloc[::-1]), rows_of_items(model, new).flip(0))  # by its id alone
    many = module.own_directions(range(2000), plain.item_table_VD, plain.vocabulary.item_counts) / usual
    cosines = many @ many.T
    assert float(cosines.mean()) == pytest.approx(0, abs=0.01)
    assert float(cosines.fill_diagonal_(0).pow(2).mean()) == pytest.approx(1 / many.shape[1], rel=0.05)


def test_attributes_are_part_of_the_rows_that_a_guess_is_made_of(by_kind, recipe, items, tmp_path):
    both = recipe.replace(items={"attributes": ["kind"]}, training={"epochs": 1})
    run = train(Events.from_frame(by_kind), both, tmp_path / "run", items=items.iloc[:-3], progress=False)
    model = InterestModel.from_run(run.path)
    keys = model.encoder.item_tower.encoded.keys_VK.double().numpy()
    rows, counts = model.item_table_VD.double().numpy(), model.vocabulary.item_counts
    twin = items.iloc[[4]].assign(item_id=1000)  # what is known of it is what is known of an item
    guess = by_hand(keys, counts, rows, keys[int(model.vocabulary.item_rows(items["item_id"].iloc[[4]])[0])])
    longer = with_new_items(model, twin)
    np.testing.assert_allclose(longer.item_table_VD[-1], guess, atol=2e-3)


def test_who_had_a_new_item_since_is_told_from_who_had_its_twin(by_kind, recipe, items, tmp_path):
    """Two new items of one text: their neighbours are the same, their buyers are not."""
    twins = items[items["item_id"] < 1000]
    ids = [2000, 2001]
    twins = pd.concat([twins, pd.DataFrame({"item_id": ids, "kind": "a", "place": 0.5})], ignore_index=True)
    window = {"kind": "window", "days": 7.0, "popularity_days": [30.0, 365.0]}
    own = recipe.replace(items={"own_direction": 2.0}, objective=window)
    run = train(Events.from_frame(by_kind), own, tmp_path / "run", items=twins, progress=False)
    end = by_kind["timestamp"].max()
    since = pd.DataFrame({"user_id": np.repeat([1, 2, 3], 4), "item_id": np.repeat([2000, 2001, 2001], 4)})
    since = since.assign(timestamp=end + pd.Timedelta(days=1), event_type="buy")  # training ended before
    log = Events.from_frame(pd.concat([by_kind, since]).sort_values("timestamp", kind="stable"))
    publish(run, tmp_path / "store", items=twins, log=log)
    served = Served.load(Store(tmp_path / "store").open(), None)
    found = {
        int(item): served.model.item_priors_VP[row + 1].exp() - 1
        for row, item in enumerate(served.model.vocabulary.item_ids)
    }
    newest = log.frame["timestamp"].max()
    assert served.model.trained_until_us == newest
    for item, priors in found.items():
        of_item = log.frame[log.frame["item_id"] == item]
        for place, days in enumerate((30, 365)):
            users = of_item.loc[of_item["timestamp"] > newest - days * 86_400_000_000, "user_id"].nunique()
            assert float(priors[place]) == pytest.approx(users, rel=1e-4)
    assert [found[item].round().tolist() for item in ids] == [[1.0, 1.0], [2.0, 2.0]]
    hits = Retriever.open(tmp_path / "store").retrieve([1, 2], k=32, exclude="none")
    place = {(user, item): at for at, (user, item) in enumerate(zip(hits["user_id"], hits["item_id"], strict=True))}
    assert place[1, 2000] < place[1, 2001]
    assert place[2, 2001] < place[2, 2000]
    with pytest.raises(UsageError, match="log brings the events of new items: give items with it"):
        publish(run, tmp_path / "store", log=log)
    with pytest.raises(SchemaError, match="log has no times"):
        publish(run, tmp_path / "store", items=items, log=Events(log.frame.drop(columns="timestamp")))
    with pytest.raises(UsageError, match="ends before the newest event"):
        publish(run, tmp_path / "store", items=items, log=Events(log.frame.iloc[:0]))


def test_a_warm_start_keeps_rows_bit_by_bit_and_begins_new_items_among_their_neighbours(
    by_kind, run, recipe, items, tmp_path
):
    """Completed again at every start, rows would be pulled towards their neighbours each day."""
    later = by_kind.iloc[-4:].assign(item_id=[1000, 1001, 5, 15])
    later["timestamp"] += pd.Timedelta(days=400)
    new_log = Events.from_frame(pd.concat([by_kind.iloc[:40], later], ignore_index=True))
    once = recipe.replace(negatives={"n": 1}, training={"epochs": 1, **STILL})
    again = train(new_log, once, tmp_path / "run", items=items, progress=False, warm_start=run.path)
    assert json.loads((again.path / "run.json").read_text())["warm_start"] == str(run.path)
    old, new = InterestModel.from_run(run.path), InterestModel.from_run(again.path)
    known = old.vocabulary.item_rows(new.vocabulary.item_ids[:-2])
    assert (known > 0).all()
    torch.testing.assert_close(new.item_table_VD[1:-2], old.item_table_VD[known], atol=1e-6, rtol=0)
    said = rows_of_items(old, items.iloc[-3:-1])
    torch.testing.assert_close(new.item_table_VD[-2:], said, atol=1e-6, rtol=0)
    other = recipe.replace(items={"encoders": [{**COLUMNS, "buckets": 8}]})
    with pytest.raises(RecipeError, match="another items.encoders"):
        train(new_log, other, tmp_path / "x", items=items, progress=False, warm_start=run.path)


def test_a_warm_start_gives_a_new_item_the_direction_that_publishing_gave_it(by_kind, recipe, items, tmp_path):
    own = recipe.replace(items={"own_direction": 0.8}, training={"epochs": 1})
    first = train(Events.from_frame(by_kind), own, tmp_path / "first", items=items, progress=False)
    later = by_kind.iloc[-1:].assign(item_id=1000)
    later["timestamp"] += pd.Timedelta(days=400)
    log = Events.from_frame(pd.concat([by_kind, later], ignore_index=True))
    still = own.replace(negatives={"n": 1}, training=STILL)
    again = train(log, still, tmp_path / "again", items=items, progress=False, warm_start=first.path)
    old, new = InterestModel.from_run(first.path), InterestModel.from_run(again.path)
    said = rows_of_items(old, items[items["item_id"] == 1000])
    torch.testing.assert_close(new.item_table_VD[-1:], said, atol=1e-6, rtol=0)
