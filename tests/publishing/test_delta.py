"""Deltas: whatever comes, changes and goes, answers are those of a full build of the same items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bseq_plugin import ITEM_TABLE, Retriever, StoreError, UsageError, merge_delta, publish_delta
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_cpu import FaissCpuIndex
from bseq_plugin.indexes.layered import LayeredIndex
from bseq_plugin.publishing import delta as delta_module
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import Store
from bseq_plugin.testing.indexes import brute_force, vectors

USERS = [100, 101, 102, 103]
INDEXES = {
    "exact": {"index": "exact"},
    "flat": {"index": "faiss_cpu"},
    "shards": {"index": "faiss_shards", "index_options": {"shards": 3}},
    "all lists": {"index": "faiss_cpu", "index_options": {"factory": "IVF4,Flat", "nprobe": 4}},
}


@pytest.fixture(params=INDEXES)
def shop(request, tmp_path, make_model, make_histories):
    """(store, model, histories) with 200 items in each kind of index that is exact here."""
    model = make_model(n_items=200, dim=6)
    histories = make_histories(model, [5, 30, 12, 0])
    store = Store(tmp_path / "store")
    publish_model(model, histories, store, **INDEXES[request.param])
    return store, model, histories


def table(model):
    return model.encoder.embedding_collection.embeddings[ITEM_TABLE].weight.detach()


def answer(store, k=300):
    """{user: {item: score}} with the store's index, and the same by exact search over what the version says."""
    found = Retriever.open(store).retrieve(USERS, k=k)
    assert found.groupby("user_id")["score"].apply(lambda scores: scores.is_monotonic_decreasing).all()
    return {user: dict(zip(part.item_id, part.score, strict=True)) for user, part in found.groupby("user_id")}


def by_hand(model, histories, rows, removed, k=300):
    """The same from a table {item id: row of the item table}, scored one by one."""
    known = {item: place for place, item in enumerate(rows)}
    items = [*rows]
    matrix = torch.stack([rows[item] for item in items])
    zero = table(model)[0]
    answer = {}
    for place, user in enumerate(USERS):
        ids = model.vocabulary.item_ids[histories.items[histories.offsets[place] : histories.offsets[place + 1]] - 1]
        if len(ids) == 0:
            continue
        latest = ids[-model.recipe.encoder.max_length :]
        events = torch.stack([matrix[known[item]] if item in known else zero for item in latest])
        interest = events.mean(0)  # the encoder `mean` without decay
        scores = {item: float(interest @ rows[item]) for item in items if item not in removed and item not in set(ids)}
        best = sorted(scores, key=lambda item: -scores[item])[:k]
        answer[user] = {item: scores[item] for item in best}
    return answer


def assert_same(found, wanted):
    for user, scores in wanted.items():
        assert found[user].keys() == scores.keys()
        assert found[user] == pytest.approx(scores, abs=2e-4)


def test_every_delta_is_what_a_full_build_would_be(shop):
    store, model, histories = shop
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(5)
    rows = {int(item): table(model)[place + 1] for place, item in enumerate(model.vocabulary.item_ids)}
    removed: set[int] = set()
    index_file = store.current().manifest["files"].get("items.faiss")
    assert_same(answer(store), by_hand(model, histories, rows, removed))
    for turn in range(4):
        changed = [int(item) for item in random.choice(model.vocabulary.item_ids, 4, replace=False)]
        new = [7_000 - 10 * turn + place for place in range(3)]  # out of order, so that rows are not in that of ids
        going = [item for item in random.choice(list(rows), 8, replace=False).tolist() if item not in [*changed, *new]]
        given = torch.randn(7, 6, generator=generator)
        publish_delta(store, [*changed, *new], given, removed=[item for item in going if item not in removed])
        rows |= dict(zip([*changed, *new], given, strict=True))
        removed = (removed | set(going)) - set(changed)
        assert_same(answer(store), by_hand(model, histories, rows, removed))
        assert store.current().manifest["files"].get("items.faiss") == index_file  # kept, not built again
        few = answer(store, k=5)
        assert_same(few, by_hand(model, histories, rows, removed, k=5))
        assert not removed & {item for found in answer(store).values() for item in found}
    merge_delta(store)
    kept = {item: row for item, row in rows.items() if item not in removed}
    assert_same(answer(store), by_hand(model, histories, kept, set()))
    ids = Store(store.path).current()
    assert not ids.has("overlay.safetensors")
    assert Retriever.open(store).model.vocabulary.item_ids.tolist() == sorted(kept)


def test_cold_users_do_not_get_removed_items(shop):
    store, model, _ = shop
    best = Retriever.open(store).retrieve([103], k=3).item_id.tolist()
    publish_delta(store, removed=best)
    found = Retriever.open(store).retrieve([103], k=200)
    assert len(found) == 197
    assert not set(best) & set(found.item_id)


