"""The door through which logs come in, and the built-in readers behind it."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bseq_plugin.errors import PluginError, SchemaError, UsageError
from bseq_plugin.events.events import CREATED, ITEM, SESSION, TIME, USER, Events
from bseq_plugin.events.pseudonyms import Pseudonymiser
from bseq_plugin.events.sequences import LISTS
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


def read(source: object, columns: Mapping[str, str] | None, timestamp_unit: str | None) -> Events | None:
    """Events, or None if the source is none of ours. Raises UsageError if a file is not there."""
    if isinstance(source, Events):
        return source
    if isinstance(source, pd.DataFrame):
        return Events.from_frame(source, columns, timestamp_unit)
    if not isinstance(source, str | Path):
        return None
    reader = {
        ".parquet": _read_table,
        ".csv": _read_table,
        ".tsv": _read_table,
        ".inter": _read_recbole,
        ".txt": _read_sequence_text,
    }.get(Path(source).suffix)
    return None if reader is None else reader(files_of(str(source)), columns, timestamp_unit)


def files_of(pattern: str) -> list[Path]:
    """The files of a path or glob, in the order of their names. Raises UsageError if there is none."""
    paths = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
    files = [Path(path) for path in paths if Path(path).suffix == ".parquet" or Path(path).is_file()]
    if not files:
        raise UsageError(f"there is no file {pattern!r}")
    return files


def _read_table(files: list[Path], columns: Mapping[str, str] | None, timestamp_unit: str | None) -> Events:
    ids = [(columns or {}).get(name, name) for name in (USER, ITEM, SESSION)]
    frame = pd.concat([_read_one(file, ids) for file in files], ignore_index=True)
    if "item_ids" in frame and ITEM not in frame:
        return _from_lists(frame, timestamp_unit)
    if files[0].suffix != ".parquet":
        for name in set(ids) & set(frame.columns):
            frame[name] = plain_ids(frame[name])
    for name in (TIME, CREATED):
        time = (columns or {}).get(name, name)
        if time in frame and pd.api.types.is_string_dtype(frame[time]):  # text of a CSV: ISO times with an offset
            frame[time] = _parse_times(frame[time], time)
    return Events.from_frame(frame, columns, timestamp_unit)


def _from_lists(frame: pd.DataFrame, timestamp_unit: str | None) -> Events:
    """One row a user with list columns: the form of ``sequences.parquet``. Events without an id (null) are left out."""
    names = {lists: name for name, lists in LISTS.items() if lists in frame}
    flat = frame[[USER, *names]].explode(list(names), ignore_index=True).rename(columns=names)
    flat = flat[flat[ITEM].notna()].infer_objects()
    if TIME not in flat:
        return Events.in_order(flat[USER].to_numpy(), flat[ITEM].to_numpy())
    times = [name for name in (TIME, CREATED) if name in flat]
    return Events.from_frame(flat.astype(dict.fromkeys(times, "int64")), None, timestamp_unit or "us")


def _read_one(file: Path, ids: Sequence[str] = ()) -> pd.DataFrame:
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        separator = "," if file.suffix == ".csv" else "\t"
        heads = pd.read_csv(file, sep=separator, nrows=0).columns
        # ids are read as text, whatever they look like: 007 is not 7
        kinds = {name: "str" for name in heads if str(name).endswith(":token") or name in ids}
        # in one piece: read in chunks, a column of ids such as 1, 2, A3 would come out as a mixture of kinds
        return pd.read_csv(file, sep=separator, dtype=kinds, low_memory=False)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        raise SchemaError(f"{file} can't be read as {file.suffix}: {error}") from None


def plain_ids(column: pd.Series) -> pd.Series:
    """A text column as numbers if that loses nothing: ``7`` and ``-7`` do, ``007`` and ``7e3`` stay text."""
    labels = pd.Series(column.dropna().unique(), dtype="str")
    if column.isna().any() or labels.empty:
        return column  # nulls are told of by Events
    if labels.str.fullmatch(r"-?(0|[1-9][0-9]*)").all():
        return pd.to_numeric(column)
    return column.astype("float64") if labels.str.fullmatch(r"-?[0-9]+\.[0-9]*").all() else column


def _parse_times(column: pd.Series, name: str) -> pd.Series:
    parsed = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601")
    bad = parsed.isna() & column.notna()
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise SchemaError(f"column {name!r}: row {row} ({column.iloc[row]!r}) is not an ISO 8601 time")
    naive = column.notna() & ~column.str.contains(r"(?:Z|[+-]\d{2}:?\d{2})\s*$", na=False)
    if naive.any():
        row = int(np.flatnonzero(naive)[0])
        raise SchemaError(
            f"column {name!r}: row {row} ({column.iloc[row]!r}) has no time zone; write an offset, for example +00:00"
        )
    return parsed


def _read_recbole(files: list[Path], columns: Mapping[str, str] | None, timestamp_unit: str | None) -> Events:
    """RecBole's atomic ``.inter``: tab-separated, ``name:type`` headers, times in float seconds."""
    frame = pd.concat([_read_one(file) for file in files], ignore_index=True)
    types = {str(c).partition(":")[0]: str(c).partition(":")[2] for c in frame.columns}
    frame.columns = pd.Index(list(types))
    for name, kind in types.items():
        if kind == "token" and not frame[name].isna().any():
            frame[name] = _numbers(frame[name].tolist(), name)
    time = (columns or {}).get(TIME, TIME)
    if time in frame and pd.api.types.is_float_dtype(frame[time]):
        micros = frame[time].astype("float64") * 1e6
        if not np.isfinite(micros).all():
            raise SchemaError(f"column {time!r} has times that are no numbers; drop these rows")
        frame[time] = micros.round().astype("int64")
        return Events.from_frame(frame, columns, "us")
    return Events.from_frame(frame, columns, timestamp_unit or "s")


def _read_sequence_text(files: list[Path], columns: Mapping[str, str] | None, timestamp_unit: str | None) -> Events:
    """``user item item ...`` a line, oldest first; ids are integers if all of them are, written without zeros ahead."""
    users: list[str] = []
    items: list[str] = []
    for file in files:
        for number, line in enumerate(_read_text(file).splitlines(), 1):
            user, *history = line.split()[:1] + line.split()[1:] or [""]
            if not history:
                if user:
                    raise SchemaError(f"{file}, line {number}: user {user!r} has no items; write `user item item ...`")
                continue
            users.extend([user] * len(history))
            items.extend(history)
    if not items:
        raise SchemaError(f"{files[0]} is empty: there is nothing to learn from or to look up")
    return Events.in_order(_numbers(users, USER), _numbers(items, ITEM))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise SchemaError(f"{file} can't be read as text: {error}") from None


def _numbers(texts: list[str], name: str) -> np.ndarray:
    column = np.array(texts, dtype=object)
    if all(text.isdecimal() and text.isascii() and (text[0] != "0" or text == "0") for text in dict.fromkeys(texts)):
        try:
            return column.astype(np.int64)
        except (OverflowError, ValueError):  # beyond int64, or beyond the digits that Python reads
            raise SchemaError(f"{name} has an id above 2^63 - 1; use shorter or non-numeric ids") from None
    return column
