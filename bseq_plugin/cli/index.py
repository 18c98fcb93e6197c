"""``bseq index report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bseq_plugin.cli.common import AsJson, KeyFile, StorePath, pseudonymiser, read_log
from bseq_plugin.cli.log_options import AS_IT_IS, LogOptions, reads_log
from bseq_plugin.console import Table, note, out
from bseq_plugin.errors import UsageError
from bseq_plugin.files import write_json

if TYPE_CHECKING:
    from bseq_plugin.publishing.index_report import IndexReport
    from bseq_plugin.publishing.measure import Measured

KINDS = ("exact", "flat", "ivf_flat", "hnsw", "ivf_pq")


group = typer.Typer(no_args_is_help=True, help="Measure indexes: report.")
group.callback()(lambda: None)  # a group even with a single command


@group.command()
@reads_log
def report(
    store: StorePath,
    test: Annotated[
        str | None, typer.Option("--test", help="Log of what came after the store: measures what the end task loses.")
    ] = None,
    indexes: Annotated[
        str, typer.Option("--indexes", help=f"Some of {','.join(KINDS)}.")
    ] = "exact,ivf_flat,hnsw,ivf_pq",
    k: Annotated[int, typer.Option("--k", help="Recall is measured among the k best.")] = 100,
    recall: Annotated[float, typer.Option("--recall", help="The target that is marked.")] = 0.99,
    queries: Annotated[int, typer.Option("--queries", help="Interests to ask with, spread over the users.")] = 1000,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder for index_report.json, pareto.png and pareto.svg.")
    ] = None,
    as_json: AsJson = False,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Recall, latency, memory and building time of each kind of index on this store, with real interests as queries.

    Example: `bseq index report store --test december.parquet --out report`
    """
    if not 0 < recall <= 1:
        raise UsageError(f"--recall {recall}: give a share, more than 0 and at most 1")
    kinds = _kinds(indexes)
    hide = pseudonymiser(pseudonymise)
    from bseq_plugin.publishing.index_report import index_report

    later = None if test is None else read_log(test, reading, hide)
    with note.status("measuring") as status:
        result = index_report(
            store,
            later,
            k=k,
            n_queries=queries,
            kinds=kinds,
            progress=lambda name: status.update(f"building and measuring {name}"),
        )
    if output is not None:
        from bseq_plugin.publishing.picture import draw_pareto

        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "index_report.json", result.as_json())
        for ending in ("png", "svg"):
            draw_pareto(result, recall, output / f"pareto.{ending}")
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=1))
        return
    _show(result, recall)
    if output is not None:
        note.print(f"wrote index_report.json, pareto.png and pareto.svg to {output}")


def _kinds(text: str) -> list[tuple[str, dict[str, Any]]]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or set(names) - set(KINDS):
        raise UsageError(f"--indexes {text!r}: use some of {','.join(KINDS)}")
    factories = {"flat": "Flat"}
    return [("exact", {}) if n == "exact" else ("faiss_cpu", {"factory": factories.get(n, n)}) for n in names]


def _show(result: IndexReport, recall: float) -> None:
    title = f"{result.version}: {result.n_items:,} x {result.dim}, {result.n_queries:,} interests as queries"
    table = Table(title=title)
    heads = ["", f"recall@{result.k}", "1: p50", "p95", "p99 ms", "256: p50", "p95", "p99 ms", "build s", "B a vector"]
    heads += ["recall lost", "NDCG lost"] if result.n_task_users else []
    for place, head in enumerate(heads):
        table.column(head, "left" if place == 0 else "right")
    best = result.best(recall)
    for row in result.rows:
        table.row(*_cells(row), style="bold" if row is best else "")
    out.print(table)
    for reason in result.skipped:
        note.print(f"left out: {reason}")
    if best is not None:
        out.print(f"quickest for one query with recall@{result.k} >= {recall}: {best.label}")


def _cells(row: Measured) -> list[str]:
    times = [f"{row.latency_ms[batch][name]:.2f}" for batch in ("1", "256") for name in ("p50", "p95", "p99")]
    cells = [row.label, f"{row.recall:.4f}", *times, f"{row.build_seconds:.1f}", f"{row.bytes_per_vector:.0f}"]
    return cells + [f"{row.task[f'{name} lost']:+.4f}" for name in ("recall", "ndcg") if row.task]
