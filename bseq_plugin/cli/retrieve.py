"""``bseq retrieve``."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from bseq_plugin.cli.common import (
    AsJson,
    KeyFile,
    StorePath,
    check_output,
    loading,
    pseudonymiser,
    read_table,
    write_parquet,
)
from bseq_plugin.console import Table, counting, note, out
from bseq_plugin.errors import UsageError
from bseq_plugin.events.ids import read_id

if TYPE_CHECKING:
    import pandas as pd

    from bseq_plugin.events.pseudonyms import Pseudonymiser
    from bseq_plugin.serving.retriever import Retriever


def retrieve(
    store: StorePath,
    user: Annotated[str | None, typer.Option("--user", help="A user id of the store.")] = None,
    users: Annotated[
        Path | None, typer.Option("--users", help="Table with user_id: candidates of all of them, to --out.")
    ] = None,
    items: Annotated[
        str | None, typer.Option("--items", help="An anonymous history: item ids, oldest first; commas between.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="How many candidates.")] = 20,
    exclude: Annotated[
        str, typer.Option("--exclude", help="seen: only items new to the user; none: blended with history.")
    ] = "seen",
    at: Annotated[
        str | None, typer.Option("--at", help="Request time, with a zone: only what was known before it is read.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="Parquet file to write the candidates to.")] = None,
    as_json: AsJson = False,
    pseudonymise: KeyFile = None,
) -> None:
    """Candidates for a user of the store, for a file of users, or for a history given here.

    Example: `bseq retrieve store --user 42 --k 10`, or `bseq retrieve store --items 1001,1002 --json`

    For many: `bseq retrieve store --users users.parquet --out candidates.parquet --k 500`

    In a store of pseudonyms `--pseudonymise key` finds the raw ids that `--user` and `--users` name.
    """
    hide = pseudonymiser(pseudonymise)
    if sum(one is not None for one in (user, users, items)) != 1:
        raise UsageError("give one of --user ID, --users FILE, --items a,b,c")
    if exclude not in ("seen", "none"):
        raise UsageError(f"--exclude {exclude!r}: use seen or none")
    if k < 1:
        raise UsageError(f"--k {k}: give a whole number of 1 or more")
    if users is not None and output is None:
        raise UsageError("say where the candidates of --users are written: --out candidates.parquet")
    check_output(output)
    table = None if users is None else _user_ids(users, hide)
    with loading():
        from bseq_plugin.serving.bulk import write_candidates
        from bseq_plugin.serving.retriever import Retriever

    retriever = Retriever.open(store)
    how: dict[str, Any] = {"exclude": exclude} if at is None else {"exclude": exclude, "at": at}
    if table is not None and output is not None:
        with counting("users", len(table)) as advance:
            rows = write_candidates(retriever, table, output, k, report=advance, **how)
        note.print(f"wrote {rows:,} candidates of {len(table):,} users to {output}")
        return
    candidates = (
        _of_user(retriever, user, hide, k, how) if items is None else _of_items(retriever, items, k, exclude, at)
    )
    if retriever.n_unknown_items:
        note.print(f"{retriever.n_unknown_items} event(s) of items that the catalogue does not have")
    if output is not None:
        write_parquet(candidates, output)
        note.print(f"wrote {output}")
    if as_json:
        rows_of = json.loads(candidates.to_json(orient="records"))
        typer.echo(json.dumps({"version": retriever.version, "candidates": rows_of}))
    elif output is None:
        out.print(_drawn(candidates, f"{store} {retriever.version}"))


def _user_ids(path: Path, hide: Pseudonymiser | None) -> pd.Series:
    table = read_table(path)
    if "user_id" not in table:
        raise UsageError(f"--users {path} lacks column 'user_id'; found {[str(name) for name in table.columns]}")
    return table["user_id"] if hide is None else hide.pseudonyms(table["user_id"])


def _of_user(
    retriever: Retriever, user: str | None, hide: Pseudonymiser | None, k: int, how: dict[str, Any]
) -> pd.DataFrame:
    text = str(user) if hide is None else hide.pseudonym(str(user))
    return retriever.retrieve([read_id(text, retriever.histories.user_ids, "--user")], k, **how)


def _of_items(retriever: Retriever, items: str, k: int, exclude: str, at: str | None) -> pd.DataFrame:
    if at is not None:
        raise UsageError("--at is for users of the store; the events of --items have no times")
    given = [part.strip() for part in next(csv.reader([items], skipinitialspace=True), []) if part.strip()]
    if not given:
        raise UsageError("--items is empty; give item ids separated by commas")
    known = retriever.model.vocabulary.item_ids
    return retriever.retrieve_items(
        [read_id(item, known, "--items") for item in given], k, cast(Literal["seen", "none"], exclude)
    )


def _drawn(candidates: pd.DataFrame, title: str) -> Table:
    table = Table(title=title)
    for name in candidates.columns:
        table.column(name, "left" if name == "source" else "right")
    for row in candidates.itertuples(index=False):
        table.row(*(f"{value:.4f}" if isinstance(value, float) else value for value in row))
    return table
