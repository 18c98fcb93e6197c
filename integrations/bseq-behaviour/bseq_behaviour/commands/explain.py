"""``bseq explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bseq_plugin as bseq
from bseq_behaviour.columns import ITEM
from bseq_behaviour.commands.opened import items_table, opened
from bseq_behaviour.commands.options import At, Log, Name, Picture, Place
from bseq_plugin.commands import (
    AS_IT_IS,
    AsJson,
    Items,
    KeyFile,
    ListFile,
    LogOptions,
    Table,
    check_output,
    note,
    out,
    pseudonymiser,
    read_id,
    reads_log,
    write_parquet,
)

if TYPE_CHECKING:
    from bseq_behaviour.insight.explain import Explanation


@reads_log
def explain(
    place: Place,
    user: Annotated[str, typer.Option("--user", help="A user id.")],
    item: Annotated[
        str | None, typer.Option("--item", help="An item id; default: the best one new to the user.")
    ] = None,
    picture: Picture = None,
    as_json: AsJson = False,
    file: ListFile = None,
    at: At = None,
    events: Log = None,
    items: Items = None,
    name: Name = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Which past events pulled an item up or down for a user: the score without each of them.

    Example: `bseq explain store --user 42 --item 1001 --items items.parquet --name name --picture why.png`
    """
    import numpy as np

    from bseq_behaviour.insight.explain import best_new_item
    from bseq_behaviour.insight.explain import explain as run_explain
    from bseq_behaviour.pictures import draw_explanation

    for path in (picture, file):
        check_output(path)
    hide = pseudonymiser(pseudonymise)
    model, log = opened(place, events, reading, pseudonymise, hides_user=True)
    wanted = read_id(user if hide is None else hide.pseudonym(user), log.user_ids, "--user")
    [places] = np.nonzero(log.user_ids == wanted)
    if not len(places):
        raise bseq.UsageError(f"--user {user!r} is not in the log; its ids look like {log.user_ids[:1].tolist()}")
    history = log.take(places)
    if at is not None:
        history = history.known_at(bseq.instant_us(at))
    candidate = best_new_item(model, history) if item is None else read_id(item, model.vocabulary.item_ids, "--item")
    explanation = run_explain(model, history, candidate)
    names = _item_names(items, name)
    if as_json:
        _print_json(explanation)
    else:
        _print_table(explanation, names)
    if file is not None:
        write_parquet(explanation.events, file)
        note.print(f"wrote {file}")
    if picture is not None:
        draw_explanation(explanation, names, picture)
        note.print(f"drew {picture}")


def _print_json(explanation: Explanation) -> None:
    rows = json.loads(explanation.events.to_json(orient="records", date_format="iso"))
    head = {"item_id": explanation.candidate, "score": explanation.score, "baseline": explanation.baseline}
    typer.echo(json.dumps({**head, "events": rows}, default=str))


def _print_table(explanation: Explanation, names: dict[Any, str]) -> None:
    title = f"{names.get(explanation.candidate, explanation.candidate)}: {explanation.score:.4f}"
    shown = Table(*explanation.events.columns, title=title)
    strongest = explanation.events.loc[explanation.events["effect"].abs().nlargest(15).index]
    for row in strongest.itertuples(index=False):
        cells = [f"{cell:+.4f}" if isinstance(cell, float) else str(cell) for cell in row[1:]]
        shown.row(str(names.get(row[0], row[0])), *cells)
    out.print(shown)


def _item_names(items: Path | None, name: str | None) -> dict[Any, str]:
    if name is None:
        return {}
    table = items_table(items)
    if table is None or name not in table or ITEM not in table:
        raise bseq.UsageError(f"--name {name!r} needs an items table with the columns item_id and {name!r} (--items)")
    return dict(zip(table[ITEM].tolist(), table[name].astype("str"), strict=True))
