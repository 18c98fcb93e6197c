"""One multi-task model against a copy of it for each objective.

All begin with the frozen encoder's weights, see the same instants, and keep the epoch that is best on November.
"""

from __future__ import annotations

import time
from typing import Any

from bseq_plugin.behaviour.moments import DEMAND, Objectives, moment
from bseq_plugin.behaviour.multitask import fit_multitask
from bseq_plugin.behaviour.tasks import Task
from bseq_plugin.data.events import DAY_US
from task_parts.protocol import LOG_END, TEST_AT, VALIDATION_AT, Case

TASKS = ("churn:28", "purchase:7")
# a fortnight apart; every window ends before November
TRAIN_AT = [VALIDATION_AT - 29 * DAY_US - place * 14 * DAY_US for place in range(6)]


def multitask(case: Case, seed: int, epochs: int = 4) -> dict[str, Any]:
    """Quality on December and seconds of training, of all objectives together and of each alone."""
    tasks = tuple((task, task.counts(case.model.vocabulary, case.data.items)) for task in map(Task.parse, TASKS))
    together = Objectives(tasks, True, 28.0, case.categories("department")[0])
    runs = {"together": (together, "mlp", "equal"), "together, mmoe": (together, "mmoe", "equal")}
    runs["together, uncertainty weights"] = (together, "mlp", "uncertainty")
    runs |= {f"{name} alone": (together.alone(name), "mlp", "equal") for name in together.names}
    found: dict[str, Any] = {}
    for name, (objectives, head, weighting) in runs.items():
        train = [moment(case.model, case.log, instant, objectives, LOG_END) for instant in TRAIN_AT]
        held, test = (
            moment(case.model, case.log, instant, objectives, LOG_END) for instant in (VALIDATION_AT, TEST_AT)
        )
        started = time.process_time()
        fit = fit_multitask(
            case.model, train, held, objectives, head=head, weighting=weighting, epochs=epochs, seed=seed
        )
        seconds = time.process_time() - started
        found[name] = {"epoch": fit.epoch, "cpu_seconds": seconds, **fit.model.judge(test)}
    alone = sum(found[f"{name} alone"]["cpu_seconds"] for name in together.names)
    found["cost"] = {"together_over_all_alone": found["together"]["cpu_seconds"] / alone}
    found["difference"] = {
        # of WAPE, where less is better, the sign is turned: positive is better for all
        name: (found["together"][name] - found[f"{name} alone"][name]) * (-1 if name == DEMAND else 1)
        for name in together.names
    }
    return found
