"""Vectors that item encoders give to the items of a vocabulary.

Shape letters: V catalogue items, N rows of an items table, E width of the vectors of all encoders side by side.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bseq_plugin.data.items import check_items
from bseq_plugin.errors import PluginError, SchemaError
from bseq_plugin.events.events import ITEM
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.recipe.data import ItemEncoderSettings
from bseq_plugin.schema.encoders import ItemEncoder
from bseq_plugin.schema.options import parse_options


@dataclass(frozen=True)
class ItemVectors:
    """A vector of each item, from what is known of it beside behaviour.

    Attributes:
        vectors_VE: float32 [V + 1, E]; zeros for row 0 and for items of which nothing is known.
        identity: sha256 of the encoders that made them, in order.
    """

    vectors_VE: np.ndarray
    identity: str

    @property
    def digest(self) -> str:
        """The sha256 of everything: two with the same one teach the same."""
        return hashlib.sha256(self.identity.encode() + np.ascontiguousarray(self.vectors_VE).tobytes()).hexdigest()

    @classmethod
    def from_frame(
        cls, items: pd.DataFrame, chosen: Sequence[ItemEncoderSettings], vocabulary: Vocabulary, progress: bool = False
    ) -> ItemVectors:
        """Encode the vocabulary's rows of ``items`` with the item encoders ``chosen``; warns of items without a vector.

        Raises SchemaError if a column is missing, an item is there twice, or no item of the vocabulary is there.
        """
        encoders = build_item_encoders(chosen)
        check_items(items, [column for encoder in encoders for column in encoder.columns])
        rows = vocabulary.item_rows(items[ITEM])
        known = rows > 0
        if not known.any():
            raise SchemaError(
                f"the items table has none of the {vocabulary.n_items} items of the log, for example "
                f"{vocabulary.item_ids[:1].tolist()[0]!r}; are its ids those of the log?"
            )
        encoded_NE = encode_items(encoders, items[known], progress)
        vectors_VE = np.zeros((vocabulary.n_items + 1, encoded_NE.shape[1]), np.float32)
        vectors_VE[rows[known]] = encoded_NE
        nothing = np.flatnonzero(~vectors_VE[1:].any(1))
        if len(nothing) == vocabulary.n_items:
            raise SchemaError(
                f"{', '.join(settings.name for settings in chosen)} found nothing to read of any item: the columns "
                f"{[column for encoder in encoders for column in encoder.columns]} are empty"
            )
        if len(nothing):
            warnings.warn(
                f"{len(nothing)} of {vocabulary.n_items} items have no row in the items table, or an empty one, for "
                f"example {vocabulary.item_ids[nothing[:3]].tolist()}; they are known by their id alone",
                stacklevel=2,
            )
        return cls(vectors_VE, encoders_identity(encoders))


def build_item_encoders(chosen: Sequence[ItemEncoderSettings]) -> list[ItemEncoder]:
    """The item encoders of a recipe, in order. Raises UsageError (unknown name) or RecipeError (bad options)."""
    encoders = []
    for settings in chosen:
        part = plugin_manager().part("item encoder", settings.name)
        where = f"items.encoders, {settings.name!r}"
        encoders.append(part(parse_options(part.Options, settings.options, where)))
    return encoders


def encoders_identity(encoders: Sequence[ItemEncoder]) -> str:
    """Return the sha256 of all encoders, in order."""
    return hashlib.sha256("".join(encoder.identity for encoder in encoders).encode()).hexdigest()


def encode_items(encoders: Sequence[ItemEncoder], items: pd.DataFrame, progress: bool = False) -> np.ndarray:
    """Return float32 [N, E], the vectors of all encoders side by side. Raises PluginError for a broken contract."""
    return np.concatenate([_checked(encoder, encoder.encode(items, progress), len(items)) for encoder in encoders], 1)


def _checked(encoder: ItemEncoder, vectors_NE: np.ndarray, n_items: int) -> np.ndarray:
    wanted = (n_items, encoder.width)
    given = getattr(vectors_NE, "shape", type(vectors_NE).__name__)
    if given != wanted or vectors_NE.dtype != np.float32 or not np.isfinite(vectors_NE).all():
        raise PluginError(
            f"item encoder {encoder.name!r} gave {given} {getattr(vectors_NE, 'dtype', '')}; wanted finite float32 "
            f"{wanted}: repair the plugin it comes from"
        )
    return vectors_NE
