"""Properties of items beside their id: attributes and vectors from an items table, popularity from the log.

Shape letters: V catalogue items (tables have V + 1 rows, row 0 for unknown items), A attributes, P priors, N rows of an
items table, E width of the vectors of all encoders side by side.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from bseq_plugin.errors import PluginError, SchemaError
from bseq_plugin.events.events import DAY_US, ITEM
from bseq_plugin.events.ids import as_ids
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.recipe.data import ItemEncoderSettings
from bseq_plugin.schema.encoders import ItemEncoder
from bseq_plugin.schema.item_values import item_values
from bseq_plugin.schema.options import parse_options


@dataclass(frozen=True)
class ItemAttributes:
    """Categories of items, such as department or brand, or several of one kind, such as genres.

    Attributes:
        names: A attribute names.
        offsets: int64 [V + 2], where the values of each row of the item table begin among the M values of all.
        codes_M: int64, in one id space for all attributes: attribute a has codes from ``starts[a]`` on, the first of
            which stands for a missing value and for unknown items. Within a row in the order of the attributes.
        shares_M: float32, one divided by the number of values that the item has of that attribute.
        starts: int64 [A + 1]; the last entry is the number of codes.
    """

    names: tuple[str, ...]
    offsets: np.ndarray
    codes_M: np.ndarray
    shares_M: np.ndarray
    starts: np.ndarray

    @property
    def n_codes(self) -> int:
        """The number of rows of the attribute table."""
        return int(self.starts[-1])

    @property
    def digest(self) -> str:
        """The sha256 of everything: two tables with the same one teach the same."""
        arrays = (self.offsets, self.codes_M, self.starts)  # the shares follow from them
        content = [json.dumps(self.names).encode(), *(array.tobytes() for array in arrays)]
        return hashlib.sha256(b"".join(content)).hexdigest()

    @classmethod
    def from_frame(cls, items: pd.DataFrame, names: Sequence[str], vocabulary: Vocabulary) -> ItemAttributes:
        """Look up ``names`` for every item of the vocabulary; items that ``items`` lacks have missing values.

        Raises SchemaError if a column is missing, an item is there twice, or no item of the vocabulary is there.
        """
        rows, known = known_items(items, names, vocabulary)
        starts: list[int] = [0]
        parts: list[tuple[np.ndarray, ...]] = []
        for name in names:
            # only values that a catalogue item has get a row
            own, codes, n_labels = _coded(items[name][known], rows[known])
            missing = np.setdiff1d(np.arange(vocabulary.n_items + 1), own)
            owners = np.concatenate([own, missing])
            codes = np.concatenate([codes + 1, np.zeros(len(missing), np.int64)]) + starts[-1]
            shares = (1.0 / np.bincount(owners)[owners]).astype(np.float32)
            parts.append((owners, np.full(len(owners), len(parts)), codes, shares))
            starts.append(starts[-1] + n_labels + 1)
        owners, places, codes, shares = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((codes, places, owners))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=vocabulary.n_items + 1))])
        return cls(tuple(names), offsets.astype(np.int64), codes[order], shares[order], np.array(starts))

    def single(self, name: str) -> np.ndarray:
        """Return int64 [V + 1], the code of each row's value, 0 = missing.

        Raises SchemaError if an item has several.
        """
        place = self.names.index(name)
        own = (self.codes_M >= self.starts[place]) & (self.codes_M < self.starts[place + 1])
        if int(own.sum()) != len(self.offsets) - 1:
            raise SchemaError(f"column {name!r} of the items table has lists; a category here is one value")
        codes: np.ndarray = self.codes_M[own] - self.starts[place]
        return codes


def _coded(column: pd.Series, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The row and the code (0, 1, ...) of every value, and how many codes there are; labels in ascending order."""
    items, values = item_values(column)
    try:
        codes, labels = pd.factorize(values, sort=True)
    except TypeError:
        raise SchemaError(
            f"column {str(column.name)!r} of the items table has values that are neither text nor numbers, for "
            f"example {values.tolist()[0]!r}; write text, or a list of texts"
        ) from None
    return rows[items], codes.astype(np.int64), len(labels)


def known_items(items: pd.DataFrame, columns: Sequence[str], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [N], the vocabulary's row of each item of a table, and bool [N], whether there is one.

    Raises SchemaError as ``check_items``, and if the table has no item of the vocabulary.
    """
    check_items(items, columns)
    rows = vocabulary.item_rows(items[ITEM])
    if not (rows > 0).any():
        raise SchemaError(
            f"the items table has none of the {vocabulary.n_items} items of the log: its ids look like "
            f"{items[ITEM].head(1).tolist()}, the log's like {vocabulary.item_ids[:1].tolist()}; are they the same ids?"
        )
    return rows, rows > 0


class PopularityPrior:
    """Popularity columns: log(1 + users who had an item in the ``days`` before an instant), one for each span of days.

    A catalogue's taste drifts faster than a model is retrained; columns that are read off the log at the instant of
    the request keep up without training. They are part of the item vectors, so that search stays an inner product.
    """

    def __init__(self, sequences: Sequences, n_items: int, days: Sequence[float]) -> None:
        if days and sequences.timestamps is None:
            raise SchemaError("objective.popularity_days needs a log with times; leave it empty")
        self.sequences = sequences
        self.n_items = n_items
        self.days = tuple(days)
        self.at = cache(self._at)  # instants repeat: training draws them from a small grid

    def _at(self, at_us: int) -> np.ndarray:
        """Return float32 [V + 1, P], from events in [at - days, at)."""
        priors_VP = np.zeros((self.n_items + 1, len(self.days)), np.float32)
        for place, days in enumerate(self.days):
            recent = self.sequences.between(at_us - int(days * DAY_US), at_us)
            pairs = np.unique(recent.user_index * (self.n_items + 1) + recent.items)
            counts = np.bincount(pairs % (self.n_items + 1), minlength=self.n_items + 1)
            priors_VP[:, place] = np.log1p(counts)
        priors_VP[0] = 0.0
        return priors_VP


def check_items(items: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise SchemaError if the items table lacks ``item_id`` or one of ``columns``, or has an item twice."""
    for name in (ITEM, *columns):
        if name not in items:
            raise SchemaError(f"the items table lacks column {name!r}; found {[str(c) for c in items.columns]}")
    as_ids(items[ITEM], "the items table's item_id")
    if items[ITEM].duplicated().any():
        twice = items.loc[items[ITEM].duplicated(), ITEM].tolist()[0]
        raise SchemaError(f"the items table has item {twice!r} twice; keep one row an item")


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
        rows, known = known_items(items, [c for encoder in encoders for c in encoder.columns], vocabulary)
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
    """Return the item encoders of a recipe, in order. Raises UsageError (unknown name) or RecipeError (bad options)."""
    encoders = []
    for settings in chosen:
        part = plugin_manager().part("item encoder", settings.name)
        encoders.append(part(parse_options(part.Options, settings.options, f"items.encoders, {settings.name!r}")))
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
