"""The typed configuration of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bseq_plugin.errors import RecipeError
from bseq_plugin.schema.options import describe_errors, parse_options
from bseq_plugin.schema.recipe_files import assign, read_recipe

EventFeature = Literal["event_type", "time_gap", "time_of_week", "session", "value"]
Sharding = Literal["auto", "row_wise", "table_wise", "column_wise"]
# What TorchRec knows besides, and why it is not offered.
NOT_OFFERED = {
    "data_parallel": "fbgemm's look-up for copied tables pools a history instead of giving one row an event on CPU",
    "table_row_wise": "TorchRec shards sequence tables (EmbeddingCollection) by row, table or column only",
    "table_column_wise": "TorchRec shards sequence tables (EmbeddingCollection) by row, table or column only",
    "grid_shard": "TorchRec shards sequence tables (EmbeddingCollection) by row, table or column only",
}


class Recipe(BaseModel):
    """Everything that decides what a run learns. Immutable; unknown keys and values out of range raise RecipeError.

    Times are seconds or days as named. ``encoder_options`` and ``loss_options`` belong to the chosen parts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # model
    encoder: str = Field("causal", description="name of a sequence encoder (see `bseq plugins`)")
    encoder_options: dict[str, Any] = Field(default_factory=dict)
    dim: int = Field(64, ge=1, le=4096, description="width of item vectors and interests, for each of the members")
    members: int = Field(
        1,
        ge=1,
        le=16,
        description="encoders side by side in one training, each with dim columns of the tables, averaged",
    )
    max_length: int = Field(50, ge=1, le=100_000, description="events of a history that are read, the latest ones")
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    event_features: tuple[EventFeature, ...] = Field(
        ("event_type", "time_gap"), description="event features that are used when the log has them"
    )
    time_zone: str = Field("UTC", description="IANA name, of the clocks that event feature 'time_of_week' reads")
    session_gap_minutes: float = Field(
        30.0, gt=0, description="a longer gap begins a session, where the log has no session ids"
    )
    item_attributes: tuple[str, ...] = Field(
        (), description="columns of the items table whose values are summed into the item rows"
    )
    item_encoders: tuple[str, ...] = Field(
        (), description="names of item encoders (see `bseq plugins`) whose vectors say which items are alike"
    )
    item_encoder_options: dict[str, dict[str, Any]] = Field(default_factory=dict, description="by item encoder")
    prior_events: float = Field(
        2.0, ge=0.0, description="events of an item that its neighbours count for, with item_encoders"
    )
    own_direction: float = Field(
        0.0,
        ge=0.0,
        description="with item_encoders, for logs in which people have the same item again: length of a new item's own "
        "direction, in mean lengths of a row; above 0 known items keep their row whole beside the neighbours'",
    )
    popularity_days: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="spans of days whose popularity becomes a column of the item vectors; for targets='window'"
    )
    score: Literal["inner", "cosine"] = Field(
        "inner", description="'cosine' = item rows of length 1, learned temperature"
    )
    temperature: float = Field(0.1, gt=0, description="initial temperature of cosine scores")
    readout: Literal["last", "multi"] = Field(
        "last", description="'last' = one interest, of the newest state; 'multi' = n_interests, of all states"
    )
    n_interests: int = Field(4, ge=1, le=64, description="interests a user, for readout='multi'")
    interest_method: Literal["self_attention", "routing"] = Field(
        "self_attention", description="how readout='multi' reads them: ComiRec-SA, or dynamic routing as MIND does"
    )
    interests_anchored: bool = Field(
        False,
        description="the first interest is that of readout='last', trained as if it were alone; the others add to it",
    )
    # objective
    loss: str = Field("softmax", description="name of a loss (see `bseq plugins`)")
    loss_options: dict[str, Any] = Field(default_factory=dict)
    candidates: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all", description="'all' = whole catalogue, n = n sampled negatives a batch"
    )
    sampling: Literal["uniform", "popularity", "mixed"] = Field(
        "uniform",
        description="distribution of sampled negatives; 'mixed' = the batch's targets and evenly drawn other items",
    )
    targets: Literal["next", "prefix", "window", "masked"] = Field(
        "next",
        description="'next' = the next event at every position; 'prefix' = the same, each prefix an example of its "
        "own; 'window' = events within window_days (all-action); 'masked' = hidden events (encoder 'masked')",
    )
    mask_share: float = Field(0.2, gt=0, lt=1, description="share of events that targets='masked' hides")
    target_event_types: tuple[str, ...] = Field(
        (), description="only events of these types are targets; none named = all"
    )
    event_type_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="weight in the loss of a target of this event type; 1 if not named"
    )
    window_days: float = Field(28.0, gt=0, description="length of the target window, for targets='window'")
    window_step_days: float = Field(7.0, gt=0, description="distance between the instants a window may begin at")
    n_windows: int = Field(24, ge=1, description="number of such instants, counted back from the newest")
    passes_per_epoch: int = Field(4, ge=1, description="times an epoch goes through the users, for targets='window'")
    # data
    min_item_count: int = Field(1, ge=1, description="rarer items are left out of the catalogue")
    split: Literal["leave-one-out", "time", "none"] = Field(
        "leave-one-out", description="what is held out for validation and test; 'none' trains on everything"
    )
    validation_at: str | None = Field(
        None, description="split='time': validation begins here (timezone-aware); default: two horizons before the end"
    )
    test_at: str | None = Field(None, description="split='time': test begins here; default: one horizon before the end")
    horizon_days: float = Field(28.0, gt=0, description="split='time': length of the validation and the test window")
    validation_metric: str = Field("ndcg@10", pattern=r"^(recall|ndcg|mrr)@[1-9]\d*$")
    mask_seen: bool = Field(True, description="validation ranks, and counts, only items new to the user")
    # optimisation
    epochs: int = Field(30, ge=1)
    stop_after: int | None = Field(
        None, ge=1, description="end after this many epochs of a schedule made for `epochs`, as chosen on another run"
    )
    patience: int = Field(5, ge=1, description="epochs without a better validation score before stopping")
    validate_every: int = Field(
        1, ge=1, description="epochs from one validation to the next; the last epoch has one anyway"
    )
    batch_users: int = Field(128, ge=1, description="users (or prefixes) a batch, shared out over the ranks")
    batch_events: int | None = Field(
        None, ge=1, description="events a batch instead of batch_users, so that all batches cost alike"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam, dense parameters")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = Field("constant", description="of both learning rates, over all epochs")
    table_optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    table_init: float = Field(0.02, gt=0, description="standard deviation of new item and attribute rows")
    table_learning_rate: float = Field(0.05, gt=0)
    sharding: Sharding | dict[str, Sharding] = Field(
        "auto", description="of all tables, or by table: {item = 'row_wise', time_gap = 'table_wise'}"
    )
    seed: int = Field(0, ge=0)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(f"recipe: {describe_errors(type(self), error)}") from None

    @field_validator("sharding", mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        """Says why a sharding of TorchRec is not among the choices; pydantic refuses everything else."""
        for name in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(name, str) and name in NOT_OFFERED:
                raise ValueError(
                    f"sharding = {name!r} is not offered: {NOT_OFFERED[name]}; use 'row_wise' (or 'table_wise' for a "
                    "small table)"
                )
        return value

    @field_validator("event_features")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"event_features names one twice: {list(value)}")
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

    @field_validator("item_encoder_options", mode="before")
    @classmethod
    def _as_a_file_has_them(cls, value: Any) -> Any:
        """Lists for tuples: a recipe equals what is read back from its file."""
        try:
            return json.loads(json.dumps(value))
        except TypeError as error:
            raise ValueError(f"item_encoder_options = {value!r}: {error}; give plain values") from None

    @model_validator(mode="after")
    def _objective_fits(self) -> Recipe:
        if self.popularity_days and self.targets != "window":
            raise ValueError("popularity_days goes with targets = 'window' (the popularity at the start of the window)")
        if self.readout == "multi" and self.targets in ("next", "masked"):
            raise ValueError(
                "readout = 'multi' reads a history as a whole, not at every position; use targets = 'prefix' or "
                "'window'"
            )
        if self.interests_anchored and (self.readout != "multi" or self.n_interests < 2):
            raise ValueError(
                f"interests_anchored has interests beside the first one; readout = {self.readout!r} with n_interests = "
                f"{self.n_interests} has none: use readout = 'multi' and n_interests = 2 or more"
            )
        stray = sorted(set(self.event_type_weights) - set(self.target_event_types)) if self.target_event_types else []
        if stray:
            raise ValueError(f"event_type_weights names {stray}, which are not among target_event_types")
        if self.members > 1 and (self.score == "cosine" or self.popularity_days or self.readout == "multi"):
            raise ValueError(
                f"members = {self.members} average inner products of one interest each: use score = 'inner', "
                "readout = 'last' and no popularity_days, or members = 1"
            )
        if self.batch_events is not None and self.batch_events < self.max_length:
            raise ValueError(
                f"batch_events = {self.batch_events} is less than one history of max_length = {self.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _items_fit(self) -> Recipe:
        if self.own_direction and not self.item_encoders:
            raise ValueError("own_direction goes with item_encoders, and there are none")
        strange = sorted(set(self.item_encoder_options) - set(self.item_encoders))
        if strange or len(set(self.item_encoders)) < len(self.item_encoders):
            raise ValueError(
                f"item_encoder_options of {', '.join(strange)}, which item_encoders does not name"
                if strange
                else f"item_encoders = {list(self.item_encoders)} names one twice"
            )
        return self

    @property
    def vector_dim(self) -> int:
        """Width of the tables: ``dim`` for each of the ``members``."""
        return self.dim * self.members

    @property
    def interest_dim(self) -> int:
        """Width of interests and of vectors in the index: ``vector_dim`` and one column for each popularity span."""
        return self.vector_dim + len(self.popularity_days)

    @property
    def interests_per_user(self) -> int:
        """K."""
        return self.n_interests if self.readout == "multi" else 1

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """A recipe from plain values. Raises RecipeError."""
        return parse_options(cls, values, where)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """A shipped recipe by name, or one from a TOML file."""
        return cls.parse(read_recipe(name_or_path), f"recipe {str(name_or_path)!r}")

    def replace(self, **values: Any) -> Recipe:
        """A copy with other values, checked like new ones."""
        return self.parse({**self.model_dump(), **values})

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """A copy with ``key=value`` settings; a dot reaches into options: ``encoder_options.n_blocks=3``."""
        values = self.model_dump()
        for setting in settings:
            assign(values, setting)
        return self.parse(values, "--set")
