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

    from bseq_plugin.events.pseudonyms import Pseudonymiser

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
StorePath = Annotated[Path, typer.Argument(help="Store directory.")]
Items = Annotated[
    Path | None, typer.Option("--items", help="Table with item_id and attribute columns (.parquet, .csv).")
]


def column_mapping(columns: list[str] | None) -> dict[str, str]:
    """Return ``["user_id=household_id"]`` as a dict. Raises UsageError."""
    from bseq_plugin.recipe.files import split_setting

    return dict(split_setting(text, "--column", "user_id=household_id") for text in columns or [])


def option_values(settings: list[str] | None, option: str, example: str) -> dict[str, Any]:
    """Return the settings of a part as typed values: ``["n_experts=8"]`` is ``{"n_experts": 8}``. Raises UsageError."""
    from bseq_plugin.recipe.files import parse_value, split_setting

    pairs = (split_setting(setting, option, example) for setting in settings or [])
    return {key: parse_value(text) for key, text in pairs}


def sharding_of(settings: list[str] | None) -> str | dict[str, str]:
    """Return ``["row_wise"]`` or ``["item=row_wise", "time_gap=auto"]`` as ``train`` takes it. Raises UsageError."""
    from bseq_plugin.recipe.files import split_setting

    if settings is None or (len(settings) == 1 and "=" not in settings[0]):
        return settings[0] if settings else "auto"
    return dict(split_setting(setting, "--sharding", "item=row_wise") for setting in settings)


def pseudonymiser(key_file: Path | None) -> Pseudonymiser | None:
    """Return what the option ``--pseudonymise`` names. Raises UsageError."""
    from bseq_plugin.events.pseudonyms import Pseudonymiser

    return None if key_file is None else Pseudonymiser.from_file(key_file)


def read_table(path: Path) -> pd.DataFrame:
    """Read a Parquet, CSV or TSV table; ids of a text file are read as in a log. Raises UsageError."""
    import pandas as pd

    from bseq_plugin.readers.read_events import plain_ids

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
    """Write the whole file, or leave what was there before; its folder is made if need be."""
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


def whole_numbers(text: str, option: str, example: str) -> list[int]:
    """Return ``"5,10,20"`` as numbers. Raises UsageError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r}: write numbers separated by commas, for example {example}") from None


def parse_ks(text: str) -> list[int]:
    """Return the cut-offs of ``--k``, ascending. Raises UsageError."""
    ks = sorted(set(whole_numbers(text, "--k", "5,10,20")))
    if ks[0] < 1:
        raise UsageError(f"--k {text!r}: every k is 1 or more")
    return ks
