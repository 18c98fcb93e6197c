"""Sources in a store: blended with interest, filtered, named in the answer; a plugin's is checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from instants import DAY_US

from bseq_plugin import (
    Blend,
    CandidateSource,
    Filters,
    PluginError,
    Retriever,
    Sequences,
    SourceCandidates,
    StoreError,
    UsageError,
    plugin_manager,
    ranking_metrics,
)
from bseq_plugin.data.splits import HeldOut, time_window
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.serving.fit_blend import search_blend
from bseq_plugin.store.store import Store

START_US = 1_500_000_000_000_000
WEIGHTS = {"transitions": 5.0, "item_neighbours": 2.0, "popularity": 1.0}


class EvenItems(CandidateSource):
    """A plugin's: everybody gets the even rows, best first; a ``fault`` makes it give nonsense."""

    name = "even"
    description = "even rows"
    fault: str | None = None

    @classmethod
    def fit(cls, histories, n_items, options=None):
        if cls.fault == "fit":
            raise KeyError("no such thing")
        return {"rows": torch.arange(2, n_items + 1, 2)} if cls.fault != "state" else {"rows": [2, 4]}

    def find(self, inputs, k):
        rows = self.state["rows"][:k]
        n_users, n = inputs.histories.n_users, len(rows)
        users, scores = torch.arange(n_users).repeat_interleave(n), torch.linspace(1, 0.1, n)
        found = [users, rows.repeat(n_users), scores.repeat(n_users)]
        match self.fault:
            case "raise":
                raise KeyError("no such thing")
            case "row":
                found[1] = found[1] * 1000
            case "user":
                found[0] = found[0] + n_users
            case "twice":
                found[1] = found[1] * 0 + 2
            case "score":
                found[2] = found[2] * 2
            case "nan":
                found[2] = found[2] * torch.nan
            case "dtype":
                found[2] = found[2].double()
            case "length":
                found[1] = found[1][:-1]
            case "tuple":
                return tuple(found)
            case "many":
                rows = self.state["rows"]
                return SourceCandidates(torch.zeros(len(rows)).long(), rows, torch.ones(len(rows)))
        return SourceCandidates(*found)


@pytest.fixture
def even(monkeypatch):
    """The plugin, registered in a manager of its own for the time of the test."""
    manager = plugin_manager()
    real = manager.parts
    monkeypatch.setattr(EvenItems, "fault", None)
    monkeypatch.setattr(
        type(manager), "parts", lambda self, kind: real(kind) | ({"even": EvenItems} if "source" in kind else {})
    )
    return EvenItems


@pytest.fixture(scope="module")
def shop(tmp_path_factory, make_model, make_histories):
    """(path, model, histories, weights): published with all the built-in sources."""
    model = make_model(n_items=60)
    histories = make_histories(model, [5, 12, 30, 0, 1])
    path = tmp_path_factory.mktemp("sources") / "store"
    publish_model(model, histories, path, blend=Blend(1.0, 0.7, 20.0, 0.3, 4.0, WEIGHTS))
    return path, model, histories


def blended_by_hand(retriever, k, exclude):
    """{user: {item id: (score, sources)}}, the best k: every item scored by a loop over the parts."""
    from bseq_plugin import SourceInputs
    from bseq_plugin.serving.blend import history_scores
    from bseq_plugin.serving.sources import searcher

    served = retriever._served
    histories, blend = served.histories, served.blend
    interests = served.model.encode(histories)
    vectors = served.model.item_vectors_VD
    inputs = SourceInputs(histories.known(), interests, vectors, searcher(served.index, 60))
    by_source = {}
    for name, source in served.sources.items():
        found = source.find(inputs, 60)
        pairs = zip(found.users_N.tolist(), found.rows_N.tolist(), strict=True)
        by_source[name] = dict(zip(pairs, found.scores_N.tolist(), strict=True))
    newest = np.array([max(retriever._served.watermark_us, t) for t in [0] * histories.n_users])
    past, recent = (
        {(u, i): s for u, i, s in zip(p.users_P, p.items_P, p.scores_P, strict=True)}
        for p in (
            history_scores(histories, newest, days) for days in (blend.half_life_days, blend.recent_half_life_days)
        )
    )
    answer = {}
    for user in range(histories.n_users):
        seen = set(histories.items[histories.offsets[user] : histories.offsets[user + 1]].tolist())
        if not seen:
            continue
        rows = {}
        shown = [row for row in range(1, 61) if exclude == "none" or row not in seen]
        plain = {row: float(interests[user, 0] @ vectors[row]) for row in shown}
        for row in shown:
            score = plain[row] * blend.interest
            if exclude == "none":
                score += blend.history * past.get((user, row), 0) + blend.recent * recent.get((user, row), 0)
            score += sum(weight * by_source[name].get((user, row), 0) for name, weight in blend.sources.items())
            rows[int(served.model.vocabulary.item_ids[row - 1])] = score
        best = sorted(rows, key=lambda item: -rows[item])[:k]
        answer[int(histories.user_ids[user])] = {item: rows[item] for item in best}
    return answer


