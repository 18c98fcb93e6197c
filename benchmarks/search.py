"""A search of settings on validation data (Optuna's TPE) around the recipe `auto`; every trial is kept in a log.

    python benchmarks/search.py sequences.txt --trials 20 --log search.jsonl       # pip install -e '.[search]'
    python benchmarks/search.py sequences.txt --trials 10 --log search.jsonl       # goes on: ten more

A trial is one training with seed 0 and the settings below in place of those of `auto`; its value is the best validation
NDCG@10. The first trial is `auto` itself. The test part is never looked at. The log is Optuna's journal, JSON lines.
Writes benchmarks/results/search.json: all trials, best first, with the command and the commit.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
import torch
from speed import commit

from bseq_plugin import Recipe, read_events, train
from bseq_plugin.data.auto import auto_recipe
from bseq_plugin.data.events import Events

RESULTS = Path(__file__).parent / "results" / "search.json"


def suggested(trial: optuna.Trial, base: Recipe) -> Recipe:
    """``base`` with the settings of a trial."""
    options = dict(base.encoder_options)
    options["filter_weight"] = trial.suggest_float("filter_weight", 0.0, 0.9, step=0.1)
    options["n_blocks"] = trial.suggest_int("n_blocks", 1, 2)
    return base.replace(
        encoder_options=options,
        dropout=trial.suggest_float("dropout", 0.1, 0.6, step=0.1),
        dim=trial.suggest_categorical("dim", [64, 128]),
        table_learning_rate=trial.suggest_float("table_learning_rate", 0.05, 0.4, log=True),
        learning_rate=trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        loss_options={"label_smoothing": trial.suggest_categorical("label_smoothing", [0.0, 0.05, 0.1, 0.2])},
    )


def as_trial(recipe: Recipe) -> dict[str, Any]:
    """The settings that ``recipe`` has already, for the first trial."""
    return {
        "filter_weight": recipe.encoder_options["filter_weight"],
        "n_blocks": 2,
        "dropout": recipe.dropout,
        "dim": recipe.dim,
        "table_learning_rate": recipe.table_learning_rate,
        "learning_rate": recipe.learning_rate,
        "label_smoothing": recipe.loss_options.get("label_smoothing", 0.0),
    }


def quality(trial: optuna.Trial, events: Events, base: Recipe) -> float:
    """Best validation NDCG@10 of a training; epochs and seconds are kept with the trial."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(events, suggested(trial, base), Path(folder) / "run", progress=False)
        for name in ("best_epoch", "epochs", "train_seconds"):
            trial.set_user_attr(name, run.info[name])
        return float(run.info["validation"]["ndcg@10"])


def main() -> None:
    """Search, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--log", type=Path, default=Path("search.jsonl"))
    parser.add_argument("--set", action="append", default=[], help="key=value over `auto`, in all trials")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    events = read_events(asked.sequences)
    base = (
        auto_recipe(events).replace(split="leave-one-out", mask_seen=True, seed=0, members=1).with_settings(asked.set)
    )
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(asked.log)))
    study = optuna.create_study(
        storage=storage,
        study_name=Path(asked.sequences).name,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5),
    )
    if not study.trials:
        study.enqueue_trial(as_trial(base))
    study.optimize(lambda trial: quality(trial, events, base), n_trials=asked.trials, show_progress_bar=True)
    done = [trial for trial in study.trials if trial.value is not None]
    rows = [
        {"number": trial.number, "ndcg@10": trial.value, **trial.params, **trial.user_attrs}
        for trial in sorted(done, key=lambda trial: -float(trial.value or 0.0))
    ]
    for row in rows[:10]:
        print(
            "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    RESULTS.parent.mkdir(exist_ok=True)
    document = {
        "command": shlex.join(["python", "benchmarks/search.py", *(Path(a).name for a in sys.argv[1:])]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {asked.threads} threads, torch {torch.__version__}",
        "figures": {"base": base.model_dump(mode="json"), "trials": rows},
        "claims": [],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
