"""Explanations: occlusion against encoding each history by hand, and a history whose answer is known."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from bseq_behaviour.insight.explain import best_new_item, explain
from instants import DAY_US

import bseq_plugin as bseq


@pytest.fixture(scope="module")
def trained(habit_run):
    return bseq.InterestModel.from_run(habit_run.path)


def history_of(model, rows, days=None):
    times = 1_700_000_000_000_000 + DAY_US * np.asarray(days if days is not None else range(len(rows)), np.int64)
    return bseq.Sequences(np.array([5]), np.array([0, len(rows)]), np.asarray(rows, np.int64), times)


def test_a_model_that_reads_values_is_explained_too():
    recipe = bseq.Recipe(encoder={"name": "mean", "dropout": 0.0}, vectors={"dim": 4}, events={"features": ("value",)})
    model = bseq.InterestModel(
        recipe,
        bseq.Vocabulary(np.arange(5), np.ones(5, np.int64)),
        bseq.SequenceInterestEncoder(recipe, 5).eval(),
        None,
        None,
    )
    log = bseq.Sequences(
        np.array([5]), np.array([0, 3]), np.array([1, 2, 3]), np.arange(3), values=np.array([1.0, 9.0, 3.0])
    )
    assert len(explain(model, log, 4).events) == 3


@pytest.fixture
def averaging(trained):
    """An encoder whose interest is the plain mean of the item vectors (halved each day), so that effects are known."""
    recipe = bseq.Recipe(
        encoder={"name": "mean", "half_life_days": 1.0, "dropout": 0.0}, vectors={"dim": 4}, events={"features": ()}
    )
    encoder = bseq.SequenceInterestEncoder(recipe, trained.vocabulary.n_items)
    with torch.no_grad():
        encoder.embedding_collection.embeddings["item"].weight.zero_()
        for row in (1, 2, 3):
            encoder.embedding_collection.embeddings["item"].weight[row, row - 1] = 1.0
    return bseq.InterestModel(recipe, trained.vocabulary, encoder.eval())


def test_occlusion_is_encoding_the_history_without_each_event(trained):
    history = history_of(trained, [3, 1, 4, 1, 5, 9, 2])
    candidate = trained.vocabulary.item_ids[6]
    found = explain(trained, history, candidate)

    def score(rows, days):
        return (trained.encode(history_of(trained, rows, days), wide=True)[0].double() @ vector.double()).max().item()

    vector = trained.item_vectors_VD[7]
    rows, days = [3, 1, 4, 1, 5, 9, 2], list(range(7))
    assert found.score == pytest.approx(score(rows, days))
    assert found.baseline == pytest.approx(score([], []), abs=1e-6)
    for place in range(7):
        without = score(rows[:place] + rows[place + 1 :], days[:place] + days[place + 1 :])
        assert found.events["effect"][place] == pytest.approx(found.score - without, abs=1e-6)
    assert found.events["item_id"].tolist() == trained.vocabulary.item_ids[np.array(rows) - 1].tolist()
    assert found.events["attention"].sum() == pytest.approx(1)  # of the last block; test_causal_switches has the rest


def test_the_event_of_the_item_itself_pulls_and_the_others_push(averaging):
    """Interest = (e1 + e2/2 + e3/4) / (7/4), newest first; the candidate is e1."""
    found = explain(averaging, history_of(averaging, [3, 2, 1]), averaging.vocabulary.item_ids[0])
    assert found.score == pytest.approx(4 / 7)
    assert found.baseline == 0
    # ages count from the newest event that is left
    np.testing.assert_allclose(found.events["effect"], [4 / 7 - 2 / 3, 4 / 7 - 4 / 5, 4 / 7], atol=1e-6)
    np.testing.assert_allclose(found.events["attention"], [1 / 7, 2 / 7, 4 / 7], atol=1e-6)


def test_an_item_outside_the_catalogue_in_the_history(averaging):
    found = explain(averaging, history_of(averaging, [0, 1]), averaging.vocabulary.item_ids[0])
    assert found.events["item_id"].tolist() == [None, averaging.vocabulary.item_ids[0]]
    assert found.events["effect"][0] < 0 < found.events["effect"][1]


def test_a_history_of_one_event_and_more_than_the_encoder_reads(averaging, trained):
    one = explain(averaging, history_of(averaging, [2]), averaging.vocabulary.item_ids[1])
    assert one.events["effect"].tolist() == pytest.approx([1.0])
    long = history_of(trained, [1, 2] * 40)
    assert len(explain(trained, long, trained.vocabulary.item_ids[0]).events) == trained.recipe.encoder.max_length


def test_the_best_new_item_is_new(trained):
    history = history_of(trained, list(range(1, trained.vocabulary.n_items)))
    assert best_new_item(trained, history) == trained.vocabulary.item_ids[-1]
    with pytest.raises(bseq.UsageError, match="every item"):
        best_new_item(trained, history_of(trained, list(range(1, trained.vocabulary.n_items + 1))))


def test_what_can_not_be_explained(trained):
    with pytest.raises(bseq.UsageError, match="not in the catalogue"):
        explain(trained, history_of(trained, [1]), 999_999)
    with pytest.raises(bseq.UsageError, match="no event"):
        explain(trained, history_of(trained, []), trained.vocabulary.item_ids[0])
    two = bseq.Sequences(np.arange(2), np.array([0, 1, 2]), np.array([1, 2]), np.array([1, 2]))
    with pytest.raises(bseq.UsageError, match="one user"):
        explain(trained, two, trained.vocabulary.item_ids[0])


def test_the_command_draws_and_tells(command, habit_run, habit_items, tmp_path):
    pytest.importorskip("matplotlib")
    habit_items.assign(name=[f"item no. {item}" for item in habit_items.item_id]).to_parquet(tmp_path / "items.parquet")
    how = ["--items", tmp_path / "items.parquet", "--name", "name", "--picture", tmp_path / "why.png"]
    code, printed, err = command("explain", habit_run.path, "--user", 4, *how)
    assert code == 0, err
    assert "item no." in printed
    assert (tmp_path / "why.png").read_bytes()[:4] == b"\x89PNG"
    code, printed, _ = command(
        "explain", habit_run.path, "--user", 4, "--item", 7, "--json", "--out", tmp_path / "e.parquet"
    )
    told = json.loads(printed)
    assert pd.read_parquet(tmp_path / "e.parquet")["effect"].tolist() == pytest.approx(
        [e["effect"] for e in told["events"]]
    )
    assert told["item_id"] == 7
    assert len(told["events"]) == 10
    assert command("explain", habit_run.path, "--user", 4_000)[0] == 2
    assert command("explain", habit_run.path, "--user", "anna")[0] == 2
    assert pd.Timestamp(told["events"][0]["timestamp"]).tzinfo is not None
