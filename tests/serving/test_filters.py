"""Filters against brute force, on every backend the machine can run and on the fake GPU (faults.md 44, 45)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bseq_plugin import Filters, Retriever, SchemaError, UsageError
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.serving.filters import Quota

IDS = [i * 10 + 5 for i in range(40)]
USERS = [100, 101, 102, 103]  # the last one is cold
ITEMS = st.lists(st.sampled_from([*IDS, 9999]), max_size=40)


@pytest.fixture(scope="module")
def shop(tmp_path_factory, make_model, make_histories):
    """(store, model, histories): 40 items of whole-number vectors, whose many equal scores show the order of ties."""
    path = tmp_path_factory.mktemp("shop") / "store"
    model = make_model(whole=True, max_length=1)
    histories = make_histories(model, [5, 12, 30, 0])
    publish_model(model, histories, path)
    return path, model, histories


@pytest.fixture(params=["exact", "faiss_cpu", "faiss_gpu"])
def retriever(request, shop, use_fake):
    if request.param == "faiss_gpu":
        use_fake()
    return Retriever.open(shop[0], index=request.param)


def brute_force(model, histories, k, exclude, filters):
    """{user: [item ids]}: every item scored, sorted, and walked down with each rule as a plain condition."""
    scores_BV = (model.encode(histories)[:, 0].double() @ model.item_vectors_VD[1:].double().T).numpy()
    counts, answer = model.vocabulary.item_counts, {}
    limit = filters.max_per_category
    for place, user in enumerate(USERS):
        history = histories.items[histories.offsets[place] : histories.offsets[place + 1]] - 1
        scores_V = scores_BV[place] if len(history) else counts
        chosen, used = [], {}
        for row in sorted(range(40), key=lambda row: (-scores_V[row], row)):
            item = IDS[row]
            category = (filters.categories or {}).get(item)
            room = limit if limit is None or isinstance(limit, int) else limit.get(category)
            if (
                (exclude == "seen" and row in history)
                or (filters.allow is not None and item not in filters.allow)
                or item in filters.deny
                or item in filters.exclude.get(user, ())
                or (category is not None and room is not None and used.get(category, 0) >= room)
                or len(chosen) == k
            ):
                continue
            used[category] = used.get(category, 0) + 1
            chosen.append(item)
        answer[user] = chosen
    return answer


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_filters_equal_brute_force(retriever, shop, data):
    _, model, histories = shop
    k, exclude = data.draw(st.sampled_from([1, 3, 10, 39, 100])), data.draw(st.sampled_from(["seen", "none"]))
    limits = st.integers(0, 4) | st.dictionaries(st.sampled_from("abc"), st.integers(0, 4))
    quota = {}
    if data.draw(st.booleans()):
        categories = data.draw(st.dictionaries(st.sampled_from([*IDS, 9999]), st.sampled_from("abc")))
        quota = {"categories": categories, "max_per_category": data.draw(limits)}
    filters = Filters(
        allow=data.draw(st.none() | ITEMS),
        deny=data.draw(ITEMS),
        exclude=data.draw(st.dictionaries(st.sampled_from([*USERS, 7]), ITEMS)),
        **quota,
    )
    hits = retriever.retrieve(USERS, k, exclude, blend=False, filters=filters)
    wanted = brute_force(model, histories, k, exclude, filters)
    found = {user: hits["item_id"][hits["user_id"] == user].tolist() for user in USERS}
    assert found == wanted
    for user, group in hits.groupby("user_id"):
        assert group["rank"].tolist() == list(range(1, len(group) + 1))
        assert group["exhausted"].tolist() == [len(wanted[user]) < k] * len(group)


def test_the_blend_keeps_to_the_filters(retriever, shop):
    _, model, histories = shop
    plain = retriever.retrieve(USERS, 100, "none")
    filters = Filters(allow=IDS[5:], deny=IDS[30:33], exclude={101: IDS[10:20]})
    left = retriever.retrieve(USERS, 100, "none", filters=filters)
    shown = plain["item_id"].isin(IDS[5:30] + IDS[33:]) & ~(
        (plain["user_id"] == 101) & plain["item_id"].isin(IDS[10:20])
    )
    assert left[["user_id", "item_id"]].values.tolist() == plain[shown][["user_id", "item_id"]].values.tolist()
    np.testing.assert_allclose(left["score"], plain[shown]["score"], rtol=1e-6)
    nothing_seen = Filters(deny=[IDS[row - 1] for row in np.unique(histories.items)])
    assert set(retriever.retrieve([100], 3, "none", filters=nothing_seen)["source"]) <= {"interest"}


@pytest.mark.parametrize("form", [list, np.array, pd.Series, tuple, iter])
def test_ids_come_in_any_form(shop, form):
    retriever = Retriever.open(shop[0])
    categories = dict.fromkeys(IDS[::2], "even")
    wanted = retriever.retrieve(USERS, 9, filters=Filters(IDS[:20], IDS[:3], {100: IDS[4:6]}, categories, 2))
    series = pd.Series(categories) if form is pd.Series else categories
    filters = Filters(form(IDS[:20]), form(IDS[:3]), {100: form(IDS[4:6])}, series, 2)
    pd.testing.assert_frame_equal(retriever.retrieve(USERS, 9, filters=filters), wanted)


def test_everything_filtered_gives_no_row_and_every_item_when_too_few(retriever):
    assert len(retriever.retrieve(USERS, 5, filters=Filters(allow=[]))) == 0
    hits = retriever.retrieve([100], 5, "none", filters=Filters(allow=IDS[:3]))
    assert sorted(hits["item_id"]) == IDS[:3]
    assert hits["exhausted"].all()
    assert not retriever.retrieve([100], 5, "none")["exhausted"].any()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (Filters(allow="abc"), "allow"),
        (Filters(deny=5), "deny"),
        (Filters(exclude=[5]), "exclude"),
        (Filters(exclude={100: "5"}), "exclude"),
        (Filters(categories={5: "a"}), "together"),
        (Filters(max_per_category=3), "together"),
        (Filters(categories={5: "a"}, max_per_category=-1), "max_per_category"),
        (Filters(categories={5: "a"}, max_per_category={"a": 1.5}), "max_per_category"),
        (Filters(categories={5: "a"}, max_per_category=True), "max_per_category"),
    ],
)
def test_filters_that_make_no_sense_are_refused(retriever, wrong, match):
    with pytest.raises(UsageError, match=match):
        retriever.retrieve(USERS, 3, filters=wrong)


def test_ids_of_another_type_are_refused(retriever):
    with pytest.raises(SchemaError, match="integers"):
        retriever.retrieve(USERS, 3, filters=Filters(allow=["a"]))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=40, unique=True),
    st.lists(st.integers(-1, 2), min_size=10, max_size=10),
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_a_quota_is_a_walk_down_each_list(pairs, codes, limits):
    pairs.sort(key=lambda pair: pair[0])
    users, rows = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    used, wanted = {}, []
    for user, row in pairs:
        code = codes[row]
        used[user, code] = used.get((user, code), 0) + 1
        wanted.append(code < 0 or used[user, code] <= limits[code])
    assert Quota(np.array(codes), np.array([*limits, 0])).keeps(users, rows).tolist() == wanted
