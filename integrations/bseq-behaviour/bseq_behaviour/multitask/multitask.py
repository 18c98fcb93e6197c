"""The module of several futures: a copy of a trained encoder with all heads.

Shape letters: B users of a batch, K interests, D their width, X context columns, V items, O objectives.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

import bseq_plugin as bseq
from bseq_behaviour.contract.answers import checked
from bseq_behaviour.contract.choice import HeadChoice, binary_head, catalogue_head, checked_head, count_head
from bseq_behaviour.fitting import parts
from bseq_behaviour.multitask.answers import Answers, Predictions
from bseq_behaviour.multitask.moments import ALL_ACTION, DEMAND, NEXT_ITEM, TASKS, Moment, Objectives
from bseq_behaviour.propensity.fit_heads import TaskWeights, Weighting, task_losses
from bseq_behaviour.propensity.inputs import Scale

K_ITEMS = 20
USUAL_UNITS = math.exp(-2.0)  # a week, of a category, where a count head begins: one in seven weeks
KINDS = {NEXT_ITEM: "catalogue", ALL_ACTION: "catalogue", TASKS: "binary", DEMAND: "count"}
HEADS = {NEXT_ITEM: "own_layer", ALL_ACTION: "own_layer", TASKS: "mlp", DEMAND: "log_linear"}
Heads = Mapping[str, str | HeadChoice]


class MultiTask(nn.Module):
    """The encoder with all heads.

    Args:
        model: what it begins with; it is copied.
        scale: of the context.
        heads: by what it answers, a head's name or choice: "next_item" and "all_action" a catalogue head, "tasks" (all
            yes-or-no tasks together) a binary one, "demand" a count head; those of ``HEADS`` where not named.
        importance: of each objective's loss, by name, whatever ``weighting`` does beside; 1 if not named.

    Attributes:
        digest: of the model that it began with.
        chosen: the head of each answer.

    Raises UsageError or RecipeError for an unknown or unused head, an unknown option, weighting or objective;
    PluginError, also when asked, for a head that gives nonsense.
    """

    def __init__(
        self, model: bseq.InterestModel, objectives: Objectives, scale: Scale, heads: Heads | None = None,
        weighting: Weighting = "equal", importance: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe: bseq.Recipe = model.recipe
        self.digest, self.weighting, self.importance = model.digest, weighting, dict(importance or {})
        self.objectives, self.scale = objectives, scale
        self.encoder = copy.deepcopy(model.encoder)
        self.n_interests = model.encoder.width // model.recipe.interest_dim
        width = model.encoder.width + len(scale.mean_D)
        self.norm = nn.LayerNorm(model.encoder.width)
        self.chosen = chosen = chosen_heads(heads or {}, objectives)
        self.head = binary_head(chosen[TASKS], width, len(objectives.tasks)) if objectives.tasks else None
        usual_C = torch.full((objectives.n_categories,), USUAL_UNITS)
        self.demand = count_head(chosen[DEMAND], width, usual_C) if objectives.n_categories else None
        self.catalogue = nn.ModuleDict(
            {
                name: catalogue_head(chosen[name], model.recipe.interest_dim)
                for name in (NEXT_ITEM, ALL_ACTION)
                if name in objectives.names
            }
        )
        self.weights = TaskWeights(len(objectives.names), weighting)
        self.importance_O: Tensor
        self.register_buffer("importance_O", _importance(objectives.names, importance or {}), persistent=False)

    def queries(self, name: str, interests_BKD: Tensor, finite: bool = False) -> Tensor:
        """``[B, K, D]``, what items are scored with for ``next_item`` or ``all_action``: what the head of that
        objective makes of the interests. Raises PluginError for another shape, and with ``finite`` for NaN.
        """
        head = self.catalogue[name]
        return checked(head, head(interests_BKD), tuple(interests_BKD.shape), finite=finite)

    def forward(self, part: Moment) -> tuple[Tensor, Tensor]:
        """``(interests_BKD, inputs of the heads [B, K * D + X])``."""
        flat: Tensor = self.encoder(bseq.history_features(part.histories, self.recipe))[bseq.USER_INTEREST]
        context_BX = torch.from_numpy(self.scale(part.context_BX))
        interests_BKD = flat.view(len(flat), self.n_interests, self.recipe.interest_dim)
        return interests_BKD, torch.cat([self.norm(flat), context_BX], dim=1)

    def item_vectors(self, part: Moment) -> Tensor:
        """``[V + 1, D]``, popularity as of the instant."""
        table_VD = self.encoder.embedding_collection.embeddings[bseq.ITEM_TABLE].weight
        priors_VP = None if part.priors_VP is None else torch.from_numpy(part.priors_VP)
        return bseq.score_vectors(table_VD, priors_VP, self.recipe.vectors.cosine)

    def losses(self, part: Moment) -> Tensor:
        """``[O]``, one loss an objective: mean cross-entropy, or that of the count head."""
        interests_BKD, inputs = self(part)
        losses: list[Tensor] = []
        if self.objectives.next_item:
            scores_BV = self._scores(NEXT_ITEM, interests_BKD, part)
            there = torch.from_numpy(np.flatnonzero(part.next_B))
            rows = torch.from_numpy(part.next_B)[there] - 1
            losses.append(_mean(torch.logsumexp(scores_BV[there], dim=1) - scores_BV[there, rows]))
        if self.objectives.all_action_days is not None:
            scores_BV = self._scores(ALL_ACTION, interests_BKD, part)
            owner = torch.from_numpy(np.repeat(np.arange(len(scores_BV)), np.diff(part.targets[0])))
            rows = torch.from_numpy(part.targets[1]) - 1
            losses.append(_mean(torch.logsumexp(scores_BV, dim=1)[owner] - scores_BV[owner, rows]))
        if self.head is not None:
            losses.extend(task_losses(self.logits(inputs), torch.from_numpy(part.labels_BK)).unbind())
        if self.demand is not None:
            loss = self.demand.loss(inputs, *(torch.from_numpy(x) for x in (part.recent_BC, part.units_BC)))
            losses.append(checked(self.demand, loss, ()))
        return torch.stack(losses)

    def total(self, part: Moment) -> Tensor:
        """A scalar, what training lowers: the losses by importance and weighting."""
        total: Tensor = self.weights(self.losses(part) * self.importance_O)
        return total

    def _scores(self, name: str, interests_BKD: Tensor, part: Moment) -> Tensor:
        """``[B, V]``, the best of the interests."""
        return (self.queries(name, interests_BKD) @ self.item_vectors(part)[1:].T).amax(1)

    @torch.no_grad()
    def answers(self, part: Moment, batch_users: int = 256) -> Answers:
        """What it says of everybody at an instant, a batch at a time, beside what came."""
        self.eval()
        batches = [self._answers(part.take(users)) for users in parts(np.arange(len(part.users)), batch_users)]
        ndcg = {name: np.concatenate([one.ndcg[name] for one in batches]) for name in batches[0].ndcg}
        logits_BK = np.concatenate([one.logits_BK for one in batches])
        rates_BC = np.concatenate([one.rates_BC for one in batches])
        tasks = tuple(task.name for task, _ in self.objectives.tasks)
        return Answers(tasks, ndcg, logits_BK, rates_BC, part.labels_BK, part.units_BC)

    @torch.no_grad()
    def predict(self, part: Moment, k: int = K_ITEMS, batch_users: int = 256) -> Predictions:
        """Say what everybody at an instant will do, a batch at a time; what came is not read."""
        self.eval()
        batches = [self._predict(part.take(users), k) for users in parts(np.arange(len(part.users)), batch_users)]
        return Predictions(
            np.concatenate([one.chances_BK for one in batches]),
            np.concatenate([one.rates_BC for one in batches]),
            {name: np.concatenate([one.top[name] for one in batches]) for name in batches[0].top},
        )

    def _predict(self, part: Moment, k: int) -> Predictions:
        interests_BKD, inputs = self(part)
        top = {name: self._top(name, interests_BKD, part, k) for name in self.catalogue}
        chances_BK = torch.sigmoid(self.logits(inputs, finite=True))
        return Predictions(chances_BK.numpy(), self.rates(inputs, part).numpy(), top)

    def _top(self, name: str, interests_BKD: Tensor, part: Moment, k: int) -> np.ndarray:
        """int64 [B, k], the items of highest score, -1 where the catalogue has no more."""
        return bseq.top_k_items(self.queries(name, interests_BKD, finite=True), self.item_vectors(part), k)

    def judge(self, part: Moment) -> dict[str, float]:
        """``Answers.metrics`` of everybody at an instant."""
        return self.answers(part).metrics()

    def logits(self, inputs: Tensor, finite: bool = False) -> Tensor:
        """``[B, K]``, of the yes-or-no tasks. Raises as ``queries``."""
        if self.head is None:
            return inputs.new_zeros(len(inputs), 0)
        return checked(self.head, self.head(inputs), (len(inputs), self.head.n_tasks), finite=finite)

    def rates(self, inputs: Tensor, part: Moment) -> Tensor:
        """``[B, C]``, units that are expected in the week from the instant."""
        if self.demand is None:
            return inputs.new_zeros(len(inputs), 0)
        rates_BC = self.demand(inputs, torch.from_numpy(part.recent_BC))
        return checked(self.demand, rates_BC, part.recent_BC.shape, least=0.0, finite=True)

    def _answers(self, part: Moment) -> Answers:
        interests_BKD, inputs = self(part)
        ndcg = {}
        for name, (offsets, rows) in self._wanted(part).items():
            asked = np.flatnonzero(np.diff(offsets))
            top_UK = self._top(name, interests_BKD[torch.from_numpy(asked)], part, K_ITEMS)
            kept = np.concatenate([[0], np.cumsum(np.diff(offsets)[asked])])
            ndcg[name] = np.full(len(interests_BKD), np.nan)
            ndcg[name][asked] = bseq.ranking_metrics(top_UK, kept, rows, [K_ITEMS])[f"ndcg@{K_ITEMS}"]
        logits_BK, rates_BC = self.logits(inputs, finite=True).numpy(), self.rates(inputs, part).numpy()
        return Answers((), ndcg, logits_BK, rates_BC, part.labels_BK, part.units_BC)

    def _wanted(self, part: Moment) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        wanted = {}
        if self.objectives.next_item:
            there_B = (part.next_B > 0).astype(np.int64)
            wanted[NEXT_ITEM] = np.concatenate([[0], np.cumsum(there_B)]), part.next_B[part.next_B > 0]
        if self.objectives.all_action_days is not None:
            wanted[ALL_ACTION] = part.targets
        return wanted


def _mean(losses: Tensor) -> Tensor:
    return losses.sum() / max(len(losses), 1)


def chosen_heads(heads: Heads, objectives: Objectives) -> dict[str, HeadChoice]:
    """The heads of every answer. Raises UsageError or RecipeError for an answer, a head or an option that there is not,
    UsageError for a head that would not be used.
    """
    if unknown := set(heads) - set(HEADS):
        raise bseq.UsageError(f"heads of {sorted(unknown)}; name heads for some of {list(HEADS)}")
    for name, choice in heads.items():
        checked_head(KINDS[name], choice)
    if unused := set(heads) - objectives.answers:
        raise bseq.UsageError(
            f"heads of {sorted(unused)}, but the objectives have only {sorted(objectives.answers)}: leave these heads "
            "out, or add the objectives"
        )
    chosen = {**HEADS, **heads}
    return {name: HeadChoice.of(chosen[name]) for name in HEADS if name in objectives.answers}


def _importance(names: tuple[str, ...], asked: Mapping[str, float]) -> Tensor:
    """float32 [O]. Raises UsageError for an objective that there is not, or a weight that is not positive."""
    unknown = set(asked) - set(names)
    if unknown or not all(0 < weight < float("inf") for weight in asked.values()):
        raise bseq.UsageError(f"importance = {dict(asked)}; give positive numbers for some of {list(names)}")
    return torch.tensor([float(asked.get(name, 1.0)) for name in names])
