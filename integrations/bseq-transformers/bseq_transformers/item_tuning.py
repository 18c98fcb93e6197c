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
from typing import Literal, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_plugin.data.events import ITEM, instant_us
from bseq_plugin.data.items import checked_items
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import training_part
from bseq_plugin.errors import BseqError, RunError, UsageError
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.items import score_vectors
from bseq_transformers.backbone import DEFAULT, best_dtype, open_backbone
from bseq_transformers.text import TextItemEncoder, TextOptions, encodable, pooled, progress_bar
from bseq_transformers.tuned_model import Checkpoint, write_tuned
from bseq_transformers.tuning import Method, trained_share, tuned

RATES = {"frozen": 0.0, "last_layer": 1e-4, "lora": 5e-4, "full": 5e-5}
RIDGE = 0.1  # of the mean variance, on each direction's


class ItemTuningOptions(bseq.PartOptions):
    """Options of ``ItemTextTuner``."""

    columns: tuple[str, ...] = Field(
        ("text",), min_length=1, description="columns of the items table, joined by commas"
    )
    model: str = Field(DEFAULT, description="a directory in the form of save_pretrained, or the installed default")
    pooling: Literal["mean", "cls"] = Field("mean", description="mean of the tokens, or the first one")
    max_tokens: int = Field(32, ge=4, description="the rest of a longer text is not read while tuning")
    method: Method = Field("lora", description="what learns beside the projection")
    rank: int = Field(8, ge=1, description="of LoRA")
    batch: int = Field(64, ge=2, description="pairs of a step")
    steps: int = Field(500, ge=1)
    learning_rate: float | None = Field(
        None, gt=0, description="of AdamW, after a short warm-up falling to 0; default: 5e-4 for LoRA, 1e-4 for the "
        "last layer, 5e-5 for all"
    )  # fmt: skip
    projection_learning_rate: float = Field(1e-3, gt=0)
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; weights stay float32. auto = bfloat16 where the CPU has it"
    )
    checkpoint_steps: int = Field(100, ge=1, description="steps that a killed process loses at most")
    seed: int = Field(0, ge=0)


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
    def of(cls, model: InterestModel, histories: Sequences, per_user: int = 4) -> Pairs:
        """The latest ``per_user`` events of each history, each asked of what came before it; only known items.

        Raises UsageError if there is none, or ``per_user`` is below 1.
        """
        if per_user < 1:
            raise UsageError(f"per_user = {per_user}; give 1 or more")
        back = np.arange(1, per_user + 1)
        ends_UL = histories.offsets[1:, None] - back
        kept_UL = ends_UL > histories.offsets[:-1, None]  # something lies before it
        users, ends = np.repeat(np.arange(histories.n_users), kept_UL.sum(1)), ends_UL[kept_UL]
        known = histories.items[ends] > 0
        users, ends = users[known], ends[known]
        if not len(users):
            raise UsageError("no history has a known item after another event, so there is nothing to learn from")
        items_N = histories.items[ends].astype(np.int64)
        return cls(model.encode(histories.slices(users, histories.offsets[:-1][users], ends)), items_N)


