"""The forecast of returns: judged on what it has not seen, the same whatever comes later, and as a command."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from bseq_behaviour.propensity.curves import auroc
from bseq_behaviour.returns.returns import forecast_returns
from instants import DAY_US

import bseq_plugin as bseq


@pytest.fixture(scope="module")
def log(habit_run):
    return habit_run.sequences()


def test_returns_are_judged_on_what_came_and_asked_about_now(log):
    found = forecast_returns(log, [3.0, 7.0])
    end_us = int(log.timestamps.max()) + 1
    held_us = end_us - 7 * DAY_US
    assert found.model.until_us == held_us
    known = np.flatnonzero(log.between(None, held_us).lengths)
    for place, days in enumerate((3.0, 7.0)):
        came = (log.between(held_us, held_us + round(days * DAY_US)).lengths > 0)[known].astype(float)
        said = found.model.within(log, held_us, [days])[known, 0]
        row = found.quality.iloc[place]
        assert row["rate"] == pytest.approx(came.mean())
        assert row["expected"] == pytest.approx(said.mean())
        assert row["auroc"] == pytest.approx(auroc(came, said))
    assert (found.quality["auroc"] > 0.9).all()  # every other day, or not any more
    assert list(found.chances.columns) == ["user_id", "at", "within_3", "within_7"]
    assert (found.chances["within_3"] <= found.chances["within_7"]).all()
    np.testing.assert_allclose(found.chances["within_3"], found.model.within(log, end_us, [3.0])[:, 0])


def test_nothing_after_the_instant_is_known(log):
    at_us = int(log.timestamps.max()) - 10 * DAY_US
    whole, cut = (forecast_returns(one, [7.0], at_us) for one in (log, log.between(None, at_us)))
    pd.testing.assert_frame_equal(whole.chances, cut.chances)
    pd.testing.assert_frame_equal(whole.quality, cut.quality)


def test_what_no_forecast_can_be_made_of(log):
    for days in ([], [0.0], [7.0, 7.0], [7.0, 7.0000001], [float("nan")], [1e300]):
        with pytest.raises(bseq.UsageError, match="positive numbers up to 1e.06, each once"):
            forecast_returns(log, days)
    with pytest.raises(bseq.UsageError, match="more than a day after the newest event"):
        forecast_returns(log, [7.0], int(log.timestamps.max()) + 3 * DAY_US)
    with pytest.raises(bseq.SchemaError, match="log with times"):
        forecast_returns(replace(log, timestamps=None), [7.0])
    with pytest.raises(bseq.SchemaError, match="longer log"):
        forecast_returns(log, [1000.0])
    stopped = log.take(np.flatnonzero(np.arange(log.n_users) % 4 != 3))
    with pytest.raises(bseq.SchemaError, match="all 60 answers"):
        forecast_returns(stopped, [7.0])


def test_the_returns_command(command, habit_run, tmp_path):
    out, told = tmp_path / "returns.parquet", tmp_path / "quality.json"
    code, printed, err = command("returns", habit_run.path, "--days", 7, "--days", 2.5, "--out", out, "--json", told)
    assert code == 0, err
    assert "AUROC" in printed
    frame = pd.read_parquet(out)
    assert list(frame.columns) == ["user_id", "at", "within_7", "within_2.5"]
    assert len(frame) == 80
    assert [row["days"] for row in json.loads(told.read_text())["quality"]] == [7.0, 2.5]
    code, _, err = command("returns", habit_run.path, "--days", -1, "--out", tmp_path / "no.parquet")
    assert code == 2
    assert "positive" in err
    assert not (tmp_path / "no.parquet").exists()
