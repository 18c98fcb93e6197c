"""``bseq segments``, ``bseq anomalies`` and ``bseq explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bseq_plugin.cli.behaviour import At, Log, Place, opened
from bseq_plugin.cli.common import (
    Columns,
    Items,
    KeyFile,
    Unit,
    as_id,
    check_output,
    note,
    out,
    pseudonymiser,
    read_table,
    write_parquet,
)
from bseq_plugin.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from bseq_plugin.data.vocabulary import Vocabulary

Name = Annotated[str | None, typer.Option("--name", help="Column of --items with what people call an item.")]
Picture = Annotated[Path | None, typer.Option("--picture", help="PNG to draw (needs matplotlib).")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(segments)
    app.command()(anomalies)
    app.command()(explain)


def segments(
    place: Place,
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: user_id, segment, distance.")],
    n_segments: Annotated[int, typer.Option("--segments", help="How many.")] = 8,
    previous: Annotated[
        Path | None, typer.Option("--previous", help="File of the last refresh: its segments keep their numbers.")
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", help="Column of --items to describe segments by; default: the items.")
    ] = None,
    min_events: Annotated[int, typer.Option("--min-events", help="Users with fewer events are left out.")] = 5,
    picture: Picture = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    events: Log = None,
    items: Items = None,
    name: Name = None,
    columns: Columns = None,
    timestamp_unit: Unit = None,
    pseudonymise: KeyFile = None,
) -> None:
    """Clusters of users by their interest vectors, described by what their members do more than others.

    Example: `bseq segments store --segments 8 --items items.parquet --category department --out segments.parquet`

    A month later: `bseq segments store --previous segments.parquet --out segments-2.parquet`
    """
    import numpy as np

    from bseq_plugin.behaviour.segments import adjusted_rand_index, describe_segments, fit_segments
    from bseq_plugin.report.behaviour import draw_segments

    for path in (output, picture):
        check_output(path)
    if min_events < 1:
        raise UsageError(f"--min-events {min_events}: give 1 or more")
    model, log = opened(place, events, columns, timestamp_unit, pseudonymise)
    table = None if items is None else read_table(items)
    known = log.take(np.flatnonzero(log.known().lengths >= min_events))
    if known.n_users < n_segments:
        raise UsageError(f"{known.n_users} users have {min_events} events; ask for fewer segments than {n_segments}")
    # without the popularity columns: how much one follows the crowd is no taste
    vectors_UD = model.encode(known)[:, :, : model.recipe.vector_dim].flatten(1).numpy()
    old = None if previous is None else read_table(previous)
    found = fit_segments(known.user_ids, vectors_UD, n_segments, old, seed)
    codes_V, names = category_codes(model.vocabulary, table, category, name)
    described = describe_segments(known, found.segment_U, found.n_segments, codes_V, names)
    frame = found.frame()
    write_parquet(frame, output)
    sizes = frame["segment"].value_counts().reindex(range(found.n_segments), fill_value=0)
    shown = Table("segment", "users", "typical (times the crowd)", title_justify="left")
    for segment, size in sizes.items():
        own = described[described["segment"] == segment]
        typical = ", ".join(f"{one} {lift:.1f}x" for one, lift in zip(own["name"], own["lift"], strict=True))
        shown.add_row(str(segment), f"{size:,}", escape(typical))
    out.print(shown)
    if old is not None:
        both = frame.merge(old, on="user_id", suffixes=("", "_before"))
        if len(both) > 1:
            index = adjusted_rand_index(both["segment"].to_numpy(), both["segment_before"].to_numpy())
            note.print(f"agreement with {previous}: adjusted Rand index {index:.3f} over {len(both):,} users")
        else:
            note.print(f"{previous} and this log share {len(both)} user(s): there is nothing to agree on")
    if picture is not None:
        draw_segments(sizes, described, picture)
    note.print(f"wrote {len(frame):,} users to {output}")


def category_codes(
    vocabulary: Vocabulary, items: pd.DataFrame | None, category: str | None, name: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [V + 1], names [G]): each item by itself, or the categories of the items table."""
    import numpy as np
    import pandas as pd

    column = category or name
    if column is None:
        return np.arange(-1, vocabulary.n_items), np.array([str(one) for one in vocabulary.item_ids.tolist()], object)
    if items is None or column not in items or "item_id" not in items:
        raise UsageError(f"{column!r} needs an items table with the columns item_id and {column!r} (--items)")
    values = items.drop_duplicates("item_id").set_index("item_id")[column].reindex(vocabulary.item_ids)
    codes, names = pd.factorize(values, sort=True)
    return np.concatenate([[-1], codes]).astype(np.int64), np.asarray([str(one) for one in names], object)


