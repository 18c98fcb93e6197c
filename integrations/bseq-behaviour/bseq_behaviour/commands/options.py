"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Place = Annotated[Path, typer.Argument(help="A finished run, or a store: its current version.")]
Log = Annotated[str | None, typer.Option("--events", help="Log to read histories from; default: the run's or store's.")]
At = Annotated[str | None, typer.Option("--at", help="Instant, e.g. 2017-12-01T00:00:00+00:00; default: end of log.")]
HeadOptions = Annotated[
    list[str] | None, typer.Option("--head-option", help="key=value, a setting of the head; repeat it.")
]
Name = Annotated[str | None, typer.Option("--name", help="Column of --items with what people call an item.")]
Picture = Annotated[Path | None, typer.Option("--picture", help="PNG to draw (needs matplotlib).")]
