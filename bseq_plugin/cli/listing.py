"""What a command lists: a table to look at, JSON to pipe, or a Parquet file; the same rows in each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bseq_plugin.cli.common import check_output, write_parquet
from bseq_plugin.console import Table, note, out

ListFile = Annotated[Path | None, typer.Option("--out", help="Also write the rows to this Parquet file.")]


def show(
    rows: Sequence[dict[str, Any]], draw: Callable[[], Table | None], as_json: bool = False, file: Path | None = None
) -> None:
    """Print rows as JSON or as a table, and write them to a file if one is named.

    Args:
        rows: JSON-ready; in a file lists and dicts among the values become JSON text.
        draw: makes the table; None: it has printed by itself.

    Raises UsageError or BseqError if the file can't be written.
    """
    if file is not None:
        import pandas as pd

        check_output(file)
        plain = [{name: _cell(value) for name, value in row.items()} for row in rows]
        write_parquet(pd.DataFrame(plain), file)
        note.print(f"wrote {file}")
    if as_json:
        typer.echo(json.dumps(list(rows), indent=1))
    elif (table := draw()) is not None:
        out.print(table)


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value
