"""Questions about what a user does in the days that follow an instant, written as text: ``churn:28``.

purchase:7                       any event within 7 days
purchase:28:department=DELI      an event of an item whose department is DELI
purchase:28:event_type=buy       an event of that type
churn:28                         no event within 28 days
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US, EVENT_TYPE, ITEM

KINDS = ("purchase", "churn")


@dataclass(frozen=True)
class Task:
    """One yes-or-no question.

    Attributes:
        kind: "purchase": is there an event that counts; "churn": is there none.
        days: length of the window, which begins at the instant itself.
        column: which events count: a column of the items table, or "event_type"; None: all do.
        value: what that column has to hold.
    """

    kind: Literal["purchase", "churn"]
    days: float
    column: str | None = None
    value: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise bseq.UsageError(f"task kind {self.kind!r}; use {' or '.join(KINDS)}")
        if not (math.isfinite(self.days) and self.days > 0):
            raise bseq.UsageError(f"task {self.kind}: {self.days} days; give a positive number")

    @classmethod
    def parse(cls, text: str) -> Task:
        """From text such as ``purchase:28:department=DELI``. Raises UsageError."""
        kind, _, rest = text.partition(":")
        days, _, condition = rest.partition(":")
        column, separator, value = condition.partition("=")
        try:
            n_days = float(days)
        except ValueError:
            raise bseq.UsageError(f"task {text!r}: write kind:days, for example churn:28 or purchase:7") from None
        if condition and not (separator and column and value):
            raise bseq.UsageError(f"task {text!r}: write what counts as column=value, for example department=DELI")
        return cls(cast(Literal["purchase", "churn"], kind), n_days, column or None, value or None)

    @property
    def name(self) -> str:
        """The text it is parsed from."""
        condition = "" if self.column is None else f":{self.column}={self.value}"
        return f"{self.kind}:{self.days:g}{condition}"

    @property
    def window_us(self) -> int:
        """Length of the window, microseconds."""
        return round(self.days * DAY_US)

    def counts(self, vocabulary: bseq.Vocabulary, items: pd.DataFrame | None) -> Counts:
        """Which events count, in rows of the vocabulary.

        Raises UsageError if the column or the value is unknown: a task that nothing can fulfil is a typing error.
        """
        if self.column is None:
            return Counts(None, None)
        if self.column == EVENT_TYPE:
            if self.value not in vocabulary.event_types:
                raise bseq.UsageError(f"task {self.name!r}: the event types are {list(vocabulary.event_types)}")
            return Counts(None, 1 + vocabulary.event_types.index(self.value))
        if items is None or self.column not in items or ITEM not in items:
            have = "there is no items table" if items is None else f"the items table has {list(items.columns)}"
            raise bseq.UsageError(f"task {self.name!r}: needs item_id and {self.column!r}, and {have} (--items)")
        chosen = items.loc[items[self.column].map(lambda value: _is(value, str(self.value))), ITEM]
        rows = vocabulary.item_rows(chosen) if len(chosen) else np.empty(0, np.int64)
        if not (rows > 0).any():
            raise bseq.UsageError(f"task {self.name!r}: no item of the catalogue has {self.column} = {self.value!r}")
        mask = np.zeros(vocabulary.n_items + 1, bool)
        mask[rows[rows > 0]] = True
        return Counts(mask, None)


def _is(value: object, text: str) -> bool:
    """Whether a value of a column, or one in its list, is what a text says; 1.0 is 1, which a gap makes of it."""
    if isinstance(value, list | tuple | np.ndarray):
        return any(_is(one, text) for one in value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value) == text


@dataclass(frozen=True)
class Counts:
    """Which events a task asks for.

    Attributes:
        items_V: bool [V + 1], by vocabulary row; None: all, unknown items too.
        event_type: row of the event type, None: all.
    """

    items_V: np.ndarray | None
    event_type: int | None

    def of(self, items_T: np.ndarray, event_types_T: np.ndarray | None) -> np.ndarray:
        """bool [T]."""
        counts_T = np.ones(len(items_T), bool) if self.items_V is None else self.items_V[items_T]
        if self.event_type is not None:
            if event_types_T is None:
                raise bseq.UsageError("the task asks for an event type, but the histories have none")
            counts_T = counts_T & (event_types_T == self.event_type)
        return counts_T
