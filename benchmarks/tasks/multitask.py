"""One multi-task model against a copy of it for each objective.

All begin with the frozen encoder's weights, see the same instants, and keep the epoch that is best on November.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from bseq_behaviour.multitask.answers import Answers
from bseq_behaviour.multitask.fit_multitask import fit_multitask
from bseq_behaviour.multitask.moments import DEMAND, Objectives, moment
from bseq_behaviour.propensity.tasks import Task

from benchmarks import harness
from benchmarks.tasks.protocol import LOG_END, TEST_AT, TRAIN_AT, VALIDATION_AT, Case

TASKS = ("churn:28", "purchase:7")
IMPORTANCE = {"all_action": 3.0}  # chosen on November: beside four others everything of 28 days learned too little
TOGETHER = {"together": {"weighting": "equal", "importance": IMPORTANCE}}
N_RESAMPLES = 300
Fitted = dict[str, tuple[Answers, float]]


def multitask(case: Case, seed: int, epochs: int = 3) -> Fitted:
    """What each model says on 1 December and its CPU seconds of training, of all objectives together and each alone."""
    tasks = tuple((task, task.counts(case.model.vocabulary, case.data.items)) for task in map(Task.parse, TASKS))
    every = Objectives(tasks, True, 28.0, case.categories("department")[0])
    runs: dict[str, tuple[Objectives, dict[str, Any]]] = {name: (every, how) for name, how in TOGETHER.items()}
    runs |= {name: (every.alone(name), {"weighting": "equal"}) for name in every.names}
    found: Fitted = {}
    for name, (objectives, how) in runs.items():
        *train, held, test = (
            moment(case.model, case.log, instant, objectives, LOG_END)
            for instant in (*TRAIN_AT[::2], VALIDATION_AT, TEST_AT)
        )
        started = time.process_time()
        fit = fit_multitask(case.model, train, held, objectives, epochs=epochs, seed=seed, **how)
        found[name] = fit.model.answers(test), time.process_time() - started
    return found


def multitask_summary(of_seeds: list[Fitted]) -> dict[str, Any]:
    """Metric of each model, mean over seeds; of those that learn together with the difference to the copy that learns
    it alone, positive is better, and its 95 % interval over households; and the cost.
    """
    alone = [name for name in of_seeds[0] if name not in TOGETHER]
    n_users = len(of_seeds[0][alone[0]][0].labels_BK)
    random = np.random.default_rng(0)
    draws = [None, *(random.integers(0, n_users, n_users) for _ in range(N_RESAMPLES))]
    metrics = {
        name: {key: np.array([values[key] for values in resampled]) for key in resampled[0]}
        for name in of_seeds[0]
        for resampled in [[_mean([fitted[name][0].metrics(users) for fitted in of_seeds]) for users in draws]]
    }
    found: dict[str, Any] = {"alone": {key: float(metrics[key][key][0]) for key in alone}}
    for name in TOGETHER:
        found[name] = {}
        for key in alone:
            # of WAPE, where less is better, the sign is turned
            gains = (metrics[name][key] - metrics[key][key]) * (-1 if key == DEMAND else 1)
            low, high = np.quantile(gains[1:], [0.025, 0.975])
            found[name][key] = {"value": float(metrics[name][key][0]), "gain": float(gains[0]),
                                "gain_interval": [float(low), float(high)]}  # fmt: skip
    seconds = {name: float(np.mean([fitted[name][1] for fitted in of_seeds])) for name in of_seeds[0]}
    found["cpu_seconds"] = seconds | {"all alone": sum(seconds[key] for key in alone)}
    return found


def _mean(of_seeds: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in of_seeds])) for key in of_seeds[0]}


def multitask_claims(figures: dict[str, Any]) -> list[harness.Claim]:
    """Whether learning together is below learning alone outside noise, for each objective; and what it costs."""
    made = []
    for key, one in figures["together"].items():
        high = one["gain_interval"][1]
        name = f"multi-task: {key} together over alone, upper end"
        made.append(harness.claim(name, high, 0.0, high >= 0))
    cost = figures["cpu_seconds"]["together"] / figures["cpu_seconds"]["all alone"]
    made.append(harness.claim("multi-task: cost over all alone", cost, 1.0, cost < 1))
    return made
