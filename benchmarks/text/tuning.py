"""The Transformer of the item texts tuned on behaviour: what that costs, and whether cold items are found better.

One training of ids alone is the teacher and gives the rows; each tuned Transformer only says anew whose neighbour an
item is. So the training is the same for all of them.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bseq_transformers.item_tuning import ItemTextTuner, ItemTuningOptions, Pairs, learned_from

from benchmarks.text.measure import figures, of_ids
from benchmarks.text.problems import Problem
from bseq_plugin import InterestModel, Recipe, train
from bseq_plugin.data.items import ItemVectors
from bseq_plugin.model.neighbours import NeighbourItems, blocks_of, completed
from bseq_plugin.model.new_items import with_new_items

UNTUNED = "untuned"
METHODS = ("lora", "full", "last_layer")
PER_USER = 2


def tuning(problem: Problem, recipe: Recipe, options: ItemTuningOptions) -> dict[str, Any]:
    """Figures of each method, with parameters, seconds and memory: with the Transformer's vectors, and projected."""
    read = {"columns": list(problem.columns), "max_tokens": options.max_tokens}
    recipe = recipe.replace(items={"encoders": [{"name": "text", **read}]})
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = train(problem.training, recipe, Path(folder) / "run", items=problem.items, progress=False)
        bare = of_ids(run, InterestModel.from_run(run.path))
        tell(found, UNTUNED, asked(problem, bare, recipe))
        for method in METHODS:
            out = Path(folder) / method
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                given = options.model_copy(update={"method": method})
                costs = alone.submit(tuned, run.path, problem.items, given, out).result()
            for name, projected in ((method, False), (f"{method}, projected", True)):
                own = {**read, "model": str(out), "projected": projected}
                of_method = asked(problem, bare, recipe.replace(items={"encoders": [{"name": "text", **own}]}))
                tell(found, name, {**costs, **of_method})
    return {"seed": recipe.training.seed, **found}


def tell(found: dict[str, Any], name: str, figures_of: dict[str, float]) -> None:
    """Keep them, and print them as they come."""
    found[name] = figures_of
    print(f"    {name:<22} " + "  ".join(f"{figure} {value:.4g}" for figure, value in figures_of.items()), flush=True)


def asked(problem: Problem, bare: InterestModel, recipe: Recipe) -> dict[str, float]:
    """Figures with the item encoders of this recipe."""
    model = placed(bare, problem.items, recipe)
    model = with_new_items(model, problem.items[problem.items["item_id"].isin(problem.cold)])
    return figures(problem, model, False, reads_cold=True)


def tuned(run: Path, items: pd.DataFrame, options: ItemTuningOptions, out: Path) -> dict[str, float]:
    """One tuning, in a process of its own for its peak memory (MB)."""
    torch.set_num_threads(1)
    model, histories = learned_from(run)
    wanted = min(histories.n_users, options.steps * options.batch // PER_USER)
    users = np.random.default_rng(options.seed).choice(histories.n_users, wanted, replace=False)
    pairs = Pairs.of(model, histories.take(np.sort(users)), PER_USER)
    tuner = ItemTextTuner(model, items, options)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak from here on, and not of what was before
    started = time.perf_counter()
    losses = tuner.fit(pairs, out)
    seconds, peak = time.perf_counter() - started, _peak_mb()
    learn, of = tuner.trained
    first, last = (float(np.mean(part)) for part in (losses[:20], losses[-20:]))
    loss = {"first loss": first, "last loss": last}
    return {"learned": learn, "share": learn / of, "seconds": seconds, "peak_mb": peak, **loss}


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


@torch.no_grad()
def placed(bare: InterestModel, items: pd.DataFrame, recipe: Recipe) -> InterestModel:
    """What an export with these item encoders would have left of a model of ids alone."""
    vectors = ItemVectors.from_frame(items, recipe.items.encoders, bare.vocabulary, False)
    said = NeighbourItems(vectors.vectors_VE.shape[1], vectors)
    keys_VK = said.keys_of(torch.from_numpy(vectors.vectors_VE))
    table_VD, counts_V = bare.item_table_VD, bare.vocabulary.item_counts
    rows = [part for _, part in completed(keys_VK, counts_V, recipe.items.prior_events, lambda: blocks_of(table_VD))]
    model = bare.with_rows(bare.vocabulary.item_ids, torch.cat(rows)[1:])
    own = bare.recipe.replace(items={"encoders": recipe.items.encoders})
    state = dict(model.encoder.state_dict()) | {
        f"item_tower.encoded.{name}": value for name, value in said.state_dict().items()
    }
    state["item_tower.encoded.keys_VK"] = keys_VK
    return InterestModel.from_state(own, bare.vocabulary, state, bare.item_priors_VP, bare.trained_until_us)
