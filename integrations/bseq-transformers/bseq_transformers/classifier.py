"""A Transformer that reads behaviour told as text and says what comes: churn, a purchase, the next event's type.

Shape letters: B texts, L tokens, E width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bseq_plugin as bseq
from bseq_plugin.errors import UsageError
from bseq_transformers.backbone import DEFAULT, open_backbone
from bseq_transformers.text import batches_by_length, pooled, progress_bar
from bseq_transformers.tuning import Method, trained_share, tuned

HEAD, ADAPTER = "head.", "model."
WEIGHTS, SETTINGS = "classifier.safetensors", "classifier.json"


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
        torch.manual_seed(self.options.seed)
        self.model = tuned(backbone.model(), self.options.method, self.options.rank)
        self.head = nn.Linear(backbone.width, self.options.classes)
        nn.init.zeros_(self.head.weight)  # begins with the same answer for everybody
        nn.init.zeros_(self.head.bias)

    @property
    def trained(self) -> tuple[int, int]:
        """(parameters of the backbone that learn, all of the backbone's)."""
        return trained_share(self.model)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Logits ``[B, C]``."""
        logits_BC: Tensor = self.head(self._vectors(tokens))
        return logits_BC

    def _vectors(self, tokens: dict[str, Tensor]) -> Tensor:
        return pooled(self.model(**tokens).last_hidden_state, tokens["attention_mask"], "mean")

    def fit(self, texts: Sequence[str], labels: Sequence[int], progress: bool = False) -> list[float]:
        """Cross-entropy; the mean loss of each epoch. Raises UsageError if labels don't fit."""
        labels_B = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        if len(labels_B) != len(texts) or not len(texts):
            raise UsageError(f"{len(labels_B)} labels for {len(texts)} texts; give one for each, and at least one")
        if int(labels_B.min()) < 0 or int(labels_B.max()) >= self.options.classes:
            raise UsageError(f"labels are 0 to {self.options.classes - 1}; found {labels_B.min()} to {labels_B.max()}")
        steps = math.ceil(len(texts) / self.options.batch) * self.options.epochs
        optimizer, schedule = self._optimizer(steps)
        generator = torch.Generator().manual_seed(self.options.seed)
        torch.manual_seed(self.options.seed)
        self.train()
        losses = []
        with progress_bar("training", steps, progress) as advance:
            for _ in range(self.options.epochs):
                total = 0.0
                for places in torch.randperm(len(texts), generator=generator).split(self.options.batch):
                    loss = nn.functional.cross_entropy(
                        self(self._tokens([texts[place] for place in places.tolist()])), labels_B[places]
                    )
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                    total += float(loss.detach()) * len(places)
                    advance(1)
                losses.append(total / len(texts))
        self.eval()
        return losses

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
            for places, tokens in batches_by_length(self.tokenizer, list(texts), self.max_tokens):
                vectors_BE[places] = self._vectors(tokens)
        return vectors_BE.numpy()

    def save(self, folder: Path) -> None:
        """What was learned: head and trained parameters, and the checksum of the backbone they belong to."""
        folder.mkdir(parents=True, exist_ok=True)
        learned = {name: value for name, value in self.named_parameters() if value.requires_grad}
        save_file({name: value.detach().contiguous() for name, value in learned.items()}, folder / WEIGHTS)
        settings = self.options.model_dump_json()
        (folder / SETTINGS).write_text(f'{{"options": {settings}, "backbone": "{self.checksum}"}}', encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TextClassifier:
        """Read what ``save`` wrote. Raises UsageError if it is none, or if the backbone's weights changed since."""
        import json

        if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
            raise UsageError(f"{str(folder)!r} has no {SETTINGS} and {WEIGHTS}; give what TextClassifier.save wrote")
        saved = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        found = cls(ClassifierOptions(**saved["options"]))
        if found.checksum != saved["backbone"]:
            raise UsageError(
                f"the weights of model = {found.options.model!r} are not those that {str(folder)!r} was trained with; "
                "use the same, or train again"
            )
        learned = load_file(folder / WEIGHTS)
        missing, strange = found.load_state_dict(learned, strict=False)
        wanted = {name for name, value in found.named_parameters() if value.requires_grad}
        if strange or wanted & set(missing):
            raise UsageError(f"{str(folder / WEIGHTS)!r} does not fit its settings; train again")
        return found.eval()

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        return dict(
            self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
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
