"""The typed configuration of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from bseq_plugin import __version__
from bseq_plugin.errors import RecipeError, RunError
from bseq_plugin.recipe.data import EventSettings, ItemSettings, LeaveOneOutSplit, SplitSettings
from bseq_plugin.recipe.files import read_recipe
from bseq_plugin.recipe.merge import apply_settings, replaced
from bseq_plugin.recipe.model import EncoderSettings, InterestSettings, LossSettings, OneInterest, VectorSettings
from bseq_plugin.recipe.objective import (
    MaskedObjective,
    NegativeSettings,
    NextObjective,
    ObjectiveSettings,
    WholeCatalogue,
    WindowObjective,
)
from bseq_plugin.recipe.section import Section
from bseq_plugin.recipe.training import TrainingSettings
from bseq_plugin.schema.options import describe_errors


class Recipe(Section):
    """Everything that decides what a run learns, in ten sections. Its attributes can't be set.

    A section is given as an object, as a mapping of its keys, or, where it is a choice, as the name of the choice:
    ``Recipe(encoder="hstu", vectors={"dim": 32}, objective={"kind": "window", "days": 7})``. What is left out is at its
    default. Unknown keys, keys of another alternative and values out of range raise RecipeError.
    """

    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    vectors: VectorSettings = Field(default_factory=VectorSettings)
    events: EventSettings = Field(default_factory=EventSettings)
    items: ItemSettings = Field(default_factory=ItemSettings)
    interests: InterestSettings = Field(default_factory=OneInterest)
    objective: ObjectiveSettings = Field(default_factory=NextObjective)
    loss: LossSettings = Field(default_factory=LossSettings)
    negatives: NegativeSettings = Field(default_factory=WholeCatalogue)
    split: SplitSettings = Field(default_factory=LeaveOneOutSplit)
    training: TrainingSettings = Field(default_factory=TrainingSettings)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(f"recipe: {describe_errors(type(self), error)}") from None

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        several = self.interests.kind == "several"
        if several and isinstance(self.objective, NextObjective | MaskedObjective):
            raise ValueError(
                "interests.kind = 'several' reads a history as a whole, not at every position; use objective.kind = "
                "'prefix' or 'window'"
            )
        if self.vectors.ensemble > 1 and (several or self.popularity_days):
            raise ValueError(
                f"vectors.ensemble = {self.vectors.ensemble} averages inner products of one interest each: use "
                "interests.kind = 'one' and no objective.popularity_days, or ensemble = 1"
            )
        events = self.training.batch.events
        if events is not None and events < self.encoder.max_length:
            raise ValueError(
                f"training.batch.events = {events} is less than one history of encoder.max_length = "
                f"{self.encoder.max_length}"
            )
        return self

    @property
    def popularity_days(self) -> tuple[float, ...]:
        """The spans of days whose popularity is a column of the item vectors; none but with windows."""
        return self.objective.popularity_days if isinstance(self.objective, WindowObjective) else ()

    @property
    def interest_dim(self) -> int:
        """The width of interests and of vectors in the index: the tables' and a column for each popularity span."""
        return self.vectors.table_dim + len(self.popularity_days)

    @property
    def interests_per_user(self) -> int:
        """K, the number of interests a user has."""
        return self.interests.n if self.interests.kind == "several" else 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as a TOML or JSON file has them; ``parse`` reads them back."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Return a recipe from plain values. Raises RecipeError."""
        try:
            return cls(**values)
        except RecipeError as error:
            raise RecipeError(f"{where}: {str(error).removeprefix('recipe: ')}") from None

    @classmethod
    def stored(cls, values: Mapping[str, Any], where: Path) -> Recipe:
        """Return the recipe of a run or of a model. Raises RunError for one of bseq 0.1, which had no sections."""
        if not isinstance(values.get("encoder"), Mapping):
            raise RunError(
                f"{where} was written by bseq 0.1, which bseq {__version__} does not read; train and publish again"
            )
        return cls.parse(values, str(where))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """Return a shipped recipe by name, or one from a TOML file."""
        return cls.parse(read_recipe(name_or_path), f"recipe {str(name_or_path)!r}")

    def replace(self, **sections: Any) -> Recipe:
        """Return a copy with other values, checked like new ones.

        A mapping replaces the keys it has: ``recipe.replace(training={"epochs": 3})``. Another kind or name takes over
        what both alternatives have and drops the rest.
        """
        return self.parse(replaced(type(self), self.as_dict(), sections))

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """Return a copy with ``key=value`` settings; a dot reaches into a section: ``objective.days=7``.

        ``objective=window`` is short for ``objective.kind=window``, and ``encoder=hstu`` for ``encoder.name=hstu``.
        Raises RecipeError for a key that there is not, or that means nothing with the other settings.
        """
        return self.parse(apply_settings(type(self), self.as_dict(), list(settings)), "--set")
