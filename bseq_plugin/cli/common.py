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
    from bseq_plugin.recipe.recipe import Recipe

out = Console()  # results
note = Console(stderr=True)  # everything else, so that results can be piped

Source = Annotated[
    str,
    typer.Argument(help="Log: .parquet, .csv, .tsv, RecBole .inter (also globs), or a .txt of `user item item ...`."),
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="Shipped recipe by name, 'auto', or a .toml file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value over the recipe, e.g. training.epochs=20; repeat it."),
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
    from bseq_plugin.recipe.merge import apply_settings
    from bseq_plugin.recipe.recipe import Recipe

    if name != AUTO:
        recipe = Recipe() if name is None else Recipe.load(name)
        return recipe.with_settings(settings or [])
    from bseq_plugin.data.partitions import PartitionedSequences

    if isinstance(events, PartitionedSequences):
        raise UsageError("--recipe auto needs the log in memory; name another recipe for partitioned sequences")
    asked = apply_settings(Recipe, {}, settings or [])
    # also without events, to see whether the settings can be right at all
    checked = Recipe(objective="window" if wants_window(asked) else "next").with_settings(settings or [])
    return checked if events is None else auto_recipe(events, asked).with_settings(settings or [])


def key_values(texts: list[str] | None, option: str, how: str) -> dict[str, str]:
    """Return ``["user_id=household_id"]`` as a dict. Raises UsageError that says how to write it."""
    pairs = {}
    for text in texts or []:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"{option} {text!r}: write {how}")
        pairs[key] = value
    return pairs


def column_mapping(columns: list[str] | None) -> dict[str, str]:
    """Return the mapping that the option ``--column`` writes. Raises UsageError."""
    return key_values(columns, "--column", "ours=theirs, for example user_id=household_id")


def option_values(settings: list[str] | None, option: str, example: str) -> dict[str, Any]:
    """Return the settings of a part as typed values: ``["n_experts=8"]`` is ``{"n_experts": 8}``. Raises UsageError."""
    from bseq_plugin.recipe.files import parse_value

    pairs = key_values(settings, option, f"key=value, for example {example}")
    return {key.strip(): parse_value(text.strip()) for key, text in pairs.items()}


def sharding_of(settings: list[str] | None) -> str | dict[str, str]:
    """``["row_wise"]`` or ``["item=row_wise", "time_gap=table_wise"]`` as ``train`` takes it. Raises UsageError."""
    pairs = [setting.partition("=") for setting in settings or ["auto"]]
    if len(pairs) == 1 and not pairs[0][1]:
        return pairs[0][0]
    if not all(separator for _, separator, _ in pairs):
        raise UsageError(f"--sharding {settings}: write one way for all tables, or table=way for each")
    return {table: way for table, _, way in pairs}


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


def as_id(text: str, known: object, option: str) -> int | str:
    """Return the text as ``known`` ids are written: a number where these are numbers. Raises UsageError."""
    import numpy as np

    if not np.issubdtype(np.asarray(known).dtype, np.integer):
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {text!r}: ids of this store are whole numbers") from None


def parse_ks(text: str) -> list[int]:
    """``"5,10,20"`` as numbers. Raises UsageError."""
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--k {text!r}: write numbers separated by commas, for example 5,10,20") from None
    if ks[0] < 1:
        raise UsageError(f"--k {text!r}: every k is 1 or more")
    return ks