def anomalies(
    place: Place,
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: a row a user who can be judged.")],
    at: At = None,
    days: Annotated[float, typer.Option("--days", help="Length of the window that is judged.")] = 14.0,
    rate: Annotated[float, typer.Option("--rate", help="False alarms asked for, as a share of clean users.")] = 0.01,
    windows: Annotated[int, typer.Option("--windows", help="Windows before that show what is normal.")] = 4,
    min_events: Annotated[int, typer.Option("--min-events", help="Fewer events in a window say nothing.")] = 5,
    min_history: Annotated[int, typer.Option("--min-history", help="Nor do fewer events before it.")] = 20,
    in_sample: Annotated[
        bool,
        typer.Option("--in-sample", help="Also windows that the encoder was trained on; surprise is then too low."),
    ] = False,
    event_file: Annotated[
        Path | None, typer.Option("--events-out", help="Also write the surprise of every event of the window here.")
    ] = None,
    events: Log = None,
    columns: Columns = None,
    timestamp_unit: Unit = None,
    pseudonymise: KeyFile = None,
) -> None:
    """Users who lately behave unlike themselves: other items, a burst, other hours.

    Each user's window is compared with their own past and with clean windows before; so many windows after the
    encoder's training are needed, and one more. Thresholds keep the false-alarm rate that is asked for.

    Example: `bseq anomalies runs/today --events log.parquet --days 14 --rate 0.01 --out anomalies.parquet`
    """
    import numpy as np

    from bseq_plugin.behaviour.anomalies import Detector, anomalous_events
    from bseq_plugin.behaviour.anomalies import anomalies as run_anomalies
    from bseq_plugin.behaviour.signals import SIGNALS, Window, window_signals
    from bseq_plugin.data.events import instant_us

    for path in (output, event_file):
        check_output(path)
    if not 0 < rate < 1:
        raise UsageError(f"--rate {rate}: give a share between 0 and 1")
    window = Window(days, min_events, min_history)
    model, log = opened(place, events, columns, timestamp_unit, pseudonymise)
    if log.timestamps is None or not log.n_events:
        raise UsageError("anomalies are of a window of days: the log has no times")
    at_us = int(np.asarray(log.timestamps).max()) + 1 if at is None else instant_us(at)
    with note.status("comparing"):
        detector = Detector.fit(model, log, at_us, window, windows, in_sample)
        signals = window_signals(model, log, at_us, window, in_sample)
        found = run_anomalies(log, signals, detector, rate)
    write_parquet(found, output)
    shown = Table("user", "p", "leading", *SIGNALS, title_justify="left")
    for row in found[found["flagged"]].head(10).to_dict("records"):
        cells = [f"{row[name]:.2f}" for name in SIGNALS]
        shown.add_row(escape(str(row["user_id"])), f"{row['p_value']:.4f}", str(row["leading"]), *cells)
    out.print(shown)
    note.print(f"{int(found['flagged'].sum())} of {len(found):,} users flagged at a rate of {rate:g}; wrote {output}")
    if event_file is not None:
        write_parquet(anomalous_events(log, model, signals), event_file)
        note.print(f"wrote {event_file}")


def explain(
    place: Place,
    user: Annotated[str, typer.Option("--user", help="A user id.")],
    item: Annotated[
        str | None, typer.Option("--item", help="An item id; default: the best one new to the user.")
    ] = None,
    picture: Picture = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    at: At = None,
    events: Log = None,
    items: Items = None,
    name: Name = None,
    columns: Columns = None,
    timestamp_unit: Unit = None,
    pseudonymise: KeyFile = None,
) -> None:
    """Which past events pulled an item up or down for a user: the score without each of them.

    Example: `bseq explain store --user 42 --item 1001 --items items.parquet --name name --picture why.png`
    """
    import numpy as np

    from bseq_plugin.behaviour.explain import best_new_item
    from bseq_plugin.behaviour.explain import explain as run_explain
    from bseq_plugin.data.events import instant_us
    from bseq_plugin.report.behaviour import draw_explanation

    check_output(picture)
    hide = pseudonymiser(pseudonymise)
    model, log = opened(place, events, columns, timestamp_unit, pseudonymise, hides_user=True)
    wanted = as_id(user if hide is None else hide.pseudonym(user), log.user_ids, "--user")
    [places] = np.nonzero(log.user_ids == wanted)
    if not len(places):
        raise UsageError(f"--user {user!r} is not in the log; its ids look like {log.user_ids[:1].tolist()}")
    history = log.take(places)
    if at is not None:
        history = history.between(None, instant_us(at))
    candidate = best_new_item(model, history) if item is None else as_id(item, model.vocabulary.item_ids, "--item")
    found = run_explain(model, history, candidate)
    names = _item_names(items, name)
    if as_json:
        rows = json.loads(found.events.to_json(orient="records", date_format="iso"))
        head = {"item_id": found.candidate, "score": found.score, "baseline": found.baseline}
        typer.echo(json.dumps({**head, "events": rows}, default=str))
    else:
        title = escape(f"{names.get(found.candidate, found.candidate)}: {found.score:.4f}")
        shown = Table(*found.events.columns, title=title, title_justify="left")
        strongest = found.events.loc[found.events["effect"].abs().nlargest(15).index]
        for row in strongest.itertuples(index=False):
            cells = [f"{cell:+.4f}" if isinstance(cell, float) else str(cell) for cell in row[1:]]
            shown.add_row(escape(str(names.get(row[0], row[0]))), *map(escape, cells))
        out.print(shown)
    if picture is not None:
        draw_explanation(found, names, picture)
        note.print(f"drew {picture}")


def _item_names(items: Path | None, name: str | None) -> dict[Any, str]:
    if name is None:
        return {}
    table = None if items is None else read_table(items)
    if table is None or name not in table or "item_id" not in table:
        raise UsageError(f"--name {name!r} needs an items table with the columns item_id and {name!r} (--items)")
    return dict(zip(table["item_id"].tolist(), table[name].astype("str"), strict=True))