@pytest.mark.parametrize("exclude", ["seen", "none"])
def test_the_blend_with_sources_is_a_sum(shop, exclude):
    """k is the catalogue, so that every source gives all it has and the sum over all items is the answer."""
    retriever = Retriever.open(shop[0])
    wanted = blended_by_hand(retriever, 60, exclude)
    found = retriever.retrieve(list(wanted), k=60, exclude=exclude)
    assert set(found.user_id) == set(wanted)
    for user, part in found.groupby("user_id"):
        got = dict(zip(part.item_id, part.score, strict=True))
        assert got.keys() == wanted[user].keys()
        assert got == pytest.approx(wanted[user], abs=2e-4)
        assert part.score.is_monotonic_decreasing


def test_each_candidate_says_where_it_came_from(shop):
    retriever = Retriever.open(shop[0])
    found = retriever.retrieve([100, 101, 102, 103], k=10, exclude="none")
    names = {name for text in found.source for name in text.split("+")}
    assert names <= {"interest", "history", "popular", *WEIGHTS}
    assert {"interest", "transitions", "popularity"} <= names
    assert set(found.source[found.user_id == 103]) == {"popular"}
    plain = retriever.retrieve([100, 101, 102], k=10, exclude="none", blend=False)
    assert set(plain.source) == {"interest"}
    top = set(zip(plain.user_id, plain.item_id, strict=True))
    for row in found[found.user_id != 103].itertuples():
        assert ("interest" in row.source.split("+")) == ((row.user_id, row.item_id) in top)


def test_filters_hold_for_sources_too(shop):
    retriever = Retriever.open(shop[0])
    ids = retriever.model.vocabulary.item_ids
    rules = Filters(allow=ids[:25], deny=ids[3:6], exclude={101: ids[7:9]})
    found = retriever.retrieve([100, 101, 102], k=60, filters=rules)
    histories = retriever.histories
    for place, (user, part) in enumerate(found.groupby("user_id")):
        seen = set(ids[histories.items[histories.offsets[place] : histories.offsets[place + 1]] - 1])
        allowed = set(ids[:25]) - set(ids[3:6]) - seen - (set(ids[7:9]) if user == 101 else set())
        assert set(part.item_id) == allowed


def test_a_user_gets_the_same_answer_in_any_batch(shop):
    retriever = Retriever.open(shop[0])
    together = retriever.retrieve([100, 101, 102, 103, 104], k=7)
    for user, part in together.groupby("user_id"):
        alone = retriever.retrieve([user], k=7)
        assert alone.item_id.tolist() == part.item_id.tolist()
        assert alone.source.tolist() == part.source.tolist()


def test_a_plugins_source_is_fitted_published_and_asked(even, tmp_path, make_model, make_histories):
    model = make_model()
    publish_model(model, make_histories(model, [5, 9]), tmp_path / "store", blend=Blend(sources={"even": 1e6}))
    found = Retriever.open(tmp_path / "store").retrieve([100, 101], k=4)
    rows = model.vocabulary.item_rows(found.item_id)
    assert (rows % 2 == 0).all()
    assert all("even" in text.split("+") for text in found.source)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("raise", "failed: KeyError"), ("row", "items in rows"), ("user", "users"), ("twice", "an item twice"),
     ("score", "outside 0..1"), ("nan", "outside 0..1"), ("dtype", "float64"), ("length", "of one length"),
     ("tuple", "not SourceCandidates"), ("many", "candidates for one user")],
)  # fmt: skip
def test_what_a_plugins_source_gives_is_checked(even, tmp_path, make_model, make_histories, monkeypatch, fault, words):
    model = make_model(n_items=400)  # more than a source is asked for
    publish_model(model, make_histories(model, [5, 9]), tmp_path / "store", blend=Blend(sources={"even": 1.0}))
    retriever = Retriever.open(tmp_path / "store")
    monkeypatch.setattr(even, "fault", fault)
    with pytest.raises(PluginError, match=f"candidate source 'even' .*{words}"):
        retriever.retrieve([100, 101], k=4)


