"""The next events of everybody: chances by hand, the quality by the same steps, the command."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from bseq_behaviour.next_k.decoder_file import load_decoder
from bseq_behaviour.next_k.fit_next_k import fit_next_k
from bseq_behaviour.next_k.forecast_next_k import forecast_next_k
from bseq_behaviour.next_k.futures import futures, memory_of
from bseq_behaviour.next_k.judge_next_k import judge_next_k
from bseq_behaviour.propensity.labels import known_users
from instants import DAY_US

import bseq_plugin as bseq


@pytest.fixture(scope="module")
def model(habit_run):
    return bseq.InterestModel.from_run(habit_run.path)


@pytest.fixture(scope="module")
def log(habit_run):
    return habit_run.sequences()


@pytest.fixture(scope="module")
def forecast(model, log):
    return forecast_next_k(model, log, 3, days=7.0, epochs=2, seed=3)


def test_the_quality_is_that_of_the_same_steps_by_hand(model, log, forecast):
    end_us = int(log.timestamps.max()) + 1
    week, held_us = 7 * DAY_US, end_us - 7 * DAY_US
    train_us = list(range(held_us - week, model.trained_until_us, -week))[::-1]
    assert (forecast.instants.train_us, forecast.instants.validation_us) == (tuple(train_us), held_us)
    *train, held = (futures(model, log, us, 3, until_us=us + week) for us in (*train_us, held_us))
    decoder = fit_next_k(model, train, 3, held, epochs=2, seed=3)
    judged = judge_next_k(decoder, held, 3, seed=3)
    found = forecast.quality.set_index("ranker")
    assert list(found.index) == ["one step", "first step", "beam", "samples", "expected"]
    for name in found.index:
        assert found.loc[name, "ndcg"] == judged[name]["ndcg"].mean()
        assert found.loc[name, "recall"] == judged[name]["recall"].mean()


def test_one_step_ahead_is_the_softmax_of_the_decoder(model, log):
    """For k = 1 the expected number is the item's chance, and the likeliest sequence its largest."""
    forecast = forecast_next_k(model, log, 1, days=7.0, epochs=1)
    now_us = int(log.timestamps.max()) + 1
    users = known_users(log, now_us)
    assert forecast.items["user_id"].tolist() == log.user_ids[users].tolist()
    memory = memory_of(model, log.take(users), 50)
    nothing = torch.zeros(len(users), 1, dtype=torch.int64)
    with torch.no_grad():
        logits, types = forecast.decoder(memory, nothing, nothing)
    best = logits[:, 0].softmax(1).max(1)
    np.testing.assert_allclose(forecast.items["expected"], best.values, rtol=1e-4)
    ids = model.vocabulary.item_ids[best.indices.numpy() - 1].tolist()
    assert forecast.items["item_id"].tolist() == forecast.sequences["item_id"].tolist() == ids
    np.testing.assert_allclose(forecast.sequences["log_chance"], best.values.log(), rtol=1e-3, atol=1e-4)
    assert "event_type" in forecast.sequences
    assert types.shape[2] == 3


def test_the_rows(model, log, forecast):
    n_users = forecast.items["user_id"].nunique()
    assert len(forecast.items) == len(forecast.sequences) == 3 * n_users
    for table, place in ((forecast.items, "rank"), (forecast.sequences, "step")):
        assert table[place].tolist() == [1, 2, 3] * n_users
        assert not table.duplicated(["user_id", "item_id"]).any()  # nothing comes again
        assert table["item_id"].isin(model.vocabulary.item_ids).all()
    expected = forecast.items.groupby("user_id")["expected"]
    assert (expected.diff().dropna() <= 0).all()
    assert (expected.sum() <= 3).all()  # of three events
    assert forecast.sequences.groupby("user_id")["log_chance"].nunique().eq(1).all()


def test_as_of_an_instant_nothing_later_is_read(model, log, forecast):
    at_us = int(log.timestamps.max()) - 3 * DAY_US
    whole = forecast_next_k(model, log, 2, at_us, days=7.0, epochs=1)
    cut = forecast_next_k(model, log.between(None, at_us), 2, at_us, days=7.0, epochs=1)
    pd.testing.assert_frame_equal(whole.items, cut.items)
    assert (whole.items["at"] == pd.Timestamp(at_us, unit="us", tz="UTC")).all()


def test_what_can_not_be_forecast(model, log):
    for k, days in ((0, 7.0), (41, 7.0), (3, 0.0)):
        with pytest.raises(bseq.UsageError, match=f"k = {k}, days = {days}"):
            forecast_next_k(model, log, k, days=days)
    with pytest.raises(bseq.SchemaError, match="two windows of 28 days are needed"):
        forecast_next_k(model, log, 3)
    with pytest.raises(bseq.UsageError, match="more than a day after the newest event"):
        forecast_next_k(model, log, 3, int(log.timestamps.max()) + 3 * DAY_US, days=7.0)
    assert len(forecast_next_k(model, log, 2, epochs=1, days=14.0, allow_future_model=True).instants.train_us) >= 3


def test_the_command(command, habit_run, model, tmp_path):
    out, sequences, told, saved = (tmp_path / name for name in ("next.parquet", "s.parquet", "told.json", "decoder"))
    asked = ["next-k", habit_run.path, "--k", 3, "--days", 7, "--epochs", 1]
    code, printed, err = command(
        *asked, "--out", out, "--sequences-out", sequences, "--head-option", "dim=32", "--json", told, "--save", saved
    )
    assert code == 0, err
    assert "expected" in printed
    assert "NDCG@3" in printed
    assert list(pd.read_parquet(out).columns) == ["user_id", "at", "rank", "item_id", "expected"]
    assert "event_type" in pd.read_parquet(sequences)
    assert len(json.loads(told.read_text())["quality"]) == 5
    assert load_decoder(saved, model).options.dim == 32
    code, _, err = command(*asked, "--head", "mlp", "--out", tmp_path / "no.parquet")
    assert (code, "'mlp' is a binary head" in " ".join(err.split())) == (2, True)
    assert not (tmp_path / "no.parquet").exists()
