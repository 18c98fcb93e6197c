"""Anomalies: each signal against a loop, p-values by their law, and planted oddities that are found."""

import numpy as np
import pandas as pd
import pytest
from bseq_behaviour.insight.anomalies import Detector, anomalies, anomalous_events, p_values
from bseq_behaviour.insight.signals import PERSONAL_SHARE, SIGNALS, Window, event_surprise, window_signals
from bseq_behaviour.propensity.curves import auroc
from hypothesis import given, settings
from hypothesis import strategies as st

import bseq_plugin as bseq

DAY = pd.Timedelta(days=1)
WINDOW = Window(7, 2, 5)


@pytest.fixture(scope="module")
def model(habit_run):
    return bseq.InterestModel.from_run(habit_run.path)


def log_of(frame, model):
    return bseq.Sequences.from_events(bseq.Events.from_frame(frame), model.vocabulary)


@pytest.fixture(scope="module")
def at(habit_frame):
    return habit_frame["timestamp"].max() + pd.Timedelta(1, "us")


def us(stamp):
    return int(stamp.value // 1000)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_p_values_count(values, clean):
    found = p_values(np.array(values, float), np.array(clean, float))
    wanted = [(1 + sum(one >= value for one in clean)) / (len(clean) + 1) for value in values]
    np.testing.assert_allclose(found, wanted)


def test_p_values_keep_the_rate():
    """The law of conformal prediction: exchangeable windows are flagged at the rate that is asked for."""
    random = np.random.default_rng(0)
    for rate in (0.01, 0.05, 0.2):
        draws = [p_values(random.normal(size=200), random.normal(size=999)) for _ in range(50)]
        flagged = np.mean(np.concatenate(draws) <= rate)
        assert flagged == pytest.approx(rate, rel=0.2)


def test_surprise_is_the_mixture_it_says(model, habit_frame, at):
    log = log_of(habit_frame, model)
    past, now = log.between(None, us(at - 7 * DAY)), log.between(us(at - 7 * DAY), us(at))
    interests = model.encode(past)
    found = event_surprise(model, interests, past, now)
    for event in range(0, now.n_events, 37):
        user, item = now.user_index[event], now.items[event]
        scores = (interests[user] @ model.item_vectors_VD[1:].T).amax(0).double().numpy()
        softmax = np.exp(scores[item - 1]) / np.exp(scores).sum()
        own = past.items[past.offsets[user] : past.offsets[user + 1]]
        share = np.mean(own == item)
        assert found[event] == pytest.approx(-np.log((1 - PERSONAL_SHARE) * softmax + PERSONAL_SHARE * share), rel=1e-4)


def test_unknown_items_say_nothing(model, habit_frame, at):
    later = habit_frame["timestamp"] >= at - 7 * DAY
    strange = habit_frame.assign(item_id=habit_frame["item_id"].where(~later | (habit_frame["user_id"] != 4), 999))
    log = log_of(strange, model)
    found = window_signals(model, log, us(at), WINDOW)
    place = list(log.user_ids[found.users]).index(4)
    assert found.values_NS[place, SIGNALS.index("surprise")] == 0
    events = anomalous_events(log, model, found)
    own = events[events["user_id"] == 4]
    assert own["surprise"].isna().all()
    assert own["item_id"].isna().all()
    assert np.isfinite(found.values_NS).all()


def injected(frame, at, kind, users):
    """The log with the window of ``users`` made odd."""
    odd = frame["user_id"].isin(users) & (frame["timestamp"] >= at - 7 * DAY)
    if kind == "swap":  # somebody who keeps to another group of items
        return frame.assign(item_id=frame["item_id"].where(~odd, (frame["item_id"] + 20) % 40))
    if kind == "hours":
        later = (frame["timestamp"] - pd.Timedelta(hours=12)).clip(lower=at - 7 * DAY)
        return frame.assign(timestamp=frame["timestamp"].where(~odd, later))
    newest = frame[odd].groupby("user_id")["timestamp"].transform("max")
    return pd.concat([frame, *[frame[odd].assign(timestamp=newest)] * 8], ignore_index=True)


@pytest.mark.parametrize(
    ("kind", "leading"), [("swap", {"surprise", "distance"}), ("hours", {"hours"}), ("burst", {"burst"})]
)
def test_planted_oddities_are_found_and_named(model, habit_frame, at, kind, leading):
    users = [user for user in range(0, 80, 5) if user % 4 != 3]  # who has not stopped
    clean, odd = (log_of(frame, model) for frame in (habit_frame, injected(habit_frame, at, kind, users)))
    detector = Detector.fit(model, clean, us(at), WINDOW, n_windows=3)
    signals = window_signals(model, odd, us(at), WINDOW)
    truth = np.isin(odd.user_ids[signals.users], users)
    assert auroc(truth, detector.score(signals)) > 0.9
    table = anomalies(odd, signals, detector, rate=0.05)
    assert (np.diff(table["p_value"]) >= 0).all()
    assert table["flagged"].tolist() == (table["p_value"] <= 0.05).tolist()
    assert table[table["user_id"].isin(users)]["leading"].isin(leading).mean() > 0.8


def test_later_events_and_other_users_change_nothing(model, habit_frame, at):
    middle = at - 10 * DAY
    cut = habit_frame[habit_frame["timestamp"] < middle]
    whole, part = log_of(habit_frame, model), log_of(cut, model)
    one, two = window_signals(model, whole, us(middle), WINDOW), window_signals(model, part, us(middle), WINDOW)
    np.testing.assert_array_equal(whole.user_ids[one.users], part.user_ids[two.users])
    np.testing.assert_allclose(one.values_NS, two.values_NS, atol=1e-6)


def test_what_can_not_be_judged(model, habit_frame, habit_run, at):
    log = log_of(habit_frame, model)
    with pytest.raises(bseq.UsageError, match="before the end of training"):
        window_signals(model, log, model.trained_until_us + 1, WINDOW)
    with pytest.raises(bseq.UsageError, match="before the end of training"):
        Detector.fit(model, log, us(at), WINDOW, n_windows=30)
    with pytest.raises(bseq.SchemaError, match="take longer windows"):
        Detector.fit(model, log, us(at), Window(7, 500, 5), n_windows=2)
    with pytest.raises(bseq.UsageError, match="n_windows = 1"):
        Detector.fit(model, log, us(at), WINDOW, n_windows=1)
    with pytest.raises(bseq.UsageError, match="positive"):
        Window(days=0)
    with pytest.raises(bseq.UsageError, match="positive"):
        Window(min_events=0)
    detector = Detector.fit(model, log, us(at), WINDOW, n_windows=2)
    signals = window_signals(model, log, us(at), WINDOW)
    with pytest.raises(bseq.UsageError, match="false-alarm rate 1"):
        anomalies(log, signals, detector, 1)
    nobody = window_signals(model, log, us(at), Window(7, 500, 5))
    assert len(anomalies(log, nobody, detector, 0.1)) == 0
    with pytest.raises(bseq.SchemaError, match="times"):
        window_signals(model, bseq.Sequences(log.user_ids, log.offsets, log.items), us(at), WINDOW)


def test_all_events_at_one_instant_are_a_history_without_a_window(model, habit_frame, at):
    still = log_of(habit_frame.assign(timestamp=at - 20 * DAY), model)
    assert len(window_signals(model, still, us(at), WINDOW).users) == 0


def test_the_command(command, habit_run, habit_frame, at, tmp_path):
    injected(habit_frame, at, "swap", [5]).to_parquet(tmp_path / "log.parquet")
    out, events = tmp_path / "anomalies.parquet", tmp_path / "events.parquet"
    code, printed, err = command(
        "anomalies", habit_run.path, "--events", tmp_path / "log.parquet", "--days", 7, "--windows", 3, "--rate", 0.02,
        "--min-events", 2, "--min-history", 5, "--out", out, "--events-out", events,
    )  # fmt: skip
    assert code == 0, err
    table = pd.read_parquet(out)
    assert table["user_id"][0] == 5
    assert "5" in printed
    assert "flagged at a rate of 0.02" in err
    assert pd.read_parquet(events)["surprise"].notna().any()
    code, _, err = command("anomalies", habit_run.path, "--out", tmp_path / "no.parquet", "--rate", 2)
    assert code == 2
    assert "share between 0 and 1" in err
