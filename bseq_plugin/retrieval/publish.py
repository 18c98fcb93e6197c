"""From a finished run to a store version: item vectors, ids, index, encoder, histories and interests, all or nothing.

Files of a version, beside MANIFEST.json:

    encoder.safetensors items.safetensors recipe.json vocabulary.parquet   the model, as ``InterestModel`` writes it
    item_ids.parquet        item_id, in the order of the index rows
    item_vectors.safetensors  "item_vectors" float32 [V, D] in that order: what an interest is multiplied with
    items.faiss             the index, if the backend has a file of its own
    sequences.parquet       the users' histories, as ``Sequences`` writes them
    interests.parquet       user_id, event_timestamp (newest event), n_events, interest_idx, vector
    popular.parquet         item_id, n_events in the training part of the log, most first
    blend.json              BlendWeights
    overlay.safetensors     only in a delta version: what lies on top of the index (``overlay.py``)
    sources.safetensors     what the candidate sources that ``blend.json`` names remember, if it names any
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from torch import Tensor

from bseq_plugin.data.events import ITEM, USER
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.errors import RunError, StoreError, UsageError
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.new_items import with_new_items
from bseq_plugin.model.tensor_file import create
from bseq_plugin.model.tensor_file import write as write_rows
from bseq_plugin.retrieval.blend import BlendWeights
from bseq_plugin.retrieval.choose import Choice, IndexTarget, choose_index, named_index
from bseq_plugin.retrieval.disk import sha256
from bseq_plugin.retrieval.export import Dedup, OnBad, exportable, moved, require_finite
from bseq_plugin.retrieval.golden import golden_queries
from bseq_plugin.retrieval.measure import spread_queries
from bseq_plugin.retrieval.overlay import Overlay
from bseq_plugin.retrieval.sources import fitted_sources, save_sources
from bseq_plugin.retrieval.store import Store

INDEX_FILE = "items.faiss"
N_TUNING = 512  # users whose interests "auto" measures with
PACKAGES = (
    "bseq-plugin",
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "pyarrow",
)


class RunLike(Protocol):
    """What ``train`` returns, as far as publishing needs it."""

    @property
    def path(self) -> Path:
        """The run directory."""


def publish(
    run: RunLike | str | Path,
    store: Store | str | Path,
    *,
    index: str = "auto",
    index_options: dict[str, Any] | None = None,
    histories: Sequences | None = None,
    items: pd.DataFrame | None = None,
    on_bad: OnBad = "error",
    dedup: Dedup = "error",
    target: IndexTarget | None = None,
) -> str:
    """Publish the best model of a finished run as the store's current version; returns the version's name.

    Args:
        index: name of an index (see ``bseq plugins``), or "auto": see ``choose_index``.
        histories: the users' histories to serve, in rows of the run's vocabulary; default: the whole log of the run.
        items: an items table; items that the run has never seen enter by what its item encoders say of them.
        on_bad: what to do with items whose vector has NaN or Inf, or for cosine scores no direction: "error", or
            "drop" them; their events are then of unknown items.
        dedup: what to do with item ids that are there twice: "error", or keep the "last".
        target: what ``index="auto"`` has to reach.

    Raises:
        RunError: the run is missing or not finished.
        StoreError: items that can't be published (listed by id), another publisher, a failing disk; nothing is
            published.
        UsageError: an unknown index or index option, or no index meets the target.
    """
    folder = Path(run) if isinstance(run, str | Path) else run.path
    model = InterestModel.from_run(folder)
    if histories is None:
        histories = histories_of_run(folder, model.vocabulary)
    weights = BlendWeights.load(folder / "blend.json") if (folder / "blend.json").is_file() else BlendWeights()
    return publish_model(
        model,
        histories,
        store,
        index=index,
        index_options=index_options,
        blend=weights,
        items=items,
        on_bad=on_bad,
        dedup=dedup,
        target=target,
    )


def histories_of_run(run: Path, vocabulary: Vocabulary) -> Sequences:
    """The whole log of a run; of one that was trained on partitions, from these."""
    if not (run / "sequences.parquet").is_file():
        raise RunError(f"{run} has no sequences.parquet; is it a run directory?")
    info = json.loads((run / "run.json").read_text(encoding="utf-8")) if (run / "run.json").is_file() else {}
    if "partitions" not in info:
        return Sequences.load(run / "sequences.parquet", vocabulary)
    log = PartitionedSequences.open(Path(info["partitions"]))
    if log.digest != info["log_sha256"]:
        raise RunError(f"{log.folder} is not what {run} was trained on; give the histories to serve: histories=")
    return log.read_all(vocabulary)


def publish_model(
    model: InterestModel,
    histories: Sequences,
    store: Store | str | Path,
    *,
    index: str = "auto",
    index_options: dict[str, Any] | None = None,
    blend: BlendWeights | None = None,
    items: pd.DataFrame | None = None,
    on_bad: OnBad = "error",
    dedup: Dedup = "error",
    target: IndexTarget | None = None,
) -> str:
    """``publish`` for a model in memory."""
    if not pd.Index(histories.user_ids).is_unique:
        raise UsageError("histories have a user twice; give each user one history")
    model, histories = exportable(model, histories, on_bad, dedup)
    if items is not None:
        model, histories = _with_new_items(model, histories, items)
    vectors_VD = model.item_vectors_VD[1:]
    if index != "auto":  # before the histories are encoded: an unusable index is told at once
        choice = named_index(index, vectors_VD, index_options)
    made = prepared(model, histories)
    if index == "auto":
        if index_options:
            raise UsageError(f"index_options = {index_options} need the index they are for; 'auto' chooses its own")
        queries_QD = spread_queries(made.interests_UKD, histories.lengths, N_TUNING)
        choice = choose_index(vectors_VD, queries_QD, target)
    return write_version(store, made, choice, blend or BlendWeights())


def _with_new_items(model: InterestModel, histories: Sequences, items: pd.DataFrame) -> tuple[InterestModel, Sequences]:
    longer = with_new_items(model, items, progress=True)
    ids_V, longer_ids = pd.Index(model.vocabulary.item_ids), pd.Index(longer.vocabulary.item_ids)
    return longer, replace(histories, items=moved(histories.items, ids_V, longer_ids))


@dataclass(frozen=True)
class Prepared:
    """A model with the histories it is served with, and their interests, all of them finite."""

    model: InterestModel
    histories: Sequences
    interests_UKD: Tensor


def prepared(model: InterestModel, histories: Sequences) -> Prepared:
    """Encode the histories. Raises StoreError that lists users whose interests have NaN or Inf."""
    interests_UKD = model.encode(histories)
    require_finite(interests_UKD.flatten(1), histories.user_ids, "interests", "users")
    return Prepared(model, histories, interests_UKD)


def write_version(
    store: Store | str | Path, made: Prepared, choice: Choice, blend: BlendWeights, overlay: Overlay | None = None
) -> str:
    """All files of a version, and its manifest, made current. Raises as ``publish``."""
    model, histories, interests_UKD = made.model, made.histories, made.interests_UKD
    sources = fitted_sources(blend.asked, histories, model.vocabulary.n_items)
    manifest = _manifest(model, histories, interests_UKD)
    manifest["index"] = {"name": choice.name, "options": choice.options}
    if choice.tried:
        manifest["index"]["measured"] = choice.tried[-1].as_json()
    manifest["golden"] = golden_queries(model, choice.index, histories, interests_UKD)

    def write(folder: Path) -> None:
        model.save(folder)
        pq.write_table(pa.table({ITEM: pa.array(model.vocabulary.item_ids)}), folder / "item_ids.parquet")
        vectors_VD = model.item_vectors_VD[1:]
        create(folder / "item_vectors.safetensors", {"item_vectors": (vectors_VD.shape[0], vectors_VD.shape[1])})
        write_rows(folder / "item_vectors.safetensors", "item_vectors", vectors_VD)
        histories.save(folder / "sequences.parquet", model.vocabulary)
        _write_interests(folder / "interests.parquet", histories, interests_UKD)
        _write_popular(folder / "popular.parquet", model)
        blend.save(folder / "blend.json")
        if sources:
            save_sources(sources, folder)
        if overlay is not None:
            overlay.save(folder)
        choice.index.save(folder / INDEX_FILE)
        manifest["encoder_id"] = sha256(folder / "encoder.safetensors")
        manifest["item_table_hash"] = sha256(folder / "items.safetensors")

    store = store if isinstance(store, Store) else Store(store)
    try:
        return store.publish(write, manifest)
    except SafetensorError as error:  # how a full disk shows itself there
        raise StoreError(f"publishing to {str(store.path)!r} failed: {error}; nothing was published") from error


def _manifest(model: InterestModel, histories: Sequences, interests_UKD: Tensor) -> dict[str, Any]:
    vectors_VD = model.item_vectors_VD[1:]
    times = histories.timestamps
    return {
        "packages": _package_versions(),
        "dim": vectors_VD.shape[1],
        "dtype": "float32",
        "metric": "inner_product",
        "normalised": all(_has_length_1(block_ND) for block_ND in torch.split(vectors_VD, 1 << 18)),
        "interests_per_user": interests_UKD.shape[1],
        "n_items": model.vocabulary.n_items,
        "n_users": histories.n_users,
        "n_events": histories.n_events,
        "watermark_us": int(times.max()) if times is not None and len(times) else None,
        "trained_until_us": model.trained_until_us,
    }


def _has_length_1(vectors_ND: Tensor) -> bool:
    return bool(((vectors_ND.norm(dim=1) - 1).abs() < 1e-3).all())


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _write_interests(path: Path, histories: Sequences, interests_UKD: Tensor) -> None:
    users = np.flatnonzero(histories.lengths)
    _, n_interests, dim = interests_UKD.shape
    repeated = np.repeat(users, n_interests)
    if histories.timestamps is None:
        newest = pa.nulls(len(repeated), pa.timestamp("us", "UTC"))
    else:
        newest = pa.array(histories.timestamps[histories.offsets[1:][repeated] - 1]).cast(pa.timestamp("us", "UTC"))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(interests_UKD[torch.from_numpy(users)].flatten().numpy()), dim)
    columns = {
        USER: pa.array(histories.user_ids[repeated]),
        "event_timestamp": newest,
        "n_events": pa.array(histories.lengths[repeated]),
        "interest_idx": pa.array(np.tile(np.arange(n_interests), len(users))),
        "vector": vectors,
    }
    pq.write_table(pa.table(columns), path)


def _write_popular(path: Path, model: InterestModel) -> None:
    order = np.argsort(-model.vocabulary.item_counts, kind="stable")
    frame = pd.DataFrame({ITEM: model.vocabulary.item_ids[order], "n_events": model.vocabulary.item_counts[order]})
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
