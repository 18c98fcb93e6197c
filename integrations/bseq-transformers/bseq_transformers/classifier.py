"""A Transformer that reads behaviour told as text and says what comes: churn, a purchase, the next event's type.

Shape letters: B texts, L tokens, E width, C classes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import bseq_plugin as bseq
from bseq_plugin.commands import counting
from bseq_transformers.backbone import DEFAULT, best_dtype, open_backbone
from bseq_transformers.text import batches_by_length, encodable, pooled
from bseq_transformers.tuning import Method, trained_share, tuned

WEIGHTS = "classifier.safetensors"


class ClassifierOptions(bseq.PartOptions):
    """Options of ``TextClassifier``."""

    model: str = Field(DEFAULT, description="a directory in the form of save_pretrained, or the installed default")
    method: Method = Field("lora", description="what learns beside the head")
    rank: int = Field(8, ge=1, description="of LoRA")
    classes: int = Field(2, ge=2)
    max_tokens: int = Field(96, ge=8, description="the rest of a longer text, the oldest behaviour, is not read")
    batch: int = Field(32, ge=1)
    epochs: int = Field(2, ge=1)
    learning_rate: float = Field(5e-4, gt=0, description="of AdamW, after a short warm-up falling to 0")
    head_learning_rate: float = Field(5e-3, gt=0)
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; weights stay float32. auto = bfloat16 where the CPU has it"
    )
    seed: int = Field(0, ge=0)


class TextClassifier(nn.Module):
    """Mean of the tokens' states, then a linear layer; the backbone learns as ``method`` says."""

    def __init__(self, options: ClassifierOptions | None = None) -> None:
        super().__init__()
        self.options = options or ClassifierOptions()
        backbone = open_backbone(self.options.model)
        self.checksum = backbone.checksum
        self.max_tokens = min(self.options.max_tokens, backbone.max_tokens)
        self.tokenizer = backbone.tokenizer()
        with torch.random.fork_rng():  # the numbers that others draw are none of ours
            torch.manual_seed(self.options.seed)
            self.model = tuned(backbone.model(), self.options.method, self.options.rank)
            self.head = nn.Linear(backbone.width, self.options.classes)
        nn.init.zeros_(self.head.weight)  # begins with the same answer for everybody
        nn.init.zeros_(self.head.bias)
        self.eval()

    @property
    def trained(self) -> tuple[int, int]:
        """(parameters of the backbone that learn, all of the backbone's)."""
        return trained_share(self.model)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Logits ``[B, C]``."""
        logits_BC: Tensor = self.head(self._vectors(tokens))
        return logits_BC

    def _vectors(self, tokens: dict[str, Tensor]) -> Tensor:
        dtype = best_dtype() if self.options.dtype == "auto" else getattr(torch, self.options.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            states_BLE = self.model(**tokens).last_hidden_state
        return pooled(states_BLE.float(), tokens["attention_mask"], "mean")

    def fit(self, texts: Sequence[str], labels: Sequence[int], progress: bool = False) -> list[float]:
        """Cross-entropy; the mean loss of each epoch. Another call goes on with what was learned.

        Raises UsageError if labels don't fit, BseqError if the loss is not finite any more.
        """
        labels_B = self._checked_labels(labels, len(texts))
        steps = math.ceil(len(texts) / self.options.batch) * self.options.epochs
        optimizer, schedule = self._optimizer(steps)
        generator = torch.Generator().manual_seed(self.options.seed)
        # a backbone that does not learn is read as it will be read later: without dropout
        self.train() if self.options.method != "frozen" else self.head.train()
        losses = []
        try:
            with torch.random.fork_rng(), counting("training", steps, shown=progress) as advance:
                torch.manual_seed(self.options.seed)
                for _ in range(self.options.epochs):
                    total = 0.0
                    for places in torch.randperm(len(texts), generator=generator).split(self.options.batch):
                        tokens = self._tokens([texts[place] for place in places.tolist()])
                        loss = nn.functional.cross_entropy(self(tokens), labels_B[places])
                        total += _finite(float(loss.detach())) * len(places)
                        optimizer.zero_grad()
                        loss.backward()  # type: ignore[no-untyped-call]
                        optimizer.step()
                        schedule.step()
                        advance(1)
                    losses.append(total / len(texts))
        finally:
            self.eval()
        return losses

    def _checked_labels(self, labels: Sequence[int], n_texts: int) -> Tensor:
        found = np.asarray(labels)
        if len(found) != n_texts or not n_texts:
            raise bseq.UsageError(f"{len(found)} labels for {n_texts} texts; give one for each, and at least one")
        if found.dtype.kind not in "biu":
            raise bseq.UsageError(f"labels are whole numbers from 0 to {self.options.classes - 1}; found {found.dtype}")
        if int(found.min()) < 0 or int(found.max()) >= self.options.classes:
            raise bseq.UsageError(f"labels are 0 to {self.options.classes - 1}; found {found.min()} to {found.max()}")
        return torch.from_numpy(found.astype(np.int64))

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities, float32 [B, C]."""
        logits_BC = self.head(torch.from_numpy(self.vectors(texts)))
        found: np.ndarray = logits_BC.softmax(1).numpy()
        return found

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """What the head reads, float32 [B, E]: a feature for whoever has a use for it."""
        self.eval()
        vectors_BE = torch.empty(len(texts), self.head.in_features)
        if len(texts):
            for places, tokens in batches_by_length(self.tokenizer, encodable(texts), self.max_tokens):
                vectors_BE[places] = self._vectors(tokens)
        return vectors_BE.numpy()

    def save(self, folder: Path) -> None:
        """What was learned: head and trained parameters, and the checksum of the backbone they belong to.

        One file, written aside and renamed: ``folder`` has the old one or the new one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        learned = {name: value.detach().contiguous() for name, value in self.named_parameters() if value.requires_grad}
        told = {"options": self.options.model_dump_json(), "backbone": self.checksum}
        aside = folder / f".{WEIGHTS}.tmp"
        try:
            save_file(learned, aside, metadata=told)
            os.replace(aside, folder / WEIGHTS)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> TextClassifier:
        """Read what ``save`` wrote. Raises UsageError if it is none, or if the backbone's weights changed since."""
        path = folder / WEIGHTS
        if not path.is_file():
            raise bseq.UsageError(f"{str(folder)!r} has no {WEIGHTS}; give what TextClassifier.save wrote")
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                learned = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            options = json.loads(told["options"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise bseq.UsageError(f"{str(path)!r} is damaged ({error}); train again") from None
        found = cls(bseq.parse_options(ClassifierOptions, options, f"the options in {str(path)!r}"))
        if found.checksum != told.get("backbone"):
            raise bseq.UsageError(
                f"the weights of model = {found.options.model!r} are not those that {str(folder)!r} was trained with; "
                "use the same, or train again"
            )
        wanted = {name: value.shape for name, value in found.named_parameters() if value.requires_grad}
        if wanted != {name: value.shape for name, value in learned.items()}:
            raise bseq.UsageError(f"{str(path)!r} does not fit its settings; train again")
        found.load_state_dict(learned, strict=False)
        return found

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        return dict(
            self.tokenizer(
                encodable(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
        )

    def _optimizer(self, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        of_model = [value for value in self.model.parameters() if value.requires_grad]
        groups = [{"params": list(self.head.parameters()), "lr": self.options.head_learning_rate}]
        if of_model:
            groups.append({"params": of_model, "lr": self.options.learning_rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        warm = max(1, steps // 10)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        )


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise bseq.BseqError(f"the loss is {loss}; lower learning_rate, and make the classifier anew")
    return loss
