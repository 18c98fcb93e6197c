"""The sections that shape the model: encoder, vectors, interests and loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bseq_plugin.recipe.section import PartSection, Section


class EncoderSettings(PartSection):
    """Which sequence encoder reads a history, and how much of it; the encoder's own options stand beside its name."""

    name: str = Field("causal", description="name of a sequence encoder (see `bseq plugins`)")
    max_length: int = Field(50, ge=1, le=100_000, description="events of a history that are read, the latest ones")
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="share of values that are left out of a training step")


class LossSettings(PartSection):
    """Which loss is trained with; the loss's own options stand beside its name."""

    name: str = Field("softmax", description="name of a loss (see `bseq plugins`)")


class InnerSimilarity(Section):
    """Scores are inner products of an interest and an item vector."""

    kind: Literal["inner"] = "inner"


class CosineSimilarity(Section):
    """Item rows have length 1, and scores a learned temperature."""

    kind: Literal["cosine"] = "cosine"
    temperature: float = Field(0.1, gt=0, description="what the learned temperature of cosine scores begins with")


SimilaritySettings = Annotated[InnerSimilarity | CosineSimilarity, Field(discriminator="kind")]


class VectorSettings(Section):
    """The embedding tables: their width, how many encoders share them, and how two vectors make a score."""

    dim: int = Field(
        64, ge=1, le=4096, description="width of item vectors and interests, for each encoder of an ensemble"
    )
    ensemble: int = Field(
        1,
        ge=1,
        le=16,
        description="encoders side by side in one training, each with dim columns of the tables; their scores are "
        "averaged",
    )
    similarity: SimilaritySettings = Field(
        default_factory=InnerSimilarity,
        description="'inner' = inner product; 'cosine' = item rows of length 1, learned temperature",
    )
    init: float = Field(0.02, gt=0, description="standard deviation of new item and attribute rows")

    @property
    def table_dim(self) -> int:
        """The width of the tables: ``dim`` columns for each encoder of the ensemble."""
        return self.dim * self.ensemble

    @property
    def cosine(self) -> bool:
        """Whether item rows are scaled to length 1."""
        return self.similarity.kind == "cosine"

    @model_validator(mode="after")
    def _averages_inner_products(self) -> VectorSettings:
        if self.ensemble > 1 and self.cosine:
            raise ValueError(
                f"ensemble = {self.ensemble} averages inner products; use similarity = 'inner', or ensemble = 1"
            )
        return self


class OneInterest(Section):
    """One interest a user: the newest state of the encoder."""

    kind: Literal["one"] = "one"


class SeveralInterests(Section):
    """Several interests a user, read off all states of a history."""

    kind: Literal["several"] = "several"
    n: int = Field(4, ge=1, le=64, description="interests a user")
    method: Literal["self_attention", "routing"] = Field(
        "self_attention", description="how they are read: ComiRec-SA, or dynamic routing as MIND does"
    )
    anchored: bool = Field(
        False, description="the first interest is that of kind 'one', trained as if it were alone; the others add to it"
    )

    @model_validator(mode="after")
    def _has_others(self) -> SeveralInterests:
        if self.anchored and self.n < 2:
            raise ValueError("anchored has interests beside the first one; use n = 2 or more")
        return self


InterestSettings = Annotated[OneInterest | SeveralInterests, Field(discriminator="kind")]
