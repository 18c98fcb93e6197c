"""The item encoder ``text``: what is written about an item, read by a pretrained Transformer.

Shape letters: N items, M distinct texts, B texts of a batch, L tokens, E width.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_plugin.commands import counting
from bseq_transformers.backbone import DEFAULT, Backbone, best_dtype, open_backbone
from bseq_transformers.cache import VectorCache, text_hash
from bseq_transformers.tuned_model import read_projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PART = 2048  # texts that a killed process loses at most
TOKENS = 4096  # of a batch, padding included: larger ones fall out of the caches of a CPU
SEPARATOR = ", "
PROJECTED = "projected"


class TextOptions(bseq.PartOptions):
    """Options of ``text``."""

    columns: tuple[str, ...] = Field(
        ("text",), min_length=1, description="columns of the items table, joined by commas"
    )
    model: str = Field(DEFAULT, description="a directory in the form of save_pretrained, or the installed default")
    hub: bool = Field(False, description="model is an id of the Hugging Face hub, and may be downloaded")
    pooling: Literal["mean", "cls"] = Field("mean", description="mean of the tokens, or the first one")
    normalize: bool = Field(True, description="vectors of length 1")
    projected: bool = Field(
        False, description="as rows of the item table, by the projection that a tuning left beside the weights"
    )
    max_tokens: int = Field(128, ge=1, description="the rest of a longer text is not read")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto = bfloat16 where the CPU has it")
    cache: bool = Field(True, description="keep vectors on disk (BSEQ_CACHE, else ~/.cache/bseq)")


class TextItemEncoder(bseq.ItemEncoder[TextOptions]):
    """Distinct texts are encoded once, batched by length, kept on disk as they are done.

    A text that is missing, empty or white space has a vector of zeros: nothing is known of the item. The default
    weights are all-MiniLM-L6-v2 (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; Wang et al., "MiniLM", NeurIPS
    2020).
    """

    name = "text"
    description = "text of the items table, read by a pretrained Transformer"

    @cached_property
    def backbone(self) -> Backbone:
        """The weights. Raises UsageError or MissingDependencyError, see ``open_backbone``."""
        return open_backbone(self.options.model, self.options.hub)

    @property
    def width(self) -> int:
        """Of the Transformer's states, or of what they are projected to."""
        return len(self._projection[1]) if self.options.projected else self.backbone.width

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that are joined to the text."""
        found: tuple[str, ...] = self.options.columns
        return found

    @property
    def identity(self) -> str:
        """sha256 of weights, pooling and all else that decides on a vector.

        Not of where the weights lie, nor of the type that a CPU calculates in, which only rounds.
        """
        return _sha256(self._meaning, list(self.columns), *([PROJECTED] if self.options.projected else []))

    @property
    def dtype(self) -> torch.dtype:
        """What the Transformer calculates in."""
        return best_dtype() if self.options.dtype == "auto" else getattr(torch, self.options.dtype)

    @property
    def max_tokens(self) -> int:
        """As asked for, if the Transformer can read so much."""
        return min(int(self.options.max_tokens), self.backbone.max_tokens)

    def encode(self, items: pd.DataFrame, progress: bool = False) -> np.ndarray:
        """float32 [N, E]; warns of texts longer than ``max_tokens`` words, of which the beginning is read."""
        projection = self._projection if self.options.projected else None  # refused before texts are read, not after
        codes, distinct = pd.factorize(np.array(self.texts(items), dtype=object))
        texts: list[str] = list(distinct)
        vectors_ME = self.encode_texts(texts, progress)
        if projection is not None:
            weight_DE, bias_D = projection
            vectors_ME = vectors_ME @ weight_DE.T.numpy() + bias_D.numpy()
        empty = [place for place, text in enumerate(texts) if not text]
        vectors_ME[empty] = 0.0
        vectors_NE: np.ndarray = vectors_ME[codes]
        return vectors_NE

    def texts(self, items: pd.DataFrame) -> list[str]:
        """The text of each item: its columns that are not empty, joined."""
        cells = [_cells(items[column]) for column in self.columns]
        return [SEPARATOR.join(part for part in row if part) for row in zip(*cells, strict=True)]

    def encode_texts(self, texts: list[str], progress: bool = False) -> np.ndarray:
        """float32 [M, E] for distinct texts, not projected, from the cache as far as it has them."""
        _warn_of_long(texts, self.max_tokens)
        hashes = [text_hash(text) for text in texts]
        cache = VectorCache(self._cache_key, self.backbone.width) if self.options.cache else None
        vectors_ME, known_M = np.zeros((len(texts), self.backbone.width), np.float32), np.zeros(len(texts), bool)
        if cache is not None:
            vectors_ME, known_M = cache.read(hashes)
        todo = sorted(np.flatnonzero(~known_M).tolist(), key=lambda place: (len(texts[place]), texts[place]))
        with counting("encoding texts", len(todo), shown=progress) as advance:
            for start in range(0, len(todo), PART):
                places = todo[start : start + PART]
                vectors_ME[places] = self._encoded([texts[place] for place in places], advance)
                if cache is not None:
                    cache.add([hashes[place] for place in places], vectors_ME[places])
        return vectors_ME

    def _encoded(self, texts: list[str], advance: Callable[[int], None]) -> np.ndarray:
        """float32 [B, E]."""
        vectors_BE = torch.empty(len(texts), self.backbone.width)
        with torch.inference_mode():
            for places, tokens in batches_by_length(self._tokenizer, texts, self.max_tokens):
                states_BLD = self._model(**tokens).last_hidden_state
                vectors_BE[places] = pooled(states_BLD.float(), tokens["attention_mask"], self.options.pooling)
                advance(len(places))
        return (F.normalize(vectors_BE, dim=1) if self.options.normalize else vectors_BE).numpy()

    @cached_property
    def _projection(self) -> tuple[Tensor, Tensor]:
        options = self.options
        return read_projection(self.backbone.folder, options.pooling, options.normalize, self.max_tokens)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self.backbone.tokenizer()

    @cached_property
    def _model(self) -> PreTrainedModel:
        return self.backbone.model(self.dtype)

    @property
    def _cache_key(self) -> str:
        """Of what the vector of a text depends on, rounding included."""
        return _sha256(self._meaning, str(self.dtype))

    @property
    def _meaning(self) -> list[object]:
        return [self.name, self.backbone.checksum, self.options.pooling, self.options.normalize, self.max_tokens]


def batches_by_length(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(places in ``texts``, padded tokens), texts of like length together, at most ``TOKENS`` tokens each."""
    ids = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]), reverse=True)
    while order:
        count = max(1, TOKENS // max(1, len(ids[order[0]])))
        places, order = order[:count], order[count:]
        tokens = tokenizer.pad({"input_ids": [ids[place] for place in places]}, return_tensors="pt")
        yield places, dict(tokens)


def pooled(states_BLD: Tensor, mask_BL: Tensor, pooling: str) -> Tensor:
    """``[B, D]``: the mean of the real tokens, or the first one."""
    if pooling == "cls":
        return states_BLD[:, 0]
    mask_BL1 = mask_BL[..., None].to(states_BLD.dtype)
    mean_BD: Tensor = (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp_min(1)
    return mean_BD


def _cells(values: pd.Series) -> list[str]:
    """Without white space around."""
    present = values.notna().tolist()
    found = [str(value) if there else "" for value, there in zip(values.tolist(), present, strict=True)]
    return [text.strip() for text in encodable(found)]


def encodable(texts: Iterable[str]) -> list[str]:
    """A lone surrogate, which is no text and no tokenizer takes, becomes a question mark."""
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]


def _warn_of_long(texts: list[str], max_tokens: int) -> None:
    n = sum(1 for text in texts if text.count(" ") >= max_tokens)
    if n:
        warnings.warn(
            f"{n} texts have more than max_tokens = {max_tokens} words; their beginning is read", stacklevel=4
        )


def _sha256(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
