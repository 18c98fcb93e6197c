"""The files of a store version and its manifest, written as a stream: no list of all users, and no copy of all items.

Files of a version, beside MANIFEST.json:

    encoder.safetensors items.safetensors recipe.json vocabulary.parquet   the model, as ``InterestModel`` writes it
    item_ids.parquet        item_id, in the order of the index rows
    item_vectors.safetensors  "item_vectors" float32 [V, D] in that order: what an interest is multiplied with
    items.faiss             the index, if the backend has a file of its own
    sequences.parquet       the users' histories, as ``Sequences`` writes them
    interests.parquet       user_id, event_timestamp (newest event), n_events, interest_idx, vector
    popular.parquet         item_id, n_events in the training part of the log, most first
    blend.json              Blend
    overlay.safetensors     only in a delta version: what lies on top of the index (``overlay.py``)
    sources.safetensors     what the candidate sources that ``blend.json`` names remember, if it names any
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from torch import Tensor

from bseq_plugin.data.interest_files import TableStream, interest_table
from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.events.events import ITEM
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.tensor_file import create
from bseq_plugin.model.tensor_file import write as write_rows
from bseq_plugin.publishing.choose import Choice
from bseq_plugin.publishing.history_parts import HistoryParts, hashed, repeated_users, spread
from bseq_plugin.publishing.measure import recall
from bseq_plugin.publishing.publishable import require_finite
from bseq_plugin.schema.indexes import VectorIndex
from bseq_plugin.serving.blend import Blend
from bseq_plugin.serving.sources import fitted_sources, save_sources
from bseq_plugin.store.disk import sha256
from bseq_plugin.store.overlay import Overlay
from bseq_plugin.store.store import Store
from bseq_plugin.store.version import INDEX_FILE

N_SAMPLED = 512  # users whose interests "auto" measures with, and golden queries are taken from
Report = Callable[[str, int, int], None]  # (what, done, of how many)
CPU_OR_GPU = ("fbgemm-gpu-cpu", "fbgemm-gpu", "faiss-cpu", "faiss-gpu")  # one of each pair is installed
PACKAGES = ("bseq-plugin", "torch", "torchrec", *CPU_OR_GPU, "numpy", "pyarrow")


@dataclass(frozen=True)
class Prepared:
    """A model with the histories it is served with, and a few of these with their interests, all finite.

    Attributes:
        places: int64 [N], where the users of ``sample`` stand among all, in the order of ``histories.parts()``.
        sample_NKD: float32, their interests.
    """

    model: InterestModel
    histories: HistoryParts
    places: np.ndarray
    sample_NKD: Tensor


def prepared(model: InterestModel, histories: HistoryParts) -> Prepared:
    """Encode a sample of the histories. Raises StoreError that lists users whose interests have NaN or Inf."""
    places, sample = histories.sample(N_SAMPLED)
    return Prepared(model, histories, places, _finite_interests(model, sample))


def write_version(
    store: Store | str | Path,
    made: Prepared,
    choice: Choice,
    blend: Blend,
    overlay: Overlay | None = None,
    report: Report = lambda what, done, of: None,
) -> str:
    """Write all files of a version and its manifest, and make it current. Raises as ``publish``."""
    model = made.model
    sources = fitted_sources(blend.asked, made.histories.whole(), model.vocabulary.n_items) if blend.asked else {}
    manifest = _manifest(made)
    manifest["index"] = {"name": choice.name, "options": choice.options}
    if choice.tried:
        manifest["index"]["measured"] = asdict(choice.tried[-1])
    manifest["golden"] = golden_queries(model, choice.index, made.places, made.sample_NKD)

    def write(folder: Path) -> None:
        model.save(folder)
        pq.write_table(pa.table({ITEM: pa.array(model.vocabulary.item_ids)}), folder / "item_ids.parquet")
        vectors_VD = model.item_vectors_VD[1:]
        create(folder / "item_vectors.safetensors", {"item_vectors": (vectors_VD.shape[0], vectors_VD.shape[1])})
        write_rows(folder / "item_vectors.safetensors", "item_vectors", vectors_VD)
        manifest.update(_write_users(folder, made, report))
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


def _write_users(folder: Path, made: Prepared, report: Report) -> dict[str, Any]:
    """Write histories and interests by part; return what the manifest says of them. Raises StoreError, UsageError."""
    n_users = n_events = newest_us = 0
    hashes_U = np.empty(made.histories.n_users, np.uint64)
    sequences, interests = TableStream(folder / "sequences.parquet"), TableStream(folder / "interests.parquet")
    with closing(sequences), closing(interests):
        for part in made.histories.parts():
            histories = part.histories
            found_UKD = _finite_interests(made.model, histories, part.interests_UKD)
            sequences.write(histories.to_table(made.model.vocabulary))
            interests.write(interest_table(histories, found_UKD))
            hashes_U[n_users : n_users + histories.n_users] = hashed(histories)
            n_users, n_events = n_users + histories.n_users, n_events + histories.n_events
            report("users", n_users, made.histories.n_users)
            newest_us = max(newest_us, histories.newest_us or 0)
    repeated = repeated_users(made.histories, hashes_U[:n_users])
    if repeated:
        raise UsageError(
            f"{len(repeated)} users stand twice in the histories, for example {repeated[:10]}; nothing is published: "
            "give each user one history"
        )
    return {"n_users": n_users, "n_events": n_events, "watermark_us": newest_us or None}


def _finite_interests(model: InterestModel, histories: Sequences, known_UKD: Tensor | None = None) -> Tensor:
    interests_UKD = model.encode(histories) if known_UKD is None else known_UKD
    require_finite(interests_UKD.flatten(1), histories.user_ids, "interests", "users")
    return interests_UKD


def _manifest(made: Prepared) -> dict[str, Any]:
    model = made.model
    vectors_VD = model.item_vectors_VD[1:]
    return {
        "packages": _package_versions(),
        "dim": vectors_VD.shape[1],
        "dtype": "float32",
        "metric": "inner_product",
        "normalised": all(bool(((v.norm(dim=1) - 1).abs() < 1e-3).all()) for v in torch.split(vectors_VD, 1 << 18)),
        "interests_per_user": made.sample_NKD.shape[1],
        "n_items": model.vocabulary.n_items,
        "trained_until_us": model.trained_until_us,
    }


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _write_popular(path: Path, model: InterestModel) -> None:
    order = np.argsort(-model.vocabulary.item_counts, kind="stable")
    frame = pd.DataFrame({ITEM: model.vocabulary.item_ids[order], "n_events": model.vocabulary.item_counts[order]})
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)


N_GOLDEN, GOLDEN_K = 16, 10


def golden_queries(
    model: InterestModel, index: VectorIndex, places: np.ndarray, interests_NKD: Tensor
) -> dict[str, Any]:
    """Return real queries with their true answers, and what the index finds of them; readers repeat them first.

    ``places``: int64 [N], where the users of ``interests_NKD`` stand in the version's histories.
    """
    chosen = spread(np.arange(len(places)), N_GOLDEN)
    users, queries_GD = places[chosen], interests_NKD[torch.from_numpy(chosen), 0]
    vectors_VD = model.item_vectors_VD[1:]
    k = min(GOLDEN_K, len(vectors_VD))
    scores_Gk, rows_Gk = ExactIndex.build(vectors_VD).search(queries_GD, k)
    _, found_Gk = index.search(queries_GD, k)
    return {
        "users": users.tolist(),
        "queries": queries_GD.tolist(),
        "k": k,
        "item_ids": [model.vocabulary.item_ids[rows].tolist() for rows in rows_Gk.numpy()],
        "scores": scores_Gk.tolist(),
        "recall": recall(found_Gk, rows_Gk),
    }
