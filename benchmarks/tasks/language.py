"""Behaviour as language: what a Transformer that reads a history in words says of churn and purchases.

    make bench-language ARGS="--seeds 0,1,2 --threads 1"       # needs: pip install -e '.[demo,rankers]' and peft
    make bench-language ARGS="--households 200 --epochs 1"     # to see that it runs

The grocery log, split in time as `make bench-tasks` splits it. Two tables for each task:

- tuning: the same small Transformer, whose head alone (frozen), low-rank additions (LoRA), or all parameters (full)
  learn from the texts of one instant in September. Each runs in a process of its own, for its peak memory. Seed 0 of
  --seeds only, unless --tuning-seeds says more.
- fusion: an MLP head reads the interest vector of the demo's encoder, the frozen text vector, or both, at two instants
  in September, stopped on November.

All are judged on December. Writes benchmarks/results/language.json.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bseq_behaviour.propensity.fit_heads import Rows, fit_heads
from bseq_behaviour.propensity.labels import known_users, labels
from bseq_behaviour.propensity.tasks import Counts, Task
from bseq_behaviour.propensity.vectors import user_vectors
from bseq_transformers.classifier import ClassifierOptions, TextClassifier
from bseq_transformers.template import TemplateOptions, behaviour_texts
from rich.console import Console

from benchmarks import harness
from benchmarks.tasks.measure import Scored
from benchmarks.tasks.measure import summary as summary_over
from benchmarks.tasks.protocol import ENCODER_UNTIL, LOG_END, TEST_AT, TRAIN_AT, VALIDATION_AT, Case, encoder
from bseq_plugin.demo.data import load

TASKS = ("churn:28", "purchase:7")
TEMPLATE = TemplateOptions(max_sessions=8, items_per_session=2)
MAX_TOKENS = 96
RATES = {"frozen": 5e-4, "lora": 1e-3, "full": 1e-4}
TUNED_AT = TRAIN_AT[2]
FUSED_AT = (TRAIN_AT[0], TRAIN_AT[4])
BOTH, TEXT, VECTOR = "mlp, vector + text", "mlp, text", "mlp, vector"
note = Console(stderr=True)


@dataclass(frozen=True)
class Told:
    """The histories of the households known at an instant, in words, with the answers of a task."""

    users: np.ndarray
    texts: list[str]


class Stories:
    """Texts of a case, each instant told once."""

    def __init__(self, case: Case, households: int | None) -> None:
        self.case, self.households = case, households
        table = case.data.items.drop_duplicates("item_id").set_index("item_id")["product_type"]
        names = table.reindex(case.model.vocabulary.item_ids).fillna("").str.lower()
        self.names = ["", *names]
        self.told: dict[int, Told] = {}

    def at(self, at_us: int) -> Told:
        """Of the first households, if they are limited."""
        if at_us not in self.told:
            users = known_users(self.case.log, at_us)[: self.households]
            histories = self.case.log.between(None, at_us).take(users)
            texts = behaviour_texts(histories, self.case.model.vocabulary, self.names, at_us, TEMPLATE)
            self.told[at_us] = Told(users, texts)
        return self.told[at_us]

    def answers(self, task: Task, at_us: int) -> np.ndarray:
        """float32 [U], 1 = yes."""
        return labels(self.case.log, task, Counts(None, None), at_us, LOG_END)[self.at(at_us).users]


def tuned(method: str, seed: int, epochs: int, train: tuple[list[str], np.ndarray], asked: list[str]) -> dict[str, Any]:
    """One fine-tuning, in this process: scores of ``asked``, and what it cost."""
    torch.set_num_threads(1)
    options = ClassifierOptions(
        method=method, seed=seed, epochs=epochs, max_tokens=MAX_TOKENS, learning_rate=RATES[method]
    )
    classifier = TextClassifier(options)
    before, started = _peak_mb(), time.perf_counter()
    classifier.fit(train[0], train[1].astype(np.int64), progress=True)
    seconds = time.perf_counter() - started
    learned, whole = classifier.trained
    return {
        "scores": classifier.predict(asked)[:, 1],
        "seconds": seconds,
        "learned": learned,
        "share": learned / whole,
        "peak_mb": _peak_mb(),
        "training_mb": _peak_mb() - before,
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tuning(stories: Stories, task: Task, seeds: Sequence[int], chosen: argparse.Namespace) -> dict[str, Any]:
    """AUROC, parameters that learn, time and memory of each method; means over seeds."""
    train = stories.at(TUNED_AT).texts, stories.answers(task, TUNED_AT)
    asked, truth = stories.at(chosen.judged_at).texts, stories.answers(task, chosen.judged_at)
    found: dict[str, Any] = {}
    for method in RATES:
        runs = []
        for seed in seeds:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                runs.append(alone.submit(tuned, method, seed, chosen.epochs, train, asked).result())
        areas = [Scored(truth[:, None], run["scores"][:, None]).auroc() for run in runs]
        costs = {name: float(np.mean([run[name] for run in runs])) for name in runs[0] if name != "scores"}
        found[method] = {"auroc": float(np.mean(areas)), "aurocs": areas, **costs}
        note.print(f"{task.name} {method}: {found[method]}")
    return found


def fusion(
    stories: Stories, task: Task, seed: int, judged_at: int, vectors: dict[int, tuple[np.ndarray, ...]]
) -> dict[str, Scored]:
    """The MLP on the vector, on the text, and on both; ``vectors``: (interest, text) of each instant."""

    def rows(instants: Sequence[int], columns: Sequence[int]) -> Rows:
        inputs = [np.hstack([vectors[instant][column] for column in columns]) for instant in instants]
        answers = [stories.answers(task, instant) for instant in instants]
        return Rows(np.concatenate(inputs).astype(np.float32), np.concatenate(answers)[:, None].astype(np.float32))

    found = {}
    for name, columns in ((VECTOR, [0]), (TEXT, [1]), (BOTH, [0, 1])):
        held, asked = rows([VALIDATION_AT], columns), rows([judged_at], columns)
        heads = fit_heads(
            rows(FUSED_AT, columns), held, (task.name,), digest=stories.case.model.digest, seed=seed
        )  # fmt: skip
        found[name] = Scored(asked.labels_NK, heads.predict(asked.inputs_ND))
    return found


def summary(found: dict[str, list[Scored]]) -> dict[str, Any]:
    """Means over seeds, and what both give over each alone, with 95 % intervals over households."""
    bases = (VECTOR, TEXT)
    over = summary_over(found, bases)
    areas = {name: [one.auroc() for one in seeds] for name, seeds in found.items()}
    return {
        "auroc": {name: of["auroc"] for name, of in over.items()},
        "aurocs": areas,
        "gain of both over": {base: over[BOTH]["over"][base] for base in bases},
    }


def claims(figures: dict[str, Any]) -> list[harness.Claim]:
    """Compare LoRA with full fine-tuning; both against the better of the two alone."""
    held = []
    for task, tables in figures.items():
        if "tuning" in tables:
            lora = tables["tuning"]["lora"]
            ratio, share = lora["auroc"] / tables["tuning"]["full"]["auroc"], lora["share"]
            held += [
                harness.at_least(f"{task}: AUROC of LoRA / of full fine-tuning", ratio, 0.98),
                harness.claim(f"{task}: share of parameters that LoRA trains", share, 0.05, share < 0.05),
            ]
        low = min(gain["interval"][0] for gain in tables["fusion"]["gain of both over"].values())
        held.append(harness.claim(f"{task}: lower end of what both give over either alone", low, 0.0, low > 0.0))
    return held


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The tables of all tasks."""
    data = load("completejourney")
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    tuning_seeds = [int(seed) for seed in chosen.tuning_seeds.split(",")] if chosen.tuning_seeds else []
    figures: dict[str, Any] = {task: {} for task in chosen.tasks.split(",")}
    scored: dict[str, dict[str, list[Scored]]] = {task: {} for task in figures}
    text: dict[int, np.ndarray] = {}
    for seed in seeds:
        stories = Stories(Case(data, encoder(data, ENCODER_UNTIL, seed, 10, folder)), chosen.households)
        if not text:  # the same for every seed: the vocabulary is, and so are the texts
            frozen = TextClassifier(ClassifierOptions(method="frozen", max_tokens=MAX_TOKENS))
            for instant in (*FUSED_AT, VALIDATION_AT, chosen.judged_at):
                text[instant] = frozen.vectors(stories.at(instant).texts)
            note.print(f"example: {stories.at(TEST_AT).texts[0]}")
        vectors = {
            instant: (
                user_vectors(stories.case.model, stories.case.log, instant).numpy()[stories.at(instant).users],
                own,
            )
            for instant, own in text.items()
        }
        for task in figures:
            for name, one in fusion(stories, Task.parse(task), seed, chosen.judged_at, vectors).items():
                scored[task].setdefault(name, []).append(one)
    for task in figures:
        figures[task]["fusion"] = summary(scored[task])
        note.print(f"{task}: {figures[task]['fusion']}")
        if tuning_seeds:
            figures[task]["tuning"] = tuning(stories, Task.parse(task), tuning_seeds, chosen)
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="0,1,2", help="of the encoder and the MLP")
    parser.add_argument("--tuning-seeds", default="0", help="of fine-tuning; '' leaves it out")
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--households", type=int, help="the first ones only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/language.json")
    chosen = parser.parse_args()
    chosen.judged_at = VALIDATION_AT if chosen.part == "validation" else TEST_AT
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(chosen, Path(folder))
    held = claims(figures)
    harness.show(held, 60, "9.4f", ".4f")
    harness.write("language", figures, held, path=chosen.json)


if __name__ == "__main__":
    main()
