"""The sections that say what is predicted, and what a target is told apart from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bseq_plugin.recipe.section import Section


class _Objective(Section):
    """What every objective has: which event types are targets, and how much each counts."""

    event_types: tuple[str, ...] = Field((), description="only events of these types are targets; none named = all")
    event_type_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="weight in the loss of a target of this event type; 1 if not named"
    )

    @model_validator(mode="after")
    def _weighs_targets(self) -> _Objective:
        stray = sorted(set(self.event_type_weights) - set(self.event_types)) if self.event_types else []
        if stray:
            raise ValueError(f"event_type_weights names {stray}, which are not among event_types")
        return self


class NextObjective(_Objective):
    """At every position of a history, the event that follows."""

    kind: Literal["next"] = "next"


class PrefixObjective(_Objective):
    """The event that follows, each prefix of a history an example of its own."""

    kind: Literal["prefix"] = "prefix"


class WindowObjective(_Objective):
    """All events within the days that follow an instant (all-action)."""

    kind: Literal["window"] = "window"
    days: float = Field(28.0, gt=0, description="length of the window")
    step_days: float = Field(7.0, gt=0, description="distance between the instants a window may begin at")
    n: int = Field(24, ge=1, description="number of such instants, counted back from the newest")
    passes_per_epoch: int = Field(4, ge=1, description="times an epoch goes through the users")
    popularity_days: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="spans of days whose popularity, at the start of the window, becomes a column of item vectors"
    )


class MaskedObjective(_Objective):
    """Hidden events, from those around them (encoder 'masked')."""

    kind: Literal["masked"] = "masked"
    share: float = Field(0.2, gt=0, lt=1, description="share of events that are hidden")


ObjectiveSettings = Annotated[
    NextObjective | PrefixObjective | WindowObjective | MaskedObjective, Field(discriminator="kind")
]


class WholeCatalogue(Section):
    """A target is told apart from every other item."""

    kind: Literal["all"] = "all"


class SampledNegatives(Section):
    """A target is told apart from ``n`` items, drawn once a batch, the same ones on every process; 'uniform' and
    'popularity' draw with replacement, 'mixed' takes the batch's own targets, each once, and draws other items evenly.
    """

    kind: Literal["uniform", "popularity", "mixed"]
    n: int = Field(1024, ge=1, description="sampled negatives a batch")


NegativeSettings = Annotated[WholeCatalogue | SampledNegatives, Field(discriminator="kind")]
