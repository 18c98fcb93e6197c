"""``bseq store list|verify|rollback|gc|delta|merge``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from bseq_plugin.cli.common import AsJson, StorePath, read_table
from bseq_plugin.cli.listing import ListFile, show
from bseq_plugin.console import Table, joined, note, out, styled
from bseq_plugin.errors import StoreError, UsageError

group = typer.Typer(no_args_is_help=True, help="Look after a store: list, verify, rollback, gc, delta, merge.")


@group.command("list")
def list_versions(store: StorePath, as_json: AsJson = False, file: ListFile = None) -> None:
    """The versions of a store, oldest first, as their manifests describe them; nothing is verified.

    Example: `bseq store list store`
    """
    rows = [_row(store, name) for name in _store(store).versions()]
    show(rows, lambda: _drawn(store, rows), as_json, file)


def _drawn(store: Path, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=str(store))
    for head in ("version", "", "created", "index", "items", "users", "MB"):
        table.column(head, whole=head == "version")
    for row in rows:
        marks = ", ".join(word for word in ("current", "in use") if row[word.replace(" ", "_")])
        megabytes = f"{row['bytes'] / 1e6:.1f}"
        made = row["created_at"][:16].replace("T", " ")
        cells = (row["version"], marks, made, row["index"], row["n_items"], row["n_users"], megabytes)
        table.row(*cells)
    return table


@group.command()
def verify(
    store: StorePath,
    version: Annotated[str | None, typer.Argument(help="One version; default: all of them.")] = None,
    as_json: AsJson = False,
    file: ListFile = None,
) -> None:
    """Check every byte of one or all versions against the manifests. Ends with 1 if one is damaged.

    Example: `bseq store verify store`
    """
    opened, rows = _store(store), []
    opened.current_name()
    for name in [version] if version else opened.versions():
        try:
            rows.append({"version": opened.verify(name).name, "intact": True, "error": None})
        except StoreError as error:
            rows.append({"version": name, "intact": False, "error": str(error)})

    def draw() -> None:
        for row in rows:
            state = styled("intact", "green") if row["intact"] else styled("damaged", "red")
            out.print(joined(state, f"  {row['version']}" if row["intact"] else f" {row['error']}"))

    show(rows, draw, as_json, file)
    if not all(row["intact"] for row in rows):
        raise typer.Exit(1)


@group.command()
def rollback(
    store: StorePath,
    version: Annotated[str | None, typer.Argument(help="Default: the newest intact one before the current.")] = None,
) -> None:
    """Make an earlier version current again, after every byte of it was checked.

    Example: `bseq store rollback store`
    """
    opened = _store(store)
    if version is None:
        version = opened.rollback()
    else:
        opened.point_to(version)
    note.print(f"{version} is current in {store}")


@group.command()
def gc(
    store: StorePath,
    keep: Annotated[int, typer.Option("--keep", help="How many of the newest versions stay.")] = 3,
    grace: Annotated[float, typer.Option("--grace", help="Seconds for which any version stays.")] = 600.0,
    as_json: AsJson = False,
    file: ListFile = None,
) -> None:
    """Remove old versions; the current one and those that a process reads always stay.

    Example: `bseq store gc store --keep 3`
    """
    from bseq_plugin.store.retention import collect_garbage

    done = collect_garbage(_store(store), keep, grace)
    rows: list[dict[str, Any]] = [{"version": name, "removed": True, "why": None} for name in done.removed]
    rows += [{"version": name, "removed": False, "why": why} for name, why in done.kept.items()]

    def draw() -> None:
        for row in rows:
            out.print(f"removed {row['version']}" if row["removed"] else f"kept    {row['version']}  {row['why']}")

    show(rows, draw, as_json, file)


@group.command()
def delta(
    store: StorePath,
    items: Annotated[
        Path | None,
        typer.Option("--items", help="Table with item_id and vector: new items, or new vectors of known ones."),
    ] = None,
    removed: Annotated[Path | None, typer.Option("--removed", help="Table with item_id: not shown any more.")] = None,
) -> None:
    """Publish the current version with some items new, changed or removed; its index is kept as it is.

    Example: `bseq store delta store --items new.parquet --removed sold_out.csv`
    """
    import numpy as np
    import torch

    from bseq_plugin.publishing.delta import publish_delta

    given = None if items is None else read_table(items)
    gone = None if removed is None else read_table(removed)
    for name, table, columns in (("--items", given, {"item_id", "vector"}), ("--removed", gone, {"item_id"})):
        if table is not None and columns - set(table.columns):
            raise UsageError(f"{name} needs the columns {', '.join(sorted(columns))}; found {list(table.columns)}")
    rows = None
    if given is not None:
        lengths = {np.size(vector) for vector in given["vector"]}
        if len(lengths) > 1:
            raise UsageError(
                f"--items has vectors of lengths {sorted(lengths)}; give all of them the width of the model"
            )
        try:
            rows = torch.from_numpy(np.array(given["vector"].tolist(), np.float32).reshape(len(given), -1))
        except (ValueError, TypeError):
            example = str(given["vector"].tolist()[0])[:40]
            raise UsageError(f"--items: column 'vector' holds {example!r}; give lists of numbers, in Parquet") from None
    ids: Any = [] if given is None else given["item_id"]
    version = publish_delta(_store(store), ids, rows, removed=[] if gone is None else gone["item_id"])
    note.print(f"published {version} in {store}")


@group.command()
def merge(
    store: StorePath,
    index: Annotated[str | None, typer.Option("--index", help="Index by name; default: the one it has.")] = None,
) -> None:
    """Build the index of the current version again, over all items that are left after deltas.

    Example: `bseq store merge store`
    """
    from bseq_plugin.publishing.delta import merge_delta

    version = merge_delta(_store(store), index=index)
    note.print(f"published {version} in {store}")


def _store(path: Path) -> Any:
    from bseq_plugin.store.store import Store

    return Store(path)


def _row(path: Path, name: str) -> dict[str, Any]:
    from bseq_plugin.store.disk import parse_object, read_small
    from bseq_plugin.store.retention import in_use
    from bseq_plugin.store.version import MANIFEST, MAX_MANIFEST_BYTES

    store = _store(path)
    manifest, current = {}, None
    with contextlib.suppress(StoreError):
        manifest = parse_object(read_small(store.folder(name) / MANIFEST, MAX_MANIFEST_BYTES), name)
    with contextlib.suppress(StoreError):
        current = store.current_name()
    files, index = manifest.get("files"), manifest.get("index")
    sizes = [entry.get("bytes", 0) for entry in files.values()] if isinstance(files, dict) else []
    return {
        "version": name,
        "current": name == current,
        "in_use": in_use(store.folder(name)),
        "created_at": manifest.get("created_at"),
        "index": index.get("name") if isinstance(index, dict) else None,
        "n_items": manifest.get("n_items"),
        "n_users": manifest.get("n_users"),
        "bytes": sum(sizes),
    }
