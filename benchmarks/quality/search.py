"""What each switch is worth on validation data, and a search (Optuna's TPE) around the recipe `auto`; all is logged.

    make bench-search ARGS="sequences.txt --log search.jsonl"                 # pip install -e '.[search]'
    make bench-search ARGS="sequences.txt --trials 10 --log search.jsonl"     # goes on: ten more

A trial is one training with the settings below in place of those of `auto`; its value is the best validation
NDCG@10. The first trial is `auto` itself with one member; then every switch is thrown alone; then the search combines
them. The test part is never looked at. The log is Optuna's journal, JSON lines.
Writes benchmarks/results/search.json: all trials, best first, with the command and the commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from benchmarks import harness
from bseq_plugin import Recipe, read_events, train
from bseq_plugin.data.auto_recipe import auto_recipe
from bseq_plugin.events.events import Events

AS_AUTO = "as auto"
# of each switch the values that `auto` does not have, as settings of a recipe
SWITCHES: dict[str, dict[str, list[str]]] = {
    "seed": {"1": ["training.seed=1"], "2": ["training.seed=2"]},  # what chance is worth
    "loss": {"not smoothed": ["loss.label_smoothing=0.0"], "gbce": ["loss=gbce"], "bce": ["loss=bce"]},
    "candidates": {"all": ["negatives=all"], "256": ["negatives=mixed", "negatives.n=256"]},
    "targets": {"prefix": ["objective=prefix"]},
    "dim": {"64": ["vectors.dim=64"], "128": ["vectors.dim=128"]},
    "dropout": {share: [f"encoder.dropout={share}"] for share in ("0.2", "0.35", "0.5")},
    "embedding dropout": {"0.2": ["encoder.embedding_dropout=0.2"]},
    "event dropout": {"0.1": ["encoder.event_dropout=0.1"]},
    "filter": {share: [f"encoder.filter_weight={share}"] for share in ("0.0", "0.4", "0.9")},
    "blocks": {number: [f"encoder.n_blocks={number}"] for number in ("1", "3")},
    "norm": {"post": ["encoder.norm=post"]},
    "begin": {"mean": ["encoder.begin=mean"]},
    "positions": {"none": ["encoder.position=none"]},
    "score": {"cosine": ["vectors.similarity=cosine"]},
    "schedule": {"constant": ["training.schedule=constant"]},
    "learning rate": {"0.0005": ["training.dense.rate=0.0005"], "0.002": ["training.dense.rate=0.002"]},
    "table's learning rate": {"0.1": ["training.table.rate=0.1"], "0.4": ["training.table.rate=0.4"]},
}


def tried(alone: str | None = None, value: str = AS_AUTO) -> dict[str, str]:
    """The parameters of ``auto``, or of one switch thrown by itself."""
    return {name: value if name == alone else AS_AUTO for name in SWITCHES}


def as_recipe(params: dict[str, str], base: Recipe) -> Recipe:
    """``base`` with these switches thrown."""
    return base.with_settings([one for name, value in params.items() for one in SWITCHES[name].get(value, [])])


def quality(trial: optuna.Trial, events: Events, base: Recipe) -> float:
    """Best validation NDCG@10 of a training; epochs and seconds are kept with the trial."""
    params = {name: str(trial.suggest_categorical(name, [AS_AUTO, *values])) for name, values in SWITCHES.items()}
    with tempfile.TemporaryDirectory() as folder:
        run = train(events, as_recipe(params, base), Path(folder) / "run", progress=False)
        for name in ("best_epoch", "epochs", "train_seconds"):
            trial.set_user_attr(name, run.info[name])
        return float(run.info["validation"]["ndcg@10"])


def results(study: optuna.Study) -> list[dict[str, Any]]:
    """What came of each trial, best first; ``gain`` is over `auto` itself."""
    done = [trial for trial in study.trials if trial.value is not None]
    auto = next((float(trial.value or 0.0) for trial in done if trial.params == tried()), math.nan)
    return [
        {
            "number": trial.number,
            "ndcg@10": trial.value,
            "gain": float(trial.value or 0.0) - auto,
            "changed": ", ".join(f"{k}: {v}" for k, v in trial.params.items() if v != AS_AUTO) or "nothing",
            **trial.user_attrs,
        }
        for trial in sorted(done, key=lambda trial: -float(trial.value or 0.0))
    ]


def main() -> None:
    """Search, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences")
    parser.add_argument("--trials", type=int, help="default: what is left of auto and each switch alone, and ten more")
    parser.add_argument("--log", type=Path, default=Path("search.jsonl"))
    parser.add_argument("--set", action="append", default=[], help="key=value over `auto`, in all trials")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # its lines would tear the progress bar
    events = read_events(asked.sequences)
    base = (
        auto_recipe(events)
        .replace(vectors={"ensemble": 1}, split={"kind": "leave_one_out", "mask_seen": True}, training={"seed": 0})
        .with_settings(asked.set)
    )
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(asked.log)))
    # other switches or another recipe are another study, in the same log
    meaning = json.dumps([SWITCHES, base.as_dict()], sort_keys=True)
    study = optuna.create_study(
        storage=storage,
        study_name=f"{Path(asked.sequences).name}-{hashlib.sha256(meaning.encode()).hexdigest()[:12]}",
        direction="maximize",
        load_if_exists=True,
        # seeds are tried alone, to see what chance is worth; a search over them would find luck
        sampler=optuna.samplers.PartialFixedSampler(
            {"seed": AS_AUTO}, optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
        ),
    )
    alone = [tried(name, value) for name, values in SWITCHES.items() for value in values]
    first = [tried(), *(params for params in alone if as_recipe(params, base) != base)]
    begun = [t.params or t.system_attrs.get("fixed_params") for t in study.trials if t.state != TrialState.FAIL]
    for params in first:
        if params not in begun:
            study.enqueue_trial(params)
    waiting = sum(trial.state == TrialState.WAITING for trial in study.trials)
    n_trials = waiting + 10 if asked.trials is None else asked.trials
    study.optimize(lambda trial: quality(trial, events, base), n_trials=n_trials, show_progress_bar=True)
    rows = results(study)
    for row in rows:
        print(f"{row['ndcg@10']:.4f}  {row['gain']:+.4f}  {row['train_seconds']:5.0f} s  {row['changed']}")
    figures = {"base": base.as_dict(), "trials": rows}
    harness.write("search", figures, threads=asked.threads)


if __name__ == "__main__":
    main()
