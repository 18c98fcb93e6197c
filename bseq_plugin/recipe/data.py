"""The sections that say what is read of a log: events, items, and what is held out."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from bseq_plugin.recipe.section import PartSection, Section

EventFeature = Literal["event_type", "time_gap", "time_of_week", "session", "value"]
UTC = "UTC"
SESSION_GAP_MINUTES = 30.0
PRIOR_EVENTS = 2.0


class EventSettings(Section):
    """What an encoder reads of an event beside its item."""

    features: tuple[EventFeature, ...] = Field(
        ("event_type", "time_gap"), description="event features that are used when the log has them"
    )
    time_zone: str = Field(UTC, description="IANA name, of the clocks that feature 'time_of_week' reads")
    session_gap_minutes: float = Field(
        SESSION_GAP_MINUTES,
        gt=0,
        description="a longer gap begins a session, where the log has no session ids; for feature 'session' and "
        "encoders that read sessions",
    )

    @field_validator("features")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"features names one twice: {list(value)}")
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(
                f"time_zone = {value!r} is not known here; give an IANA name such as 'Europe/Berlin'"
            ) from None
        return value

    @model_validator(mode="after")
    def _is_read(self) -> EventSettings:
        if self.time_zone != UTC and "time_of_week" not in self.features:
            raise ValueError(
                f"time_zone = {self.time_zone!r} is read by feature 'time_of_week' alone; add it to features, or leave "
                "time_zone out"
            )
        return self


class ItemEncoderSettings(PartSection):
    """One item encoder; its own options stand beside its name."""


class ItemSettings(Section):
    """The catalogue, and what is known of an item beside its id."""

    min_count: int = Field(1, ge=1, description="items with fewer events are left out of the catalogue")
    attributes: tuple[str, ...] = Field(
        (), description="columns of the items table whose values are summed into the item rows"
    )
    encoders: tuple[ItemEncoderSettings, ...] = Field(
        (), description="item encoders (see `bseq plugins`), each a name with its options"
    )
    prior_events: float = Field(
        PRIOR_EVENTS, ge=0.0, description="events of an item that its neighbours count for; with encoders"
    )
    own_direction: float = Field(
        0.0,
        ge=0.0,
        description="with encoders, for logs in which people have the same item again: length of a new item's own "
        "direction, in mean lengths of a row; above 0 known items keep their row whole beside the neighbours'",
    )

    @field_validator("encoders", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """Read ``["columns"]`` as ``[{name = "columns"}]``."""
        if isinstance(value, list | tuple):
            return [{"name": entry} if isinstance(entry, str) else entry for entry in value]
        return value

    @model_validator(mode="after")
    def _is_read(self) -> ItemSettings:
        names = [encoder.name for encoder in self.encoders]
        if len(set(names)) < len(names):
            raise ValueError(f"encoders names one twice: {names}")
        for key, default in (("prior_events", PRIOR_EVENTS), ("own_direction", 0.0)):
            if not self.encoders and getattr(self, key) != default:
                raise ValueError(f"{key} = {getattr(self, key)} goes with encoders, and there are none")
        return self


class HeldOutSplit(Section):
    """What every split with a validation has: how the best epoch is found."""

    metric: str = Field(
        "ndcg@10", pattern=r"^(recall|ndcg|mrr)@[1-9]\d*$", description="what the best epoch is chosen by"
    )
    mask_seen: bool = Field(True, description="validation ranks, and counts, only items new to the user")
    every: int = Field(1, ge=1, description="epochs from one validation to the next; the last epoch has one anyway")
    patience: int = Field(5, ge=1, description="epochs without a better validation score before training stops")


class LeaveOneOutSplit(HeldOutSplit):
    """The last event of each user is the test, the one before it the validation."""

    kind: Literal["leave_one_out"] = "leave_one_out"


class TimeSplit(HeldOutSplit):
    """Validation and test are windows of time: everything after an instant, for ``horizon_days``."""

    kind: Literal["time"] = "time"
    horizon_days: float = Field(28.0, gt=0, description="length of the validation and of the test window")
    validation_at: str | None = Field(
        None, description="validation begins here (timezone-aware); default: two horizons before the end"
    )
    test_at: str | None = Field(None, description="test begins here; default: one horizon before the end")


class NoSplit(Section):
    """Nothing is held out: all of the log is trained on, and the last epoch is the model."""

    kind: Literal["none"] = "none"


SplitSettings = Annotated[LeaveOneOutSplit | TimeSplit | NoSplit, Field(discriminator="kind")]
