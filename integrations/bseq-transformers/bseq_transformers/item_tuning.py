"""The Transformer that reads item texts, tuned on behaviour: whose interest a product meets, told by its text.

A finished run says what its users were interested in before each of their events, and the rows of the items that came.
The Transformer and a projection of its vectors learn to make rows of texts that these interests find: a softmax over
the items of a batch, corrected for how often an item is among them (Yi et al., "Sampling-bias-corrected neural modeling
for large corpus item recommendations", RecSys 2019). Only the texts of a batch are read, and gradients go through these
alone; interests are frozen. What comes out is a model directory like the one that went in, for the item encoder
``text``.

Shape letters: N pairs, B pairs of a step, U distinct items among them, V items of the catalogue, K interests, D width
of the item table, P popularity columns, E width of the Transformer.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_plugin.commands import counting
from bseq_transformers.text import TextItemEncoder, TextOptions
from bseq_transformers.text_tower import ItemTuningOptions, TextTower, regressed
from bseq_transformers.tuned_model import Checkpoint, write_tuned
from bseq_transformers.tuning import trained_share

RATES = {"frozen": 0.0, "last_layer": 1e-4, "lora": 5e-4, "full": 5e-5}


@dataclass(frozen=True)
class Pairs:
    """What users were interested in, and the item that came.

    Attributes:
        interests_NKD: float32.
        items_N: int64, vocabulary rows >= 1.
    """

    interests_NKD: Tensor
    items_N: np.ndarray

    @classmethod
    def of(cls, model: bseq.InterestModel, histories: bseq.Sequences, per_user: int = 4) -> Pairs:
        """The latest ``per_user`` events of each history, each asked of what came before it; only known items.

        Raises UsageError if there is none, or ``per_user`` is below 1.
        """
        if per_user < 1:
            raise bseq.UsageError(f"per_user = {per_user}; give 1 or more")
        back = np.arange(1, per_user + 1)
        ends_UL = histories.offsets[1:, None] - back
        kept_UL = ends_UL > histories.offsets[:-1, None]  # something lies before it
        users, ends = np.repeat(np.arange(histories.n_users), kept_UL.sum(1)), ends_UL[kept_UL]
        known = histories.items[ends] > 0
        users, ends = users[known], ends[known]
        if not len(users):
            raise bseq.UsageError("no history has a known item after another event, so there is nothing to learn from")
        items_N = histories.items[ends].astype(np.int64)
        return cls(model.encode(histories.slices(users, histories.offsets[:-1][users], ends)), items_N)


class ItemTextTuner:
    """Tunes the Transformer of the item encoder ``text`` for one model and its items.

    Args:
        model: of a finished run, whose interests and item rows are learned from; it stays as it is.
        items: an items table with ``options.columns``; items without a text are not learned from.

    Raises:
        SchemaError: ``items`` lacks item_id or a column, or has an item twice.
        UsageError: no item of the model has a text; of the Transformer, see ``open_backbone``.
    """

    def __init__(
        self, model: bseq.InterestModel, items: pd.DataFrame, options: ItemTuningOptions | None = None
    ) -> None:
        self.options = options or ItemTuningOptions()
        self.cosine, self.digest = model.recipe.vectors.similarity.kind == "cosine", model.digest
        self.texts_V, vectors_NE, places_N = self._known(model, items)
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed)
            self.tower = TextTower(self.options, regressed(vectors_NE, model.item_table_VD[places_N].float()))
        self.tower.eval()
        self.priors_VP = model.item_priors_VP

    def _known(self, model: bseq.InterestModel, items: pd.DataFrame) -> tuple[list[str], Tensor, np.ndarray]:
        """(the text of each vocabulary row, vectors of those with one, their rows)."""
        bseq.check_items(items, self.options.columns)
        encoder = TextItemEncoder(
            TextOptions(
                columns=self.options.columns,
                model=self.options.model,
                pooling=self.options.pooling,
                max_tokens=self.options.max_tokens,
                dtype=self.options.dtype,
            )
        )
        texts_V = [""] * (model.vocabulary.n_items + 1)
        rows = model.vocabulary.item_rows(items["item_id"]) if len(items) else np.empty(0, np.int64)
        for row, text in zip(rows.tolist(), encoder.texts(items), strict=True):
            texts_V[row] = text if row else ""
        places_N = np.flatnonzero([bool(text) for text in texts_V])
        if not len(places_N):
            raise bseq.UsageError(
                f"no item of the model has a text in {list(self.options.columns)}; is it the right table?"
            )
        distinct = list(dict.fromkeys(texts_V[place] for place in places_N))
        places = {text: place for place, text in enumerate(distinct)}
        vectors_ME = torch.from_numpy(encoder.encode_texts(distinct))
        return texts_V, vectors_ME[[places[texts_V[place]] for place in places_N]], places_N

    @property
    def trained(self) -> tuple[int, int]:
        """(parameters of the Transformer that learn, all of the Transformer's)."""
        return trained_share(self.tower.model)

    def loss(self, pairs: Pairs, places: np.ndarray, log_share_V: Tensor) -> Tensor:
        """Of the pairs at ``places``: cross-entropy among their distinct items."""
        items_U, codes_B = np.unique(pairs.items_N[places], return_inverse=True)
        rows_UD = self.tower([self.texts_V[item] for item in items_U.tolist()])
        priors_UP = None if self.priors_VP is None else self.priors_VP[items_U]
        vectors_UD = bseq.score_vectors(rows_UD, priors_UP, self.cosine)
        scores_BU = (pairs.interests_NKD[places] @ vectors_UD.T).amax(1)
        logits_BU = scores_BU * self.tower.scale.exp() - log_share_V[items_U]
        return F.cross_entropy(logits_BU, torch.from_numpy(codes_B))

    def fit(self, pairs: Pairs, folder: Path, progress: bool = False) -> list[float]:
        """Learn, and write the tuned model to ``folder``; the losses of the steps of this call.

        A killed call goes on from its last checkpoint in ``folder`` when it is called again, to the same bits; a
        finished one is refused.

        Raises:
            UsageError: no pair has an item with a text; ``folder`` has something else, can't be written, or was begun
                with other settings.
            BseqError: the loss is not finite any more.
        """
        texts = np.array([bool(text) for text in self.texts_V])
        pairs = Pairs(pairs.interests_NKD[texts[pairs.items_N]], pairs.items_N[texts[pairs.items_N]])
        if len(pairs.items_N) < 2:
            raise bseq.UsageError(f"{len(pairs.items_N)} pairs have an item with a text; at least two are needed")
        counts_V = np.bincount(pairs.items_N, minlength=len(self.texts_V)).clip(1)
        log_share_V = torch.from_numpy(np.log(counts_V / len(pairs.items_N))).float()
        groups = self._groups()
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        checkpoint = Checkpoint(folder, self._meaning(pairs))
        first = checkpoint.restore(self.tower, optimizer)
        losses = []
        # a Transformer that does not learn is read as it will be read later: without dropout
        self.tower.train(self.options.method != "frozen")
        try:
            with torch.random.fork_rng(), counting("tuning", self.options.steps - first, shown=progress) as advance:
                for step in range(first, self.options.steps):
                    torch.manual_seed(self.options.seed * 1_000_003 + step)  # a step draws the same whoever makes it
                    for group in optimizer.param_groups:
                        group["lr"] = group["base"] * self._rate(step)
                    loss = self.loss(pairs, self._places(step, len(pairs.items_N)), log_share_V)
                    losses.append(_finite(float(loss.detach())))
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    if (step + 1) % self.options.checkpoint_steps == 0 and step + 1 < self.options.steps:
                        checkpoint.save(self.tower, optimizer, step + 1)
                    advance(1)
        finally:
            self.tower.eval()
        self.save(folder)
        checkpoint.remove()
        return losses

    def save(self, folder: Path) -> None:
        """The tuned model in the form of ``save_pretrained``, with what LoRA added merged into the weights; for LoRA
        also ``adapters/``, as ``peft`` reads it, and ``projection.safetensors``.
        """
        told = {"options": self.options.model_dump(mode="json"), "model": self.digest, "backbone": self.tower.checksum}
        write_tuned(self.tower.model, self.tower.projection, self.tower.folder, folder, told)

    def _groups(self) -> list[dict[str, object]]:
        own = [*self.tower.projection.parameters(), self.tower.scale]
        of_model = [value for value in self.tower.model.parameters() if value.requires_grad]
        groups: list[dict[str, object]] = [{"params": own, "base": self.options.projection_learning_rate}]
        if of_model:
            groups.append({"params": of_model, "base": self.options.learning_rate or RATES[self.options.method]})
        return groups

    def _rate(self, step: int) -> float:
        """Share of the learning rate: up over a tenth of the steps, then down to 0."""
        warm = max(1, self.options.steps // 10)
        return min((step + 1) / warm, (self.options.steps - step) / max(1, self.options.steps - warm))

    def _places(self, step: int, n_pairs: int) -> np.ndarray:
        """int64 [B]: every pair comes once before one comes again."""
        each = min(self.options.batch, n_pairs)
        epoch, at = divmod(step, n_pairs // each)
        order = np.random.default_rng([self.options.seed, epoch]).permutation(n_pairs)
        return order[at * each : (at + 1) * each]

    def _meaning(self, pairs: Pairs) -> str:
        """sha256 of all that decides on a step."""
        options = self.options.model_dump(mode="json", exclude={"model", "checkpoint_steps"})
        digest = hashlib.sha256(json.dumps([options, self.digest, self.tower.checksum, self.texts_V]).encode())
        digest.update(pairs.items_N.tobytes())
        digest.update(pairs.interests_NKD.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise bseq.BseqError(f"the loss is {loss}; lower learning_rate, and begin anew in another folder")
    return loss


def learned_from(run: Path) -> tuple[bseq.InterestModel, bseq.Sequences]:
    """Return the best model of a finished run and the histories it learned from. Raises RunError if it is none."""
    return bseq.InterestModel.from_run(run), bseq.Run(run).training_part()
