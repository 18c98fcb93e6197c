"""Ranking features as a table: pandas, Arrow, Parquet, KeyedTensor, and a Feast feature view of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bseq_plugin.errors import MissingDependencyError, UsageError
from bseq_plugin.events.events import ITEM, USER
from bseq_plugin.files import output_file
from bseq_plugin.ranking.transform import FeatureTransform, missing
from bseq_plugin.schema.ranking_features import EXACT

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor, KeyedTensor


EVENT_TIMESTAMP = "event_timestamp"  # Feast's name for the instant a feature row is valid at
ISNULL = "_isnull"
REQUEST = "request_id"


@dataclass(frozen=True)
class FeatureTable:
    """Features of N candidate rows, in the order of the candidates.

    Attributes:
        user_ids, item_ids: int64 or str [N].
        at_N: int64, microseconds since the epoch (UTC).
        columns: feature name -> float32 [N] or [N, width], NaN where undefined; a feature of unit "category" may be
            int64, -1 where undefined.
        descriptions: feature name -> definition, unit and null rule.
        request_ids: int64 or str [N], or None if the candidates had no ``request_id``.
        units: feature name -> what it is measured in.
        transform: how ``to_keyed_tensor`` and ``to_sparse`` make a network's input of it, if one is fitted.
    """

    user_ids: pd.Series
    item_ids: pd.Series
    at_N: np.ndarray
    columns: Mapping[str, np.ndarray]
    descriptions: Mapping[str, str]
    request_ids: pd.Series | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    transform: FeatureTransform | None = None

    def __len__(self) -> int:
        return len(self.at_N)

    @property
    def names(self) -> list[str]:
        """Names of the features, in the order of the specification."""
        return list(self.columns)

    def isnull(self, name: str) -> np.ndarray:
        """bool [N], where a feature has no value; a vector is null if all of it is missing."""
        is_missing = missing(self.columns[name])
        return np.asarray(is_missing.all(axis=1) if is_missing.ndim == 2 else is_missing)

    def to_arrow(self) -> pa.Table:
        """user_id, item_id, event_timestamp (timestamp[us, UTC]), then for each feature its values and NAME_isnull.

        Scalars are float32, vectors fixed-size lists of float32; a missing value is NaN, never 0, and its ``_isnull``
        (bool) is true. Names in int64 stay int64, -1 for a missing one. Each field carries the feature's description.
        """
        at = pa.array(self.at_N, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        arrays: list[pa.Array] = [_plain(self.user_ids), _plain(self.item_ids), at]
        fields = [pa.field(name, array.type) for name, array in zip((USER, ITEM, EVENT_TIMESTAMP), arrays, strict=True)]
        if self.request_ids is not None:
            arrays.append(_plain(self.request_ids))
            fields.append(pa.field(REQUEST, arrays[-1].type))
        for name, values in self.columns.items():
            column = pa.array(values.reshape(-1))
            if values.ndim == 2:
                # "element" is what Parquet calls it, so that a file gives back this very schema
                kind = pa.list_(pa.field("element", column.type), values.shape[1])
                column = pa.FixedSizeListArray.from_arrays(column, type=kind)
            arrays += [column, pa.array(self.isnull(name))]
            fields.append(pa.field(name, column.type, metadata={"description": self.descriptions.get(name, "")}))
            fields.append(pa.field(name + ISNULL, pa.bool_()))
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def to_pandas(self) -> pd.DataFrame:
        """The columns of ``to_arrow``; a vector is one array a row."""
        frame: dict[str, pd.Series] = {
            USER: self.user_ids,
            ITEM: self.item_ids,
            EVENT_TIMESTAMP: pd.to_datetime(pd.Series(self.at_N), unit="us", utc=True),
        }
        if self.request_ids is not None:
            frame[REQUEST] = self.request_ids
        for name, values in self.columns.items():
            frame[name] = pd.Series(list(values) if values.ndim == 2 else values)
            frame[name + ISNULL] = pd.Series(self.isnull(name))
        return pd.DataFrame(frame)

    def to_parquet(self, path: str | Path) -> None:
        """Write ``to_arrow``; ``path`` holds the whole table or what it held before.

        Raises UsageError if the folder does not exist, BseqError if writing fails.
        """
        with output_file(Path(path)) as file:
            pq.write_table(self.to_arrow(), file)

    def to_keyed_tensor(self, fill: float | None = 0.0) -> KeyedTensor:
        """A float32 KeyedTensor [N, sum of widths], its keys the feature names.

        With a fitted transform (``FeatureSpec.fitted``) its keys are those that were fitted, in that order, and values
        are scaled, clipped, and 0 where missing. Without one they are as they were computed: seconds go up to 1e7, and
        a network does not learn from them.

        Raises UsageError if a feature is not there that was fitted, if all that were fitted are names (``to_sparse``
        has them), and, without a transform, for a name that float32 rounds.

        Args:
            fill: stands for a missing value (scaled: 0), and every feature ``NAME`` gets a key ``NAME_isnull`` of
                width 1 (1 = missing), after all features. None keeps NaN and adds no keys.
        """
        try:
            from torchrec import KeyedTensor
        except ImportError as error:
            raise MissingDependencyError(f"to_keyed_tensor needs torchrec ({error}): pip install torchrec") from error
        if self.transform is None:
            columns = {name: _numbers(name, values) for name, values in self.columns.items()}
        else:
            columns = self.transform.numbers(dict(self.columns))
        if not columns:
            raise UsageError(f"all features of this table are names, {self.names}: to_sparse has them")
        parts = [values.reshape(len(self), -1) for values in columns.values()]
        keys = list(columns)
        if fill is not None:
            parts = [np.where(np.isnan(part), np.float32(fill), part) for part in parts]
            parts += [self.isnull(name).astype(np.float32)[:, None] for name in keys]
            keys = keys + [name + ISNULL for name in keys]
        values = torch.from_numpy(np.concatenate(parts, axis=1))
        return KeyedTensor(keys=keys, length_per_key=[part.shape[1] for part in parts], values=values)

    def to_sparse(self) -> KeyedJaggedTensor:
        """A KeyedJaggedTensor of N rows, int64: the features that are names of something.

        One id a row and key, or as many as a vector is wide. ``transform.cardinalities`` says how many rows the table
        of each key needs; 0 is missing, or never seen. Raises UsageError without a fitted transform, or if it has no
        such feature.
        """
        if self.transform is None or not self.transform.categories:
            raise UsageError("to_sparse needs a specification that was fitted to features with categories: spec.fitted")
        try:
            from torchrec import KeyedJaggedTensor
        except ImportError as error:
            raise MissingDependencyError(f"to_sparse needs torchrec ({error}): pip install torchrec") from error
        ids = self.transform.ids(dict(self.columns))
        values = torch.from_numpy(np.concatenate([ids_NW.reshape(-1) for ids_NW in ids.values()]))
        widths = torch.tensor([ids_NW.shape[1] for ids_NW in ids.values()])
        lengths = widths.repeat_interleave(len(self))
        return KeyedJaggedTensor(list(ids), values, lengths=lengths, stride=len(self))


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    """Return float32, NaN where missing. Raises UsageError for a whole number that float32 rounds."""
    rounded = np.argwhere((values > EXACT) & (values.dtype.kind == "i"))
    if len(rounded):
        place = tuple(rounded[0])
        raise UsageError(
            f"feature {name!r} is {values[place]} in row {int(place[0])} (counted from 0), and float32 rounds names "
            "above 2^24: fit the specification (spec.fitted) and read it from to_sparse"
        )
    return np.where(missing(values), np.float32(np.nan), values.astype(np.float32))


def _plain(ids: pd.Series) -> pa.Array:
    return pa.array(ids, pa.int64() if pd.api.types.is_integer_dtype(ids) else pa.string(), from_pandas=True)


HEADER = '''\
"""Feast definitions of {path}, written by bseq; `feast apply` reads them.

