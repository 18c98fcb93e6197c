"""``bseq tune-text``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import bseq_plugin as bseq
from bseq_plugin.commands import note, read_table


def tune_text(
    run: Annotated[Path, typer.Argument(help="A finished run, whose interests and item rows are learned from.")],
    items: Annotated[Path, typer.Option("--items", help="The items table.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the tuned model; an unfinished one goes on.")],
    columns: Annotated[list[str], typer.Option("--column", help="Of the items table; may be given several times.")],
    model: Annotated[str, typer.Option("--model", help="Directory of the weights to begin with.")] = "default",
    method: Annotated[str, typer.Option("--method", help="lora, last_layer, full, or frozen.")] = "lora",
    rank: Annotated[int, typer.Option("--rank", help="Of LoRA.")] = 8,
    steps: Annotated[int, typer.Option("--steps")] = 500,
    batch: Annotated[int, typer.Option("--batch", help="Events of a step.")] = 64,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Read of a text while tuning.")] = 32,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Default: by the method.")] = None,
    per_user: Annotated[int, typer.Option("--per-user", min=1, help="Events of each user that are learned from.")] = 4,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Tune the Transformer that reads item texts on the behaviour that a run has learned.

    Example: `bseq tune-text runs/today --items items.parquet --column brand --column name --out
    tuned`, then `bseq train ... --set 'items.encoders=[{ name = "text", model = "tuned" }]'`
    """
    from bseq_transformers.item_tuning import ItemTextTuner, ItemTuningOptions, Pairs, learned_from
    from bseq_transformers.tuned_model import check_folder

    given = {"columns": columns, "model": model, "method": method, "rank": rank, "steps": steps, "batch": batch}
    given |= {"max_tokens": max_tokens, "learning_rate": learning_rate, "seed": seed}
    options = bseq.parse_options(ItemTuningOptions, given, "tune-text")
    check_folder(out)  # what can't be written is refused before the work, not after
    interests, histories = learned_from(run)
    tuner = ItemTextTuner(interests, read_table(items), options)
    learn, of = tuner.trained
    note.print(f"{learn:,} of {of:,} parameters of the Transformer learn ({learn / of:.1%})")
    losses = tuner.fit(Pairs.of(interests, histories, per_user), out, progress=True)
    note.print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; the tuned model is in {out}")
