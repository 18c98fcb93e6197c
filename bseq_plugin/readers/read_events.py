"""The door through which logs come in."""

from __future__ import annotations

from collections.abc import Mapping

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.events.events import Events
from bseq_plugin.events.pseudonyms import Pseudonymiser
from bseq_plugin.plugins import plugin_manager


def read_events(
    source: object,
    *,
    columns: Mapping[str, str] | None = None,
    timestamp_unit: str | None = None,
    pseudonymise: Pseudonymiser | None = None,
) -> Events:
    """Events from a DataFrame, a Parquet or CSV file or glob, a RecBole ``.inter`` file, or sequence text.

    Plugins that implement ``bseq_read_events`` are asked first.

    Args:
        source: what to read.
        columns: our column name -> the source's, for columns that are called something else.
        timestamp_unit: "s", "ms" or "us" for integer times.
        pseudonymise: user ids become pseudonyms here, so that nothing made of these events holds a raw id.

    Raises:
        SchemaError: the data break the documented format.
        UsageError: nobody recognises the source, or the file is not there.
    """
    events = plugin_manager().hook.bseq_read_events(source=source, columns=columns, timestamp_unit=timestamp_unit)
    if events is None:
        raise UsageError(
            f"no reader recognises {source!r}; give a DataFrame, a .parquet, .csv, .tsv or .inter file (or glob), or a "
            ".txt file with `user item item ...` lines; `bseq plugins` lists the plugins that were asked"
        )
    if not isinstance(events, Events):
        raise PluginError(f"a reader plugin gave {type(events).__name__} for {source!r}; it has to give Events")
    return events if pseudonymise is None else pseudonymise.events(events)
