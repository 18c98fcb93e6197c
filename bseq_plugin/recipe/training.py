"""The section that says how long and how fast a model learns."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bseq_plugin.recipe.section import Section


class BatchSettings(Section):
    """The size of a batch over all ranks, in users or in events: write one of the two."""

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("users", "events")

    users: int | None = Field(None, ge=1, description="users (or prefixes) a batch, shared out over the ranks")
    events: int | None = Field(None, ge=1, description="events a batch, so that all batches cost alike")

    def n_batches(self, n_users: int, n_events: int) -> int:
        """Batches that an epoch of so many users and events has; the last one of users may be smaller."""
        if self.users is not None:
            return -(-n_users // self.users)
        return max(1, n_events // (self.events or 1))

    @model_validator(mode="after")
    def _is_one(self) -> BatchSettings:
        if (self.users is None) == (self.events is None):
            raise ValueError("batch: write users or events, one of them, for example batch = { users = 128 }")
        return self


class DenseOptimizer(Section):
    """AdamW, of all parameters that are not tables."""

    rate: float = Field(1e-3, gt=0, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")


class TableOptimizer(Section):
    """The optimizer of embedding rows, fused into TorchRec's backward pass."""

    name: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        "rowwise_adagrad", description="'adam' needs a GPU"
    )
    rate: float = Field(0.05, gt=0, description="learning rate")


class TrainingSettings(Section):
    """Epochs, batches, learning rates and the seed."""

    epochs: int = Field(30, ge=1, description="epochs of the schedule")
    stop_after: int | None = Field(
        None, ge=1, description="end after this many epochs of a schedule made for `epochs`, as chosen on another run"
    )
    batch: BatchSettings = Field(
        default_factory=lambda: BatchSettings(users=128), description="{ users = 128 } or { events = 768 }"
    )
    dense: DenseOptimizer = Field(default_factory=DenseOptimizer, description="AdamW, of dense parameters")
    table: TableOptimizer = Field(default_factory=TableOptimizer, description="of embedding rows")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of both learning rates, over all epochs")
    seed: int = Field(0, ge=0, lt=2**62, description="of everything that is drawn at random")

    @property
    def last_epoch(self) -> int:
        """The epoch after which training ends whatever the validation says."""
        return self.stop_after or self.epochs

    @model_validator(mode="after")
    def _stops_within(self) -> TrainingSettings:
        if self.stop_after is not None and self.stop_after > self.epochs:
            raise ValueError(f"stop_after = {self.stop_after} lies beyond epochs = {self.epochs}; lower it")
        return self