bseq's rows know only events strictly before their event_timestamp. Feast joins rows "at or before" it, so that a row
made for an instant is found for that very instant.
"""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Bool, Float32, Int64

user = Entity(name="{user}", join_keys=["{user}"], value_type=ValueType.{user_type})
item = Entity(name="{item}", join_keys=["{item}"], value_type=ValueType.{item_type})

{view} = FeatureView(
    name="{view}",
    entities=[user, item],
    ttl=timedelta(days={ttl_days}),
    source=FileSource(name="{view}_source", path={path!r}, timestamp_field="{timestamp}"),
    schema=[
'''


def feast_feature_view(parquet: str | Path, name: str, ttl_days: float = 0) -> str:
    """Python source that defines the entities and the feature view ``name`` over a file of ``write_features``.

    Args:
        parquet: the file; its absolute path is written into the source.
        ttl_days: how old a row may be when Feast joins it; 0 = any age.

    Raises:
        UsageError: a name that is no Python identifier, a ttl below 0, or a file that is no table of ranking features.
    """
    path = Path(parquet).absolute()
    if not name.isidentifier():
        raise UsageError(f"the feature view can't be called {name!r}: use letters, digits and _")
    if not 0 <= ttl_days < float("inf"):
        raise UsageError(f"ttl_days = {ttl_days}; give 0 (any age) or more")
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} can't be read: {error}") from None
    for needed in (USER, ITEM, EVENT_TIMESTAMP):
        if needed not in schema.names:
            raise UsageError(f"{path} has no column {needed!r}; it is no table of ranking features")
    kinds = {key: "STRING" if pa.types.is_string(schema.field(key).type) else "INT64" for key in (USER, ITEM)}
    head = HEADER.format(
        path=str(path), user=USER, item=ITEM, user_type=kinds[USER], item_type=kinds[ITEM], view=name,
        ttl_days=ttl_days, timestamp=EVENT_TIMESTAMP,
    )  # fmt: skip
    keys = (USER, ITEM, EVENT_TIMESTAMP, REQUEST)
    return head + "".join(_field(field) for field in schema if field.name not in keys) + "    ],\n)\n"


def _field(field: pa.Field) -> str:
    scalars = {pa.bool_(): "Bool", pa.float32(): "Float32", pa.int64(): "Int64"}
    kind = scalars.get(field.type) or f"Array({scalars[field.type.value_type]})"
    text = (field.metadata or {}).get(b"description", b"").decode()
    told = f", description={text!r}" if text and not field.name.endswith(ISNULL) else ""
    return f"        Field(name={field.name!r}, dtype={kind}{told}),\n"
