"""What was read of a log, and what was left out: printed by the commands, and kept in ``run.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class LogSummary:
    """A log in figures.

    Attributes:
        rows_read: of the source; of one row a user with lists, the events in them.
        left_out: rows, by the option that left them out.
        events, users, items: that were kept.
        events_per_user: median and 95th percentile.
        first_us, last_us: oldest and newest event, microseconds UTC; None without times.
        event_types: events of each type.
    """

    rows_read: int
    left_out: dict[str, int]
    events: int
    users: int
    items: int
    events_per_user: tuple[float, float]
    first_us: int | None = None
    last_us: int | None = None
    event_types: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, figures: dict[str, Any]) -> LogSummary:
        """Return what ``to_dict`` gave."""
        return cls(**{**figures, "events_per_user": tuple(figures["events_per_user"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON holds them."""
        return {**asdict(self), "events_per_user": list(self.events_per_user)}

    def __str__(self) -> str:
        """A line to print."""
        left = ", ".join(f"{count:,} by {name}" for name, count in self.left_out.items() if count)
        median, high = self.events_per_user
        text = f"read {self.rows_read:,} rows" + (f", left out {left}" if left else "")
        text += f": {self.events:,} events of {self.users:,} users with {self.items:,} items"
        text += f", {median:g} a user (95th percentile {high:g})"
        if self.first_us is not None and self.last_us is not None:
            days = [str(pd.Timestamp(us, unit="us").date()) for us in (self.first_us, self.last_us)]
            text += f", {days[0]} to {days[1]}"
        if self.event_types:
            most = sorted(self.event_types.items(), key=lambda pair: -pair[1])
            shown = ", ".join(f"{name} {count:,}" for name, count in most[:8])
            text += f", {shown}" + (f" and {len(most) - 8} more" if len(most) > 8 else "")
        return text


def events_per_user(lengths: np.ndarray) -> tuple[float, float]:
    """Return median and 95th percentile of the numbers of events."""
    median, high = np.percentile(lengths, [50, 95]) if len(lengths) else (0.0, 0.0)
    return float(median), float(high)
