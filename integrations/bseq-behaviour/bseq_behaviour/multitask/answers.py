"""What a multi-task model says of users at an instant, beside what came.

Shape letters: B users, K tasks, C categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import bseq_plugin as bseq
from bseq_behaviour.multitask.moments import DEMAND
from bseq_behaviour.propensity.curves import auroc


@dataclass(frozen=True)
class Predictions:
    """What a ``MultiTask`` says of B users at an instant.

    Attributes:
        chances_BK: float32, of a yes.
        rates_BC: float32, units that are expected in the week.
        top: of ``next_item`` and ``all_action``, int64 [B, k] vocabulary rows, the likeliest first; -1: no more items.
    """

    chances_BK: np.ndarray
    rates_BC: np.ndarray
    top: dict[str, np.ndarray]


@dataclass(frozen=True)
class Answers:
    """What a ``MultiTask`` says of B users at an instant, and what came.

    Attributes:
        tasks: K names of the yes-or-no questions.
        ndcg: of ``next_item`` and ``all_action``, float [B], NaN for a user without a target.
        logits_BK, labels_BK: float.
        rates_BC, units_BC: float, of the week, expected and had.
    """

    tasks: tuple[str, ...]
    ndcg: dict[str, np.ndarray]
    logits_BK: np.ndarray
    rates_BC: np.ndarray
    labels_BK: np.ndarray
    units_BC: np.ndarray

    def metrics(self, users: np.ndarray | None = None) -> dict[str, float]:
        """NDCG@20 of next item and window, AUROC of the tasks, WAPE of the week's demand over users and categories; of
        the users at some places, repeats allowed, or of all.

        Raises SchemaError if nobody has a target, or all answers of a task are the same.
        """
        rows = slice(None) if users is None else users
        figures = {}
        for name, values_B in self.ndcg.items():
            own = values_B[rows][~np.isnan(values_B[rows])]
            if not len(own):
                raise bseq.SchemaError(f"{name}: nobody has a target at that instant; choose another")
            figures[name] = float(own.mean())
        for place, task in enumerate(self.tasks):
            figures[task] = auroc(self.labels_BK[rows, place], self.logits_BK[rows, place])
        if self.units_BC.shape[1]:
            expected_C, had_C = self.rates_BC[rows].sum(0), self.units_BC[rows].sum(0)
            figures[DEMAND] = float(np.abs(expected_C - had_C).sum() / max(had_C.sum(), 1.0))
        return figures
