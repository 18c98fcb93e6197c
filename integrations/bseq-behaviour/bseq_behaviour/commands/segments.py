"""``bseq segments``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bseq_behaviour.columns import USER
from bseq_behaviour.commands.opened import items_table, opened
from bseq_behaviour.commands.options import Log, Name, Picture, Place
from bseq_plugin.commands import (
    AS_IT_IS,
    Items,
    KeyFile,
    LogOptions,
    Table,
    check_output,
    note,
    out,
    read_table,
    reads_log,
    write_parquet,
)

if TYPE_CHECKING:
    import pandas as pd


@reads_log
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
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Clusters of users by their interest vectors, described by what their members do more than others.

    Example: `bseq segments store --segments 8 --items items.parquet --category department --out segments.parquet`

    A month later: `bseq segments store --previous segments.parquet --out segments-2.parquet`
    """
    from bseq_behaviour.categories import item_codes
    from bseq_behaviour.insight.segments import describe_segments, segment_users
    from bseq_behaviour.pictures import draw_segments

    for path in (output, picture):
        check_output(path)
    model, log = opened(place, events, reading, pseudonymise)
    codes_V, names = item_codes(model.vocabulary, items_table(items), category or name)
    old = None if previous is None else read_table(previous)
    segments, histories = segment_users(model, log, n_segments, min_events=min_events, previous=old, seed=seed)
    described = describe_segments(histories, segments.segment_U, segments.n_segments, codes_V, names)
    frame = segments.frame()
    write_parquet(frame, output)
    sizes = frame["segment"].value_counts().reindex(range(segments.n_segments), fill_value=0)
    _show(sizes, described)
    if old is not None:
        _compare(frame, old, previous)
    if picture is not None:
        draw_segments(sizes, described, picture)
    note.print(f"wrote {len(frame):,} users to {output}")


def _show(sizes: pd.Series, described: pd.DataFrame) -> None:
    shown = Table("segment", "users", "typical (times the crowd)")
    for segment, size in sizes.items():
        own = described[described["segment"] == segment]
        typical = ", ".join(f"{one} {lift:.1f}x" for one, lift in zip(own["name"], own["lift"], strict=True))
        shown.row(str(segment), f"{size:,}", typical)
    out.print(shown)


def _compare(frame: pd.DataFrame, old: pd.DataFrame, previous: Path | None) -> None:
    """Say how far the segments agree with those of the last refresh."""
    from bseq_behaviour.insight.segments import adjusted_rand_index

    both = frame.merge(old, on=USER, suffixes=("", "_before"))
    if len(both) < 2:
        note.print(f"{previous} and this log share {len(both)} user(s): there is nothing to agree on")
        return
    index = adjusted_rand_index(both["segment"].to_numpy(), both["segment_before"].to_numpy())
    note.print(f"agreement with {previous}: adjusted Rand index {index:.3f} over {len(both):,} users")