@pytest.mark.parametrize("fault", ["fit", "state"])
def test_a_source_that_can_not_be_fitted_publishes_nothing(
    even, tmp_path, make_model, make_histories, monkeypatch, fault
):
    monkeypatch.setattr(even, "fault", fault)
    model = make_model()
    with pytest.raises(PluginError, match="candidate source 'even' failed to fit"):
        publish_model(model, make_histories(model, [5]), tmp_path / "store", blend=Blend(sources={"even": 1.0}))
    assert not (tmp_path / "store").exists()


def test_a_source_that_is_not_installed(even, tmp_path, make_model, make_histories, monkeypatch):
    model = make_model()
    weights = Blend(sources={"nobody": 1.0})
    with pytest.raises(UsageError, match=r"unknown candidate source 'nobody'; there are: even, item_neighbours"):
        publish_model(model, make_histories(model, [5]), tmp_path / "store", blend=weights)
    publish_model(model, make_histories(model, [5]), tmp_path / "store", blend=Blend(sources={"even": 1.0}))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="unknown candidate source 'even'"):
        Retriever.open(tmp_path / "store")


def test_a_source_without_weight_is_not_fitted(even, tmp_path, make_model, make_histories, monkeypatch):
    monkeypatch.setattr(even, "fault", "fit")
    model = make_model()
    publish_model(model, make_histories(model, [5]), tmp_path / "store", blend=Blend(sources={"even": 0.0}))
    assert not Store(tmp_path / "store").current().has("sources.safetensors")
    assert len(Retriever.open(tmp_path / "store").retrieve([100], k=3)) == 3


@pytest.mark.parametrize("sources", [{"a": -1.0}, {"a": float("nan")}, {"a": True}, {"a": "1"}, ["a"]])
def test_weights_that_make_no_sense_are_refused(sources):
    with pytest.raises(UsageError, match="blend weight"):
        Blend(sources=sources)


def chained(n_users=40, n_items=40, seed=0):
    """Who had item i has item i + 1 next, whatever the vectors say: only the transitions can know."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n_items, n_users)
    items = np.concatenate([(start + np.arange(12)) % n_items + 1 for start in starts])
    days = np.tile(np.concatenate([np.linspace(0, 59, 8), np.linspace(61, 80, 4)]), n_users)
    offsets = np.arange(n_users + 1) * 12
    return Sequences(np.arange(n_users), offsets, items, (START_US + days * DAY_US).astype(np.int64))


def test_weights_are_learned_and_the_metric_is_what_is_served(make_model, tmp_path):
    model, cut_us, k = make_model(), START_US + 60 * DAY_US, 4
    log = chained()
    held_out = HeldOut(time_window(log, cut_us, 30.0), log.between(None, cut_us), cut_us, "keep")
    plain = search_blend(model, held_out, k)
    fit = search_blend(model, held_out, k, sources=["popularity", "transitions"])
    held_out = held_out.evaluation
    assert fit.blend.sources.get("transitions", 0) > 0
    assert fit.metric > 1.5 * plain.metric
    assert len(fit.tried) == len(plain.tried) + 2 * 6
    publish_model(model, held_out.histories, tmp_path / "store", blend=fit.blend)
    hits = Retriever.open(tmp_path / "store").retrieve(
        held_out.histories, k, exclude="none", at="2017-09-12T02:40:00+00:00"
    )
    top_UK = np.full((held_out.n_users, k), -1)
    places = {user: place for place, user in enumerate(held_out.histories.user_ids.tolist())}
    for hit in hits.itertuples():
        top_UK[places[hit.user_id], hit.rank - 1] = model.vocabulary.item_rows([hit.item_id])[0]
    served = ranking_metrics(top_UK, held_out.target_offsets, held_out.target_items, [k])[f"ndcg@{k}"].mean()
    assert served == pytest.approx(fit.metric, abs=1e-6)


def test_a_state_of_another_version_of_a_source_is_a_store_error(
    even, tmp_path, make_model, make_histories, monkeypatch
):
    model = make_model()
    publish_model(model, make_histories(model, [5]), tmp_path / "store", blend=Blend(sources={"even": 1.0}))

    def picky(self, state, options=None):
        self.state = {"other": state["other"]}

    monkeypatch.setattr(even, "__init__", picky)
    with pytest.raises(StoreError, match="candidate source 'even' can't read what it was published with"):
        Retriever.open(tmp_path / "store")
