"""One seed: a model of ids alone and one of ids and text, asked for warm, tail and cold items.

Of a log with popularity columns there is a third one: ids alone, whose new items have rows as long as those with text,
and their popularity. What text says is what the second one has over it.

Shape letters: U users, N items, V items of the catalogue, D width.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.text.problems import Problem, only
from bseq_plugin import InterestModel, Recipe, Sequences, train
from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.evaluation.rankers import interest_ranker
from bseq_plugin.metrics import ranking_metrics
from bseq_plugin.model.neighbours import own_directions
from bseq_plugin.model.new_items import with_new_items, with_popularity
from bseq_plugin.model.run import Run
from bseq_plugin.model.task import SequenceInterestTask
from bseq_plugin.recipe.data import ItemSettings
from bseq_plugin.training.checkpoint import Checkpoints, Position

TAIL = 5  # events in training, at most
LONG_TAIL = 0.2  # of all events: those of the items that are had least
COUNTED = "id + popularity"
K = 10


def one_seed(problem: Problem, seed: int, text_settings: list[str], id_settings: list[str]) -> dict[str, object]:
    """Figures of both models, and what a random ranking finds."""
    base = problem.recipe.replace(training={"seed": seed}).with_settings(id_settings)
    encoder = {"name": "text", "columns": list(problem.columns)}
    text = base.replace(items={"encoders": [encoder]}).with_settings([*problem.settings, *text_settings])
    models, seconds = {}, {}
    started = time.perf_counter()
    models["id + text"], models["id"] = trained(problem, text)
    seconds["id + text"] = seconds["id"] = time.perf_counter() - started
    bare, new = models["id"], problem.items[problem.items["item_id"].isin(problem.cold)]
    models["id"] = with_untrained(bare, problem.cold, base, seed)
    if base.popularity_days:
        models[COUNTED] = with_own(bare, problem, text.items.own_direction)
    models["id + text"] = with_new_items(models["id + text"], new, log=problem.past)
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    chance: dict[str, float] = {}
    for question, seen in problem.questions:
        for name, model in models.items():
            of_question = figures(problem, model, seen, reads_cold=name != "id")
            found[name] |= {f"{question}{figure}": value for figure, value in of_question.items()}
        chance[f"{question}cold recall@10"] = by_chance(problem, models["id + text"], seen)
    return {"seed": seed, **found, "random": chance, "seconds": seconds}


def trained(problem: Problem, recipe: Recipe) -> tuple[InterestModel, InterestModel]:
    """The best epoch as it was exported, and as it was trained, without what item encoders say; tables are thrown away.

    The second one is the model of ids alone: a test of the project says that they are trained alike.
    """
    with tempfile.TemporaryDirectory() as folder:
        reads = problem.items if recipe.items.encoders else None
        run = train(problem.training, recipe, Path(folder) / "run", items=reads, progress=False)
        model = InterestModel.from_run(run.path)
        # the mapped item table goes with the folder
        whole = InterestModel.from_state(
            model.recipe, model.vocabulary, model.encoder.state_dict(), model.item_priors_VP, model.trained_until_us
        )
        return whole, of_ids(run, whole)


def of_ids(run: Run, model: InterestModel) -> InterestModel:
    """The weights of the best epoch's checkpoint, as a model of a recipe without item encoders."""
    encoded = model.encoder.item_tower.encoded
    width = None if encoded is None else encoded.axes_EE.shape[0]
    vocabulary = model.vocabulary
    task = SequenceInterestTask(
        model.recipe, vocabulary.n_items, len(vocabulary.event_types), item_vectors=width
    )  # fmt: skip
    Checkpoints(run.path).load_plain(task, Position(run.info["best_epoch"]))
    state = {k: v for k, v in task.interest_encoder.state_dict().items() if not k.startswith("item_tower.encoded")}
    items = model.recipe.items
    bare = model.recipe.replace(items=ItemSettings(min_count=items.min_count, attributes=items.attributes))
    return InterestModel.from_state(bare, vocabulary, state, model.item_priors_VP, model.trained_until_us)


def with_untrained(model: InterestModel, cold: np.ndarray, recipe: Recipe, seed: int) -> InterestModel:
    """Rows as a table has them before training."""
    generator = torch.Generator().manual_seed(seed)
    rows_ND = torch.randn(len(cold), recipe.vectors.dim, generator=generator) * recipe.vectors.init
    priors_NP = torch.zeros(len(cold), len(recipe.popularity_days)) if recipe.popularity_days else None
    return model.with_rows(np.sort(cold), rows_ND, priors_NP)


