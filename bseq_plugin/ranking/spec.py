"""Which ranking features are made, and from how much history."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.files import write_json
from bseq_plugin.plugins import PluginManager, plugin_manager
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.ranking.table import FeatureTable
from bseq_plugin.ranking.transform import FeatureTransform, Scores
from bseq_plugin.schema.options import parse_options
from bseq_plugin.schema.ranking_features import CATEGORY, VERSION, RankingFeature


class FeatureSpec(BaseModel):
    """Names of features in the order of the columns, and how far back they look. Immutable.

    As a TOML file::

        names = ["sim_max", "sim_last1"]
        history_length = 200
        ttl_days = 90
        category = "department"

        [options.sim_soft]
        tau = 0.1
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = Field(
        tuple(feature.name for feature in FEATURES), min_length=1, description="ranking features (see `bseq plugins`)"
    )
    history_length: int = Field(200, ge=1, description="events of a history that the features read, the latest ones")
    ttl_days: float | None = Field(
        None, gt=0, description="a latest event older than this counts as no history; None = never"
    )
    category: str | None = Field(None, description="column of the items table that n_same_category counts by")
    options: dict[str, dict[str, Any]] = Field({}, description="options of features, by name")
    transform: FeatureTransform | None = Field(None, description="how features become a network's input (fitted)")

    @classmethod
    def default(cls) -> FeatureSpec:
        """All the features that come with bseq."""
        return cls()

    @classmethod
    def without(cls, *groups: str) -> FeatureSpec:
        """The features that come with bseq but those of some groups: vectors, similarity, history, counts, ..."""
        unknown = sorted(set(groups) - {feature.group for feature in FEATURES})
        if unknown:
            raise UsageError(f"unknown groups {unknown}; there are: {sorted({f.group for f in FEATURES})}")
        return cls(names=tuple(feature.name for feature in FEATURES if feature.group not in groups))

    def fitted(self, table: FeatureTable, *, scores: Scores = "standard", clip: float = 5.0) -> FeatureSpec:
        """Return this specification with a transform fitted to the rows that a ranker is trained on.

        From then on ``FeatureTable.to_keyed_tensor`` gives what a network can eat, with the same keys in training and
        serving: log(1 + x) of what has a long tail, standard scores (mean 0, deviation 1) or quantile scores (-1 to 1),
        clipped, 0 for what is missing; features that are names of something (unit "category") are left to
        ``to_sparse``. ``encoder_version`` (unit "version") is in neither: after the next training of the encoder it is
        a number that the ranker has never seen.

        Raises UsageError for fewer than two rows, other scores, an infinite value, and if there is no feature that a
        network can learn from.
        """
        columns = {name: values for name, values in table.columns.items() if table.units.get(name) != VERSION}
        if not columns:
            raise UsageError(f"a network learns nothing from {table.names}, the version of an encoder: add features")
        categorical = {name for name in columns if table.units.get(name) == CATEGORY}
        transform = FeatureTransform.fit(columns, categorical, scores, clip)
        return self.model_copy(update={"transform": transform})

    def save(self, path: str | Path) -> None:
        """Write it as JSON, the transform with it; ``load`` reads it."""
        write_json(Path(path), self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "feature specification") -> FeatureSpec:
        """A specification from plain values. Raises UsageError naming the key, the value and what is allowed."""
        return parse_options(cls, values, where)

    @classmethod
    def load(cls, path: str | Path, manager: PluginManager | None = None) -> FeatureSpec:
        """A specification from a TOML file, or from what ``save`` has written (.json).

        Raises UsageError if the file is missing or malformed, or names a feature that no plugin gives.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"there is no feature specification file {str(path)!r}")
        try:
            read = json.loads if path.suffix == ".json" else tomllib.loads
            values = read(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:  # of either format
            raise UsageError(f"feature specification {str(path)!r} can't be read: {error}") from None
        values.pop("description", None)
        spec = cls.parse(values, f"feature specification {str(path)!r}")
        spec.parts(manager)
        return spec

    def parts(self, manager: PluginManager | None = None) -> list[RankingFeature]:
        """The features with their options. Raises as ``classes``, RecipeError for options that don't fit."""
        unknown = sorted(set(self.options) - set(self.names))
        if unknown:
            raise UsageError(
                f"options are given for {unknown}, which names does not have: add them, or drop the options"
            )
        where = "options.{} of the feature specification"
        return [
            cls(parse_options(cls.Options, self.options.get(cls.name, {}), where.format(cls.name)))
            for cls in self.classes(manager)
        ]

    def classes(self, manager: PluginManager | None = None) -> list[type[RankingFeature]]:
        """The feature classes in the order of ``names``, from ``manager`` or the installed plugins.

        Raises UsageError for an unknown name (it lists what there is) or for one that stands there twice, PluginError
        for a class that is no RankingFeature.
        """
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise UsageError(f"ranking features {twice} are named twice; each is one column: name it once")
        manager = manager or plugin_manager()
        classes = [manager.part("ranking feature", name) for name in self.names]
        for cls in classes:
            if not issubclass(cls, RankingFeature):
                raise PluginError(f"ranking feature {cls.name!r}: {cls.__name__} does not derive from RankingFeature")
        return classes
