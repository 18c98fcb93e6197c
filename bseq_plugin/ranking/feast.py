"""A Feast feature view of a Parquet file of ranking features, as Python source that ``feast apply`` reads."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import ITEM, USER
from bseq_plugin.ranking.table import EVENT_TIMESTAMP, ISNULL, REQUEST

HEADER = '''\
"""Feast definitions of {path}, written by bseq; `feast apply` reads them.

bseq's rows know only events strictly before their event_timestamp. Feast joins rows "at or before" it, so that a row
made for an instant is found for that very instant.
"""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Bool, Float32

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
    kind = "Bool" if pa.types.is_boolean(field.type) else "Float32" if pa.types.is_float32(field.type) else None
    if kind is None:
        kind = "Array(Float32)"
    text = (field.metadata or {}).get(b"description", b"").decode()
    told = f", description={text!r}" if text and not field.name.endswith(ISNULL) else ""
    return f"        Field(name={field.name!r}, dtype={kind}{told}),\n"
