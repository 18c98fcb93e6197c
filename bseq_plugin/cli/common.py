"""What several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bseq_plugin.errors import UsageError
from bseq_plugin.files import output_file

if TYPE_CHECKING:
    import pandas as pd

    from bseq_plugin.data.events import Events
    from bseq_plugin.data.partitions import PartitionedSequences
    from bseq_plugin.data.pseudonyms import Pseudonymiser
    from bseq_plugin.schema.recipe import Recipe

out = Console()  # results
note = Console(stderr=True)  # everything else, so that results can be piped

Source = Annotated[
    str,
    typer.Argument(help="Log: .parquet, .csv, .tsv, RecBole .inter (also globs), or a .txt of `user item item ...`."),
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="Shipped recipe by name, 'auto', or a .toml file.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeat it.")]
HeadOptions = Annotated[
    list[str] | None, typer.Option("--head-option", help="key=value, a setting of the head; repeat it.")
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="ours=theirs, e.g. user_id=household_id; repeat it.")
]
Unit = Annotated[str | None, typer.Option("--timestamp-unit", help="s, ms or us, for integer times.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--pseudonymise", help="File with a secret key: user ids become keyed hashes as they are read."),
]
Items = Annotated[
    Path | None, typer.Option("--items", help="Table with item_id and attribute columns (.parquet, .csv).")
]


def load_recipe(
    name: str | None, settings: list[str] | None, events: Events | PartitionedSequences | None = None
) -> Recipe:
    """The recipe of the options ``--recipe`` and ``--set``; "auto" needs the events, in memory."""
    from bseq_plugin.data.auto_recipe import AUTO, auto_recipe, wants_window
    from bseq_plugin.schema.recipe import Recipe
    from bseq_plugin.schema.recipe_files import assign

    if name != AUTO:
        recipe = Recipe() if name is None else Recipe.load(name)
        return recipe.with_settings(settings or [])
    from bseq_plugin.data.partitions import PartitionedSequences

    if isinstance(events, PartitionedSequences):
        raise UsageError("--recipe auto needs the log in memory; name another recipe for partitioned sequences")
    asked: dict[str, Any] = {}
    for setting in settings or []:
        assign(asked, setting)
    # also without events, to see whether the settings can be right at all
    checked = Recipe(targets="window" if wants_window(asked) else "next").with_settings(settings or [])
    return checked if events is None else auto_recipe(events, asked).with_settings(settings or [])


def column_mapping(columns: list[str] | None) -> dict[str, str]:
    """``["user_id=household_id"]`` as a dict. Raises UsageError."""
    mapping = {}
    for text in columns or []:
        ours, separator, theirs = text.partition("=")
        if not separator:
            raise UsageError(f"--column {text!r}: write ours=theirs, for example user_id=household_id")
        mapping[ours] = theirs
    return mapping


def head_options(settings: list[str] | None) -> dict[str, Any]:
    """``["n_experts=8"]`` as a dict. Raises UsageError."""
    from bseq_plugin.schema.recipe_files import parse_value

    options = {}
    for setting in settings or []:
        key, separator, text = (part.strip() for part in setting.partition("="))
        if not separator or not key:
            raise UsageError(f"--head-option {setting!r}: write key=value, for example n_experts=8")
        options[key] = parse_value(text)
    return options


def pseudonymiser(key_file: Path | None) -> Pseudonymiser | None:
    """Of the option ``--pseudonymise``. Raises UsageError."""
    from bseq_plugin.data.pseudonyms import Pseudonymiser

    return None if key_file is None else Pseudonymiser.from_file(key_file)


def read_table(path: Path) -> pd.DataFrame:
    """A Parquet, CSV or TSV table; ids of a text file are read as in a log. Raises UsageError."""
    import pandas as pd

    from bseq_plugin.readers.files import plain_ids

    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        table = pd.read_csv(
            path, sep="\t" if path.suffix == ".tsv" else ",", dtype={"user_id": "str", "item_id": "str"}
        )
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} can't be read: {error}") from None
    for name in {"user_id", "item_id"} & set(table.columns):
        table[name] = plain_ids(table[name])
    return table


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """The whole file or what was there before; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with output_file(path) as file:
        frame.to_parquet(file)


def check_output(path: Path | None) -> None:
    """Refuse a file that can't be written before the work begins, not after. Raises UsageError."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder; name a file in it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{str(path)!r} can't be written: {str(parent)!r} is no folder one may write to")


def parse_ks(text: str) -> list[int]:
    """``"5,10,20"`` as numbers. Raises UsageError."""
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--k {text!r}: write numbers separated by commas, for example 5,10,20") from None
    if ks[0] < 1:
        raise UsageError(f"--k {text!r}: every k is 1 or more")
    return ks
