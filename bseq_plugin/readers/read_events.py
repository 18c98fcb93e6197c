"""The door through which logs come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.events.events import Events
from bseq_plugin.events.frames import of_frame
from bseq_plugin.events.log_options import LogOptions, OnDuplicate, OnNull
from bseq_plugin.events.pseudonyms import Pseudonymiser
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.readers.open_log import open_log


def read_events(
    source: object,
    *,
    columns: Mapping[str, str] | None = None,
    timestamp_unit: str | None = None,
    time_zone: str | None = None,
    time_format: str | None = None,
    where: str | None = None,
    on_null: OnNull = "error",
    on_duplicate: OnDuplicate = "keep",
    limit_users: int | None = None,
    pseudonymise: Pseudonymiser | None = None,
) -> Events:
    """Events from a DataFrame, an Arrow stream, or files: Parquet, CSV, TSV, JSON lines, .inter, sequence text.

    Plugins that implement ``bseq_read_events`` are asked first. ``docs/formats.md`` says what a field of each kind of
    file means. ``Events.summary`` says what was read and left out.

    Args:
        source: a DataFrame; what has ``__arrow_c_stream__`` (an Arrow table or reader, a polars frame, a DuckDB
            relation); a path, folder or pattern.
        columns: our column name -> the source's, for columns that are called something else.
        timestamp_unit: "s", "ms" or "us" for integer times.
        time_zone: of times without one, such as "Europe/London".
        time_format: of times in text that is not ISO 8601, as for ``strptime``.
        where: an expression of DuckDB's SQL, such as "Quantity > 0"; rows for which it is not true are left out.
        on_null: "drop" leaves out rows without a user, an item, a time, or another id that is read.
        on_duplicate: "drop" keeps the first of equal rows.
        limit_users: as many users, drawn by a hash of their ids, with all their events.
        pseudonymise: user ids become pseudonyms here, so that nothing made of these events holds a raw id.

    Raises:
        SchemaError: the data break the documented format.
        UsageError: nobody recognises the source, the file is not there, or an option is none.
    """
    options = LogOptions(
        dict(columns or {}), timestamp_unit, time_zone, time_format, where, on_null, on_duplicate, limit_users
    )
    return read_log(source, options, pseudonymise)


def read_log(source: object, options: LogOptions, pseudonymise: Pseudonymiser | None = None) -> Events:
    """Return what ``read_events`` does, with all options in one."""
    events: Any = source
    if not isinstance(source, Events):
        hook = plugin_manager().hook.bseq_read_events
        events = hook(source=source, columns=options.columns, timestamp_unit=options.timestamp_unit, options=options)
    if events is None:
        raise UsageError(
            f"no reader recognises {source!r}; give a DataFrame, an Arrow table, a .parquet, .csv, .tsv, .jsonl or "
            ".inter file, folder or glob, or a .txt file with `user item item ...` lines; `bseq plugins` lists the "
            "plugins that were asked"
        )
    if not isinstance(events, Events):
        raise PluginError(f"a reader plugin gave {type(events).__name__} for {source!r}; it has to give Events")
    if options.cleans and events.options != options:  # of a plugin, or read before
        events = _cleaned(events, options)
    return events if pseudonymise is None else pseudonymise.events(events)


def read(source: object, options: LogOptions) -> Events | None:
    """Events, or None if the source is none of ours. Raises UsageError if a file is not there."""
    if isinstance(source, Events):
        return source
    relation = open_log(source, options)
    return None if relation is None else Events.from_relation(relation, options)


def _cleaned(events: Events, options: LogOptions) -> Events:
    """Leave out what the options say, of events that are read already: columns have our names by now."""
    only = replace(
        options, columns={}, timestamp_unit="us" if events.has_times else None, time_zone=None, time_format=None
    )
    relation = replace(of_frame(events.frame, None), only_order=not events.has_times)
    return Events.from_relation(relation, only)
