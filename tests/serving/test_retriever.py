"""The retriever's answers: what may be asked, filters, blend, fallback, and the exact order against brute force."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from instants import DAY_US

from bseq_plugin import Blend, Events, InterestModel, Retriever, SchemaError, Sequences, UsageError
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.serving.blend import history_scores

COLUMNS = ["user_id", "item_id", "rank", "score", "interest", "source", "exhausted"]
WEIGHTS = Blend(1.0, 2.5, 20.0, 1.5, 4.0)


@pytest.fixture
def shop(tmp_path, make_model, make_histories):
    """(retriever, model, histories) over 40 items and 6 users, the fourth with one event."""
    model = make_model()
    histories = make_histories(model, [5, 12, 30, 1, 8, 25])
    publish_model(model, histories, tmp_path / "store", blend=WEIGHTS)
    return Retriever.open(tmp_path / "store"), model, histories


def events_of(model, histories):
    """The histories as a table, as a caller would hold them."""
    return pd.DataFrame(
        {
            "user_id": histories.user_ids[histories.user_index],
            "item_id": model.vocabulary.item_ids[histories.items - 1],
            "timestamp": pd.to_datetime(histories.timestamps, unit="us", utc=True),
        }
    )


def brute_force(model, histories, k, *, exclude_seen=True, weights=None, at_us=None):
    """{user: [item ids]} from all scores of all items, in float64."""
    interests_BKD = model.encode(histories).double()
    scores_BV = torch.einsum("bkd,vd->bkv", interests_BKD, model.item_vectors_VD[1:].double()).amax(1).numpy()
    if weights:
        scores_BV = scores_BV * weights.interest
        newest = histories.timestamps.max() if at_us is None else at_us
        for weight, half_life in (
            (weights.history, weights.half_life_days),
            (weights.recent, weights.recent_half_life_days),
        ):
            past = history_scores(histories, newest, half_life)
            scores_BV[past.users_P, past.items_P - 1] += weight * past.scores_P
    if exclude_seen:
        known = histories.known()
        scores_BV[known.user_index, known.items - 1] = -np.inf
    best = {}
    for user, scores_V in zip(histories.user_ids, scores_BV, strict=True):
        rows = [row for row in np.argsort(-scores_V, kind="stable")[:k] if np.isfinite(scores_V[row])]
        best[user] = model.vocabulary.item_ids[rows].tolist()
    return best


def by_user(hits):
    return {user: group["item_id"].tolist() for user, group in hits.groupby("user_id", sort=False)}


@pytest.mark.parametrize("k", [1, 7, 20, 40, 1000])
def test_unseen_items_equal_brute_force(shop, k):
    retriever, model, histories = shop
    hits = retriever.retrieve(histories, k=k)
    assert hits.columns.tolist() == COLUMNS
    assert by_user(hits) == brute_force(model, histories, k)
    assert not hits.duplicated(["user_id", "item_id"]).any()
    assert set(hits["source"]) == {"interest"}
    for _, group in hits.groupby("user_id"):
        assert group["rank"].tolist() == list(range(1, len(group) + 1))
        assert group["score"].is_monotonic_decreasing


@pytest.mark.parametrize("k", [1, 7, 40, 1000])
def test_all_items_equal_brute_force(shop, k):
    retriever, model, histories = shop
    hits = retriever.retrieve(histories, k=k, exclude="none", blend=False)
    assert by_user(hits) == brute_force(model, histories, k, exclude_seen=False)
    assert len(hits) == histories.n_users * min(k, 40)


@pytest.mark.parametrize("k", [1, 5, 20, 40, 1000])
def test_the_blend_equals_brute_force_over_all_items(shop, k):
    retriever, model, histories = shop
    hits = retriever.retrieve(histories, k=k, exclude="none")
    assert by_user(hits) == brute_force(model, histories, k, exclude_seen=False, weights=WEIGHTS)
    seen = {(u, i) for u, i in events_of(model, histories)[["user_id", "item_id"]].itertuples(index=False)}
    for hit in hits.itertuples():
        assert (hit.source == "interest") == ((hit.user_id, hit.item_id) not in seen)
    assert set(hits["source"]) <= {"interest", "history", "interest+history"}


def test_at_cuts_the_history_and_counts_ages_from_there(shop):
    retriever, model, histories = shop
    at_us = int(np.median(histories.timestamps))
    past = histories.between(None, at_us)
    some = past.take(np.flatnonzero(past.lengths))
    at = pd.Timestamp(at_us, unit="us", tz="UTC")
    for settings in ({}, {"exclude": "none"}):
        weights = WEIGHTS if settings else None
        hits = retriever.retrieve(histories, k=6, at=at, **settings)
        wanted = brute_force(model, some, 6, exclude_seen=not settings, weights=weights, at_us=at_us)
        assert by_user(hits[hits["source"] != "popular"]) == wanted, settings
    with pytest.raises(SchemaError, match="no time zone"):
        retriever.retrieve(histories, at="2017-12-01")


def test_every_form_of_a_history_gives_the_same(shop):
    retriever, model, histories = shop
    wanted = retriever.retrieve(histories, k=5)
    table = events_of(model, histories)
    users = histories.user_ids
    for form in (users, users.tolist(), pd.Series(users), tuple(users), table, Events.from_frame(table)):
        pd.testing.assert_frame_equal(retriever.retrieve(form, k=5), wanted)
    # rows in any order, extra columns
    shuffled = table.sample(frac=1, random_state=0).assign(price=1.0)
    pd.testing.assert_frame_equal(retriever.retrieve(shuffled, k=5), wanted)


def test_a_user_gets_the_same_answer_in_any_batch(shop):
    retriever, _, histories = shop
    for exclude in ("seen", "none"):
        together = by_user(retriever.retrieve(histories, k=6, exclude=exclude))
        for user in histories.user_ids:
            assert by_user(retriever.retrieve([user], k=6, exclude=exclude)) == {user: together[user]}
    hits = retriever.retrieve([103, 100, 103], k=2)
    assert hits["user_id"].tolist() == [103, 103, 100, 100]


def test_unknown_users_are_listed(shop):
    retriever, _, _ = shop
    with pytest.raises(UsageError, match=r"2 of 3 users are not in this store version, for example \[7, 8\]"):
        retriever.retrieve([100, 7, 8])
    with pytest.raises(SchemaError, match="history holds text, such as '100'; the ids here are integers"):
        retriever.retrieve(["100"])


@pytest.mark.parametrize("history", [None, 100, "100", 3.5, {"user_id": [1]}, np.int64(100)])
def test_something_that_is_no_history_is_refused(shop, history):
    with pytest.raises(UsageError, match="history"):
        shop[0].retrieve(history)


@pytest.mark.parametrize("k", [0, -1, 1.0, True, None, "5"])
def test_k_must_be_one_or_more(shop, k):
    with pytest.raises(UsageError, match="k = "):
        shop[0].retrieve([100], k=k)
    with pytest.raises(UsageError, match="k = "):
        shop[0].retrieve_items([5], k=k)


def test_exclude_must_be_known(shop):
    with pytest.raises(UsageError, match="exclude = 'bought'"):
        shop[0].retrieve([100], exclude="bought")


def test_bad_events_are_refused_with_the_column(shop):
    retriever, model, histories = shop
    table = events_of(model, histories)
    with pytest.raises(SchemaError, match="timestamp"):
        retriever.retrieve(table.drop(columns="timestamp"))
    with pytest.raises(SchemaError, match="time zone"):
        retriever.retrieve(table.assign(timestamp=table["timestamp"].dt.tz_localize(None)))
    with pytest.raises(SchemaError, match="integers"):
        retriever.retrieve(table.assign(item_id="a"))


def test_sequences_of_another_vocabulary_are_refused(shop):
    retriever, _, _ = shop
    with pytest.raises(UsageError, match="vocabulary"):
        retriever.retrieve(Sequences(np.array([1]), np.array([0, 1]), np.array([41]), np.array([1])))


def test_unknown_items_are_counted_and_read_as_unknown(shop, make_histories):
    retriever, model, _ = shop
    histories = make_histories(model, [6, 9], seed=3, unknown=0.4)
    n_unknown = int((histories.items == 0).sum())
    assert n_unknown > 0
    assert by_user(retriever.retrieve(histories, k=9)) == brute_force(model, histories, 9)
    assert retriever.n_unknown_items == n_unknown
    retriever.retrieve_items([5, 999], k=1)
    assert retriever.n_unknown_items == n_unknown + 1


def test_no_known_item_gives_popular_items(shop):
    retriever, model, _ = shop
    counts = model.vocabulary.item_counts
    wanted = model.vocabulary.item_ids[np.argsort(-counts, kind="stable")][:4].tolist()
    for items in ([], [999], [998, 999]):
        hits = retriever.retrieve_items(items, k=4)
        assert hits["item_id"].tolist() == wanted
        assert hits["score"].tolist() == sorted(counts.tolist(), reverse=True)[:4]
        assert hits["source"].tolist() == ["popular"] * 4
        assert hits["interest"].isna().all()
        assert hits["rank"].tolist() == [1, 2, 3, 4]
    assert len(retriever.retrieve_items([], k=1000)) == 40


def test_cold_users_stand_among_the_others_in_order(shop, make_histories):
    retriever, model, _ = shop
    hits = retriever.retrieve(make_histories(model, [0, 3, 0, 4]), k=2)
    assert hits["user_id"].tolist() == [100, 100, 101, 101, 102, 102, 103, 103]
    assert hits["source"].tolist() == ["popular", "popular", "interest", "interest"] * 2
    assert retriever.retrieve([], k=2).columns.tolist() == COLUMNS
    assert len(retriever.retrieve([], k=2)) == 0


def test_one_anonymous_history(shop):
    retriever, model, _ = shop
    ids = model.vocabulary.item_ids
    hits = retriever.retrieve_items([ids[3], ids[8], ids[3]], k=50)
    wanted = Sequences(np.zeros(1, np.int64), np.array([0, 3]), np.array([4, 9, 4]))
    assert hits["item_id"].tolist() == brute_force(model, wanted, 50)[0]
    assert len(hits) == 38
    assert hits["user_id"].unique().tolist() == [0]


@pytest.mark.parametrize("items", ["abc", None, 5, [[1]], [None], [float("nan")], ["5"], [1, "a"], [1.5]])
def test_items_that_are_no_list_of_ids_are_refused(shop, items):
    with pytest.raises(UsageError):
        shop[0].retrieve_items(items)


def test_nothing_left_gives_fewer_rows(shop):
    retriever, model, _ = shop
    ids = model.vocabulary.item_ids
    assert retriever.retrieve_items(ids[:-2], k=5)["item_id"].tolist().sort() == ids[-2:].tolist().sort()
    assert len(retriever.retrieve_items(ids[:-2], k=5)) == 2
    assert len(retriever.retrieve_items(ids, k=5)) == 0


def test_string_ids(tmp_path, make_model, make_histories):
    model = make_model(strings=True)
    histories = make_histories(model, [4, 4])
    named = Sequences(np.array(["ä", "b"], object), histories.offsets, histories.items, histories.timestamps)
    publish_model(model, named, tmp_path / "store")
    retriever = Retriever.open(tmp_path / "store")
    assert by_user(retriever.retrieve(["b", "ä"], k=9)) == brute_force(model, named, 9)
    with pytest.raises(SchemaError, match="items holds integers"):
        retriever.retrieve_items([5])
    with pytest.raises(SchemaError, match="history holds integers, such as 1; the ids here are text"):
        retriever.retrieve([1])


def test_event_types_and_times_are_read_where_the_encoder_wants_them(tmp_path, make_model, make_histories):
    model = make_model(event_features=("event_type", "time_gap"))
    histories = make_histories(model, [4, 9])
    publish_model(model, histories, tmp_path / "store")
    retriever = Retriever.open(tmp_path / "store")
    assert by_user(retriever.retrieve([100, 101], k=9)) == brute_force(model, histories, 9)
    table = events_of(model, histories)
    typed = table.assign(event_type=np.array(["", "buy", "view"])[histories.event_types])
    assert by_user(retriever.retrieve(typed, k=9)) == brute_force(model, histories, 9)
    assert len(retriever.retrieve(table, k=9)) == 18  # no event types: read as unknown ones
    assert len(retriever.retrieve_items([5, 15], k=9)) == 9
    untimed = Sequences(histories.user_ids, histories.offsets, histories.items, None, histories.event_types)
    with pytest.raises(SchemaError, match="give timestamps"):
        retriever.retrieve(untimed)


@pytest.mark.parametrize("exclude", ["seen", "none"])
def test_several_interests_are_merged_with_the_best_score(tmp_path, make_model, make_histories, monkeypatch, exclude):
    one = InterestModel.encode
    monkeypatch.setattr(
        InterestModel, "encode", lambda self, h: torch.cat([one(self, h), one(self, h).flip(2), -one(self, h)], dim=1)
    )
    model = make_model()
    histories = make_histories(model, [5, 12, 3])
    publish_model(model, histories, tmp_path / "store")
    retriever = Retriever.open(tmp_path / "store")
    assert retriever.manifest["interests_per_user"] == 3
    hits = retriever.retrieve(histories, k=15, exclude=exclude, blend=False)
    assert by_user(hits) == brute_force(model, histories, 15, exclude_seen=exclude == "seen")
    interests_BKD = model.encode(histories)
    rows = model.vocabulary.item_rows(hits["item_id"])
    for user, row, score, interest in zip(hits["user_id"], rows, hits["score"], hits["interest"], strict=True):
        scores_K = interests_BKD[user - 100] @ model.item_vectors_VD[row]
        assert interest == int(scores_K.argmax())
        assert score == pytest.approx(float(scores_K.max()), abs=1e-5)
    assert len(set(hits["interest"])) > 1
    blended = retriever.retrieve(histories, k=15, exclude="none")
    assert by_user(blended) == brute_force(model, histories, 15, exclude_seen=False, weights=Blend())


@pytest.mark.parametrize("options", [{}, {"factory": "HNSW8"}, {"factory": "IVF4,Flat", "nprobe": 4}])
def test_the_faiss_retriever_gives_what_the_exact_one_gives(tmp_path, make_model, make_histories, options):
    model = make_model(n_items=300)
    histories = make_histories(model, [5, 12, 100])
    publish_model(model, histories, tmp_path / "store", index="faiss_cpu", index_options=options)
    faiss, exact = Retriever.open(tmp_path / "store"), Retriever.open(tmp_path / "store", index="exact")
    for settings in ({}, {"exclude": "none"}, {"exclude": "none", "blend": False}):
        got, wanted = faiss.retrieve(histories, k=50, **settings), exact.retrieve(histories, k=50, **settings)
        if options.get("factory") == "HNSW8":
            assert len(got) == len(wanted)
            continue
        assert by_user(got) == by_user(wanted)
        np.testing.assert_allclose(got["score"], wanted["score"], rtol=1e-5, atol=1e-5)


def test_published_exact_opened_with_faiss(shop):
    retriever, _, histories = shop
    faiss = Retriever.open(retriever._store, index="faiss_cpu")
    assert by_user(faiss.retrieve(histories, k=9)) == by_user(retriever.retrieve(histories, k=9))


def test_a_history_longer_than_the_encoder_reads(shop):
    retriever, model, _ = shop
    n = 100_000
    random = np.random.default_rng(0)
    histories = Sequences(
        np.array([1]), np.array([0, n]), random.integers(1, 39, n), np.sort(random.integers(1, DAY_US, n))
    )
    hits = retriever.retrieve(histories, k=9)
    assert by_user(hits) == brute_force(model, histories, 9)
    assert len(hits) == 2  # 38 of 40 items are in the history