def test_a_removed_item_comes_back_when_it_is_given_again(shop):
    store, model, histories = shop
    item = int(model.vocabulary.item_ids[17])
    publish_delta(store, removed=[item])
    assert all(item not in found for found in answer(store).values())
    publish_delta(store, [item], table(model)[18:19])
    rows = {int(one): table(model)[place + 1] for place, one in enumerate(model.vocabulary.item_ids)}
    assert_same(answer(store), by_hand(model, histories, rows, set()))


def test_rollback_undoes_a_delta(shop):
    store, model, _ = shop
    before = answer(store)
    publish_delta(store, removed=model.vocabulary.item_ids[:9].tolist())
    assert answer(store) != before
    store.rollback()
    assert answer(store) == before


def test_what_can_not_be_laid_on_top_publishes_nothing(shop, monkeypatch):
    store, model, _ = shop
    versions, row, ids = store.versions(), torch.zeros(1, 6), model.vocabulary.item_ids.tolist()
    wrong = [
        ({}, "a delta of nothing"),
        ({"item_ids": [1, 1], "rows_ND": torch.zeros(2, 6)}, "item_ids has an id twice"),
        ({"removed": [ids[0], ids[0]]}, "removed has an id twice"),
        ({"item_ids": [ids[0]], "rows_ND": row, "removed": [ids[0]]}, "given and removed"),
        ({"item_ids": [1]}, "rows_ND has shape"),
        ({"item_ids": [1], "rows_ND": torch.zeros(1, 5)}, r"rows_ND has shape \(1, 5\); wanted \(1, 6\)"),
        ({"item_ids": [1], "rows_ND": row * torch.nan}, "rows_ND has NaN"),
        ({"removed": [999_999]}, r"1 items to remove are not in the store, for example \[999999\]"),
        ({"item_ids": ["text"], "rows_ND": row}, "item_ids holds text"),
        ({"item_ids": list(range(10_000, 10_080)), "rows_ND": torch.zeros(80, 6)}, "80 of 280 items would lie on top"),
    ]
    for settings, message in wrong:
        with pytest.raises(UsageError, match=message):
            publish_delta(store, **settings)
    assert store.versions() == versions
    publish_delta(store, removed=ids[:-1])
    assert all(len(found) <= 1 for found in answer(store).values())
    publish_delta(store, removed=ids[-1:])
    with pytest.raises(UsageError, match="every item of the version is removed"):
        merge_delta(store)
    assert delta_module.MAX_SHARE < 1


def test_a_merge_is_a_full_publication_of_the_same_items(tmp_path, make_model, make_histories, monkeypatch):
    """Byte for byte: nothing is left of the way there."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    model = make_model(n_items=200, dim=6)
    histories = make_histories(model, [5, 30])
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    publish_model(model, histories, one, index="faiss_cpu")
    new = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    publish_delta(one, [2001, model.vocabulary.item_ids[3]], new)
    merge_delta(one)
    whole = Retriever.open(one).model
    publish_model(whole, Retriever.open(one).histories, two, index="faiss_cpu")
    files = [{path.name: path.read_bytes() for path in store.current().folder.iterdir()} for store in (one, two)]
    assert [name for name in files[0] if name != "MANIFEST.json" and files[0][name] != files[1][name]] == []
    assert files[0].keys() == files[1].keys()


def test_an_overlay_that_does_not_fit_is_refused(tmp_path, make_model, make_histories):
    from bseq_plugin.store.overlay import Overlay

    model = make_model()
    store = Store(tmp_path / "store")
    publish_model(model, make_histories(model, [5]), store, index="faiss_cpu")
    publish_delta(store, removed=[int(model.vocabulary.item_ids[0])])
    version = store.current()
    nothing = np.empty(0, np.int64)
    for overlay in (
        Overlay(41, nothing, nothing),
        Overlay(40, np.array([40]), nothing),
        Overlay(40, nothing, np.array([-1])),
    ):
        overlay.save(version.folder)
        with pytest.raises(StoreError, match="rows beyond its 40 items"):
            Overlay.of(version, 40)


@pytest.mark.parametrize("base", [ExactIndex, FaissCpuIndex])
@pytest.mark.parametrize("n_new", [0, 5])
@pytest.mark.parametrize("stale", [[], [0], [2, 3, 29]])
def test_a_layered_index_is_an_exact_one_with_ties(base, n_new, stale):
    before, after = vectors(30, 3, whole=True), vectors(30 + n_new, 3, seed=4, whole=True)
    unchanged = [row for row in range(30) if row not in stale]
    after[unchanged] = before[unchanged]
    index = LayeredIndex(base.build(before), after, 30, torch.tensor(stale, dtype=torch.int64))
    queries_BD = vectors(20, 3, seed=2, whole=True)
    for k in (1, 3, 29, 30 + n_new):
        scores_Bk, rows_Bk = index.search(queries_BD, k)
        wanted_scores, wanted_rows = brute_force(queries_BD, after, k)
        np.testing.assert_array_equal(rows_Bk.numpy(), wanted_rows)
        np.testing.assert_array_equal(scores_Bk.numpy(), wanted_scores)
