"""Demand, anomalies and segments on the grocery log.

Shape letters: U households, C categories, W weeks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bseq_behaviour.demand.demand import RECENT_WEEKS, DemandRows, fit_demand, user_demand, wape
from bseq_behaviour.insight.anomalies import Detector
from bseq_behaviour.insight.segments import adjusted_rand_index, describe_segments, fit_segments
from bseq_behaviour.insight.signals import Window, window_signals
from bseq_behaviour.propensity.curves import auroc
from bseq_behaviour.propensity.labels import WEEK_US, weekly_demand
from bseq_behaviour.propensity.vectors import user_vectors

from benchmarks.tasks.protocol import TEST_AT, Case, at, encoder
from bseq_plugin.demo.data import DemoData
from bseq_plugin.events.events import DAY_US
from bseq_plugin.events.sequences import Sequences

WINDOW = Window(days=14.0, min_events=5, min_history=20)
JUDGED_AT = ("2017-11-24", "2017-12-01", "2017-12-08", "2017-12-15")
RATES = (0.02, 0.05, 0.1)
INJECTED_AT, N_SEGMENTS = "2017-12-01", 8


def demand(case: Case, column: str, seed: int) -> dict[str, float]:
    """WAPE of the four weeks from 1 December, each forecast from what came before it, one week ahead."""
    code_V, names = case.categories(column)
    n = len(names)
    weeks = [TEST_AT - place * WEEK_US for place in range(1, 13)]  # before the test; all after the encoder's end

    def rows(instant: int) -> DemandRows:
        recent = user_demand(case.log, code_V, n, instant - RECENT_WEEKS * WEEK_US, RECENT_WEEKS) / RECENT_WEEKS
        vectors = user_vectors(case.model, case.log, instant).numpy()
        return DemandRows(vectors, recent, user_demand(case.log, code_V, n, instant))

    train = [rows(instant) for instant in weeks[2:]]
    joined = [np.concatenate([getattr(part, name) for part in train]) for name in DemandRows.__dataclass_fields__]
    model = fit_demand(DemandRows(*joined), rows(weeks[1]), seed)
    truth = weekly_demand(case.log, code_V, n, TEST_AT, 4)
    past = weekly_demand(case.log, code_V, n, TEST_AT - 8 * WEEK_US, 11)  # the last three are weeks of the test
    found = [rows(TEST_AT + week * WEEK_US) for week in range(4)]
    ours = np.stack([model.rates(one.vectors_ND, one.recent_NC).sum(0) for one in found], axis=1)
    return {
        "ours, bottom up": wape(truth, ours),
        "seasonal naive (the week before)": wape(truth, past[:, 7:11]),
        "mean of the four weeks before": wape(truth, np.stack([past[:, w + 4 : w + 8].mean(1) for w in range(4)], 1)),
        "units": float(truth.sum()),
        "categories": float(n),
    }


def injected(log: Sequences, users: np.ndarray, instant: int, kind: str, seed: int) -> Sequences:
    """The households ``users`` with an odd last window: a stranger's, four copies in one hour, or twelve hours off."""
    start = instant - WINDOW.length_us
    past, now = log.between(None, start).take(users), log.between(start, instant).take(users)
    if kind == "swap":
        shift = np.random.default_rng(seed).integers(1, len(users))
        now = now.take(np.roll(np.arange(len(users)), shift))
    owner, items, times = now.user_index, now.items, np.asarray(now.timestamps)
    if kind == "shift":
        times = np.maximum(times - DAY_US // 2, start)
    if kind == "burst":
        newest = times[now.offsets[1:] - 1][owner]
        owner, items = np.tile(owner, 5), np.tile(items, 5)
        times = np.concatenate([times, np.tile(newest, 4)])
    owner = np.concatenate([past.user_index, owner])
    items, times = np.concatenate([past.items, items]), np.concatenate([np.asarray(past.timestamps), times])
    order = np.lexsort((times, owner))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(users)))]).astype(np.int64)
    return Sequences(log.user_ids[users], offsets, items[order], times[order])


def anomalies(case: Case, seed: int) -> dict[str, Any]:
    """AUROC of injected oddities against the same households as they were, and false alarms on clean windows."""
    log = replace(case.log, event_types=None, session_ids=None)
    alarms, found = {}, {}
    for day in JUDGED_AT:
        detector = Detector.fit(case.model, log, at(day), WINDOW)
        clean = window_signals(case.model, log, at(day), WINDOW)
        p = detector.p_values(clean)
        alarms[day] = {f"{rate:g}": float((p <= rate).mean() / rate) for rate in RATES} | {"households": len(p)}
        if day != INJECTED_AT:
            continue
        for kind in ("swap", "burst", "shift"):
            odd = window_signals(case.model, injected(log, clean.users, at(day), kind, seed), at(day), WINDOW)
            scores = np.concatenate([detector.score(odd), detector.score(clean)])
            truth = np.repeat([1, 0], [len(odd.users), len(clean.users)])
            found[kind] = {
                "auroc": auroc(truth, scores),
                "caught_at_0.05": float((detector.p_values(odd) <= 0.05).mean()),
            }
    mean = {f"{rate:g}": float(np.mean([alarms[day][f"{rate:g}"] for day in JUDGED_AT])) for rate in RATES}
    return {"injected": found, "false_alarms_over_asked": alarms | {"mean": mean}}


def segments(data: DemoData, seed: int, epochs: int, folder: Path) -> dict[str, Any]:
    """Agreement of the segments of 1 November and of 1 December, a month's purchases later."""
    vectors = {}
    for name, until, now in (
        ("before", "2017-11-01", "2017-11-01"),
        ("same encoder", "2017-11-01", "2017-12-01"),
        ("encoder trained anew", "2017-12-01", "2017-12-01"),
    ):
        model = encoder(data, until, seed, epochs, folder)
        log = Sequences.from_events(data.events.before(at(now)), model.vocabulary)
        log = log.take(np.flatnonzero(log.lengths >= 20))
        vectors[name] = (model, log, model.encode(log)[:, :, : model.recipe.vectors.dim].flatten(1).numpy())
    _, log, vectors_UD = vectors["before"]
    first = fit_segments(log.user_ids, vectors_UD, N_SEGMENTS, seed=seed)
    found: dict[str, Any] = {"households": log.n_users}
    for name in ("same encoder", "encoder trained anew"):
        _, later, vectors_later = vectors[name]
        for how, previous in (("begun anew", None), ("from the earlier segments", first.frame())):
            second = fit_segments(later.user_ids, vectors_later, N_SEGMENTS, previous, seed + 1)
            both = first.frame().merge(second.frame(), on="user_id")
            found[f"{name}, {how}"] = {
                "adjusted_rand_index": adjusted_rand_index(both["segment_x"].to_numpy(), both["segment_y"].to_numpy()),
                "same_number": float((both["segment_x"] == both["segment_y"]).mean()),
            }
    case = Case(data, vectors["before"][0])
    code_V, names = case.categories("product_category")
    described = describe_segments(log, first.segment_U, N_SEGMENTS, code_V, np.array(names, object), 4)
    sizes = np.bincount(first.segment_U, minlength=N_SEGMENTS)
    found["described"] = []
    for segment in range(N_SEGMENTS):
        own = described[described["segment"] == segment]
        typical = [f"{name} {lift:.1f}x" for name, lift in zip(own["name"], own["lift"], strict=True)]
        found["described"].append({"households": int(sizes[segment]), "typical": ", ".join(typical)})
    return found