class TextTower(nn.Module):
    """Texts to rows of the item table: the Transformer's pooled states, of length 1, projected."""

    def __init__(self, options: ItemTuningOptions, projection: nn.Linear) -> None:
        super().__init__()
        backbone = open_backbone(options.model)
        self.options = options
        self.checksum = backbone.checksum
        self.folder = backbone.folder
        self.tokenizer = backbone.tokenizer()
        self.max_tokens = min(options.max_tokens, backbone.max_tokens)
        self.model = tuned(backbone.model(), options.method, options.rank)
        self.scale = nn.Parameter(torch.zeros(()))  # of the scores, as an exponent
        self.projection = projection

    def vectors(self, texts: list[str]) -> Tensor:
        """``[U, E]``, of length 1."""
        tokens = self.tokenizer(
            encodable(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        dtype = best_dtype() if self.options.dtype == "auto" else getattr(torch, self.options.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            states_ULE = self.model(**tokens).last_hidden_state
        return F.normalize(pooled(states_ULE.float(), tokens["attention_mask"], self.options.pooling), dim=1)

    def forward(self, texts: list[str]) -> Tensor:
        """``[U, D]``."""
        rows_UD: Tensor = self.projection(self.vectors(texts))
        return rows_UD


def regressed(vectors_NE: Tensor, rows_ND: Tensor) -> nn.Linear:
    """The ridge regression of known rows on the vectors of their texts: what a projection begins with."""
    x_NE, y_ND = vectors_NE.double(), rows_ND.double()
    x_NE, y_ND = x_NE - x_NE.mean(0), y_ND - y_ND.mean(0)
    square_EE = x_NE.T @ x_NE
    square_EE.diagonal().add_(RIDGE * square_EE.diagonal().mean() + 1e-12)
    weight_ED = torch.linalg.solve(square_EE, x_NE.T @ y_ND).float()
    projection = nn.utils.skip_init(nn.Linear, *weight_ED.shape)
    with torch.no_grad():
        projection.weight.copy_(weight_ED.T)
        projection.bias.copy_(rows_ND.mean(0) - vectors_NE.mean(0) @ weight_ED)
    return cast(nn.Linear, projection)


class ItemTextTuner:
    """Tunes the Transformer of the item encoder ``text`` for one model and its items.

    Args:
        model: of a finished run, whose interests and item rows are learned from; it stays as it is.
        items: an items table with ``options.columns``; items without a text are not learned from.

    Raises:
        SchemaError: ``items`` lacks item_id or a column, or has an item twice.
        UsageError: no item of the model has a text; of the Transformer, see ``open_backbone``.
    """

    def __init__(self, model: InterestModel, items: pd.DataFrame, options: ItemTuningOptions | None = None) -> None:
        self.options = options or ItemTuningOptions()
        self.cosine, self.digest = model.recipe.score == "cosine", model.digest
        self.texts_V, vectors_NE, places_N = self._known(model, items)
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed)
            self.tower = TextTower(self.options, regressed(vectors_NE, model.item_table_VD[places_N].float()))
        self.tower.eval()
        self.priors_VP = model.item_priors_VP

    def _known(self, model: InterestModel, items: pd.DataFrame) -> tuple[list[str], Tensor, np.ndarray]:
        """(the text of each vocabulary row, vectors of those with one, their rows)."""
        checked_items(items, self.options.columns)
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
        rows = model.vocabulary.item_rows(items[ITEM]) if len(items) else np.empty(0, np.int64)
        for row, text in zip(rows.tolist(), encoder.texts(items), strict=True):
            texts_V[row] = text if row else ""
        places_N = np.flatnonzero([bool(text) for text in texts_V])
        if not len(places_N):
            raise UsageError(f"no item of the model has a text in {list(self.options.columns)}; is it the right table?")
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
        vectors_UD = score_vectors(rows_UD, priors_UP, self.cosine)
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
            raise UsageError(f"{len(pairs.items_N)} pairs have an item with a text; at least two are needed")
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
            with torch.random.fork_rng(), progress_bar("tuning", self.options.steps - first, progress) as advance:
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
        raise BseqError(f"the loss is {loss}; lower learning_rate, and begin anew in another folder")
    return loss


def learned_from(run: Path) -> tuple[InterestModel, Sequences]:
    """The best model of a finished run, and the histories of its training part. Raises RunError if it is none."""
    model = InterestModel.from_run(run)
    file = run / "sequences.parquet"
    if not file.is_file():
        raise RunError(f"{run} has no sequences.parquet; is it a run directory?")
    sequences = Sequences.load(file, model.vocabulary)
    if model.recipe.split == "time":
        return model, sequences.between(None, instant_us(model.recipe.validation_at, "validation_at"))
    return model, training_part(sequences) if model.recipe.split == "leave-one-out" else sequences
