"""What several commands share: options, files, and how a process of ours gets its memory and its libraries."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bseq_plugin.console import note
from bseq_plugin.errors import UsageError
from bseq_plugin.files import output_file

if TYPE_CHECKING:
    import pandas as pd

    from bseq_plugin.events.events import Events
    from bseq_plugin.events.log_options import LogOptions
    from bseq_plugin.events.pseudonyms import Pseudonymiser

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 512 << 20  # free memory at the top of the heap that is not given back
LARGEST_KEPT = 32 << 20  # the largest that glibc allows; larger blocks are mapped, and given back when they are freed

Source = Annotated[
    str,
    typer.Argument(help="Log: .parquet, .csv, .tsv, RecBole .inter (also globs), or a .txt of `user item item ...`."),
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="Shipped recipe by name, 'auto', or a .toml file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value over the recipe, e.g. training.epochs=20; repeat it."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--pseudonymise", help="File with a secret key: user ids become keyed hashes as they are read."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
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


def read_log(source: str | Path, reading: LogOptions, hide: Pseudonymiser | None) -> Events:
    """Return the log, read as the options say, and print what was left out. Raises as ``bseq.read_events``."""
    from bseq_plugin.readers.read_events import read_log as read

    events = read(str(source), reading, hide)
    tell_summary(events)
    return events


def tell_summary(log: Events) -> None:
    """Print what was read of a log."""
    note.print(str(log.summary))


def read_table(path: Path) -> pd.DataFrame:
    """Return a table, ids read as in a log. Raises UsageError."""
    from bseq_plugin.readers.table import read_table as read

    return read(path)


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


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed instead of giving it back to the system; False if nothing was done.

    A training step frees and asks for the same some hundred blocks again. Given back, each comes as fresh pages, which
    the kernel fills with zeros one by one. Nothing is done without glibc, with a preloaded library (which may be
    another allocator), or if the environment configures the allocator already. For processes of our own: in a user's
    it is the user's choice.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


@contextmanager
def loading() -> Iterator[None]:
    """Import large libraries inside: Python's collector of cyclic garbage rests meanwhile.

    Imports make some million objects that stay for good; looking through them again and again takes a quarter of the
    start. Afterwards they, and whatever garbage there is by then, are left out of every later collection
    (``gc.freeze``): for processes of our own.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