def with_own(model: InterestModel, problem: Problem, length: float) -> InterestModel:
    """Rows that tell new items from each other and say nothing else; popularity as the log has it."""
    cold, counts_V = np.sort(problem.cold), model.vocabulary.item_counts
    rows_ND = length * own_directions(cold.tolist(), model.item_table_VD, counts_V)
    longer = model.with_rows(cold, rows_ND, torch.zeros(len(cold), len(model.recipe.popularity_days)))
    return with_popularity(longer, problem.past)


def figures(problem: Problem, model: InterestModel, seen: bool, reads_cold: bool) -> dict[str, float]:
    """Means over users. A model that has no use for cold items in histories does not get them."""
    vocabulary = model.vocabulary
    cold_V = np.zeros(vocabulary.n_items + 1, bool)
    cold_V[vocabulary.item_rows(problem.cold)] = True
    cold_V[0] = False
    tail_V = np.concatenate([[False], vocabulary.item_counts <= TAIL]) & ~cold_V
    warm = problem.asked(problem.warm_log, vocabulary, seen)
    cold = only(problem.asked(problem.cold_log, vocabulary, seen), cold_V)
    histories = cold.histories if reads_cold else without(cold.histories, cold_V)
    of_warm = asked(model, warm, seen)
    of_cold = asked(model, EvaluationSet(histories, cold.target_offsets, cold.target_items), seen)
    of_tail, of_long_tail = (asked(model, only(warm, few_V), seen) for few_V in (tail_V, long_tail(model) & ~cold_V))
    return {
        "warm ndcg@10": float(of_warm["ndcg@10"].mean()),
        "warm recall@10": float(of_warm["recall@10"].mean()),
        "tail ndcg@10": float(of_tail["ndcg@10"].mean()),
        "long-tail ndcg@10": float(of_long_tail["ndcg@10"].mean()),
        "cold recall@10": float(of_cold["recall@10"].mean()),
        "cold ndcg@10": float(of_cold["ndcg@10"].mean()),
        "warm users": warm.n_users,
        "tail users": len(of_tail["ndcg@10"]),
        "cold users": cold.n_users,
    }


def long_tail(model: InterestModel) -> np.ndarray:
    """bool [V + 1]: the items with the fewest events, which have a fifth of all together."""
    counts_V = model.vocabulary.item_counts
    order = np.argsort(counts_V, kind="stable")
    rare_V = np.zeros(len(counts_V) + 1, bool)
    rare_V[1 + order[np.cumsum(counts_V[order]) <= LONG_TAIL * counts_V.sum()]] = True
    return rare_V


def asked(model: InterestModel, question: EvaluationSet, seen: bool) -> dict[str, np.ndarray]:
    """Metrics of each user: the whole catalogue, cold items included; seen items masked, unless they count as well."""
    top_UK = interest_ranker(model)(question.histories, K, not seen)
    return ranking_metrics(top_UK, question.target_offsets, question.target_items, (K,))


def by_chance(problem: Problem, model: InterestModel, seen: bool) -> float:
    """Expected recall@10 of a random order of the items that are not masked."""
    cold_V = np.zeros(model.vocabulary.n_items + 1, bool)
    cold_V[model.vocabulary.item_rows(problem.cold)] = True
    cold_V[0] = False
    question = only(problem.asked(problem.cold_log, model.vocabulary, seen), cold_V)
    histories = question.histories
    pairs = np.unique(histories.user_index * (model.vocabulary.n_items + 1) + histories.items)
    seen_U = np.bincount(pairs // (model.vocabulary.n_items + 1), minlength=histories.n_users)
    seen_U = np.zeros_like(seen_U) if seen else seen_U
    targets_U = np.diff(question.target_offsets)
    # a target is among the K first with K / items; divided by what is within reach
    return float((K / (model.vocabulary.n_items - seen_U) * targets_U / np.minimum(targets_U, K)).mean())


def without(histories: Sequences, cold_V: np.ndarray) -> Sequences:
    """Histories without the events of cold items."""
    items = np.where(cold_V[histories.items], 0, histories.items)
    return Sequences(**{**vars_of(histories), "items": items}).known()


def vars_of(histories: Sequences) -> dict[str, np.ndarray | None]:
    """Its fields."""
    return {name: getattr(histories, name) for name in histories.__dataclass_fields__}
