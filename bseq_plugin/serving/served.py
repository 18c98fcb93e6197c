"""One store version in memory, checked against its golden queries before anybody is served from it."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor

from bseq_plugin.errors import (
    BseqError,
    MissingDependencyError,
    RecipeError,
    RunError,
    SchemaError,
    StoreError,
    UsageError,
)
from bseq_plugin.events.events import ITEM
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_gpu import FaissGpuIndex
from bseq_plugin.indexes.layered import LayeredIndex
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.schema.indexes import VectorIndex
from bseq_plugin.serving.blend import Blend
from bseq_plugin.serving.candidates import Answering
from bseq_plugin.serving.sources import SOURCES_FILE, load_sources
from bseq_plugin.store.overlay import Overlay
from bseq_plugin.store.version import INDEX_FILE, StoreVersion

MODEL_FILES = ("encoder.safetensors", "items.safetensors", "recipe.json", "vocabulary.parquet")
TOLERANCE = 1e-3  # of golden vectors and scores, relative: other machines add in another order
RECALL_SLACK = 0.05  # of an approximate index


@dataclass(frozen=True)
class Served(Answering):
    """Everything retrieval reads; immutable, so that a query is answered from one version from start to end."""

    version: StoreVersion
    histories: Sequences
    users: pd.Index
    overlay: Overlay

    @classmethod
    def load(cls, version: StoreVersion, index: str | None) -> Served:
        """Read a verified version. Raises StoreError if its parts don't fit together or fail the golden queries."""
        try:
            _check_pair(version)
            served = cls._load(version, index)
            _check_norms(served)
            if version.manifest["golden"]["users"]:
                _check_encoder(served)
                _check_index(served)
        except (RunError, SchemaError, RecipeError) as error:
            raise StoreError(f"version {version.name} can't be served: {error}") from error
        except BseqError:  # a plugin or package that is missing here says nothing against the version
            raise
        except Exception as error:  # readers of three formats raise what they like
            raise StoreError(f"version {version.name} can't be served: {type(error).__name__}: {error}") from error
        return served

    @classmethod
    def _load(cls, version: StoreVersion, index: str | None) -> Served:
        for name in MODEL_FILES:
            version.file(name)
        model = InterestModel.load(version.folder)
        vectors_VD = model.item_vectors_VD[1:]
        overlay = Overlay.of(version, len(vectors_VD))
        with ThreadPoolExecutor(max_workers=1) as pool:  # an index is the largest file: it is read beside the others
            loading = pool.submit(_chosen_index, version, vectors_VD, index, overlay)
            item_ids = pq.read_table(version.file("item_ids.parquet"))[ITEM].to_pandas().to_numpy()
            if not np.array_equal(item_ids, model.vocabulary.item_ids):
                raise StoreError(f"version {version.name}: item_ids.parquet and vocabulary.parquet differ")
            histories = Sequences.load(version.file("sequences.parquet"), model.vocabulary)
            try:
                blend = Blend.load(version.file("blend.json"))
            except UsageError as error:  # the publisher's mistake, not that of the reader who opens the store
                raise StoreError(f"version {version.name} can't be served: {error}") from error
            sources = load_sources(blend.asked, version.file(SOURCES_FILE)) if blend.asked else {}
            popular = pq.read_table(version.file("popular.parquet")).to_pandas()
            popular_rows = model.vocabulary.item_rows(popular[ITEM]) - 1
            counts, newest_us = popular["n_events"].to_numpy(np.int64), version.manifest["watermark_us"]
            exact, users = ExactIndex.build(vectors_VD), pd.Index(histories.user_ids)
            answers = (model, loading.result(), exact, blend, sources, newest_us, popular_rows, counts)
            return cls(*answers, version, histories, users, overlay)


def _chosen_index(version: StoreVersion, vectors_VD: Tensor, name: str | None, overlay: Overlay) -> VectorIndex:
    """Return the index ``name``; None: FAISS on a GPU if there is one, else as published, else exact with a warning."""
    published, options = version.manifest["index"]["name"], version.manifest["index"]["options"]
    if name is not None:
        return load_index(version, vectors_VD, name, overlay)
    # a published approximate index was chosen for its size: only exact ones move to the GPU by themselves
    if (
        published in ("exact", "faiss_cpu")
        and not options
        and torch.cuda.is_available()
        and not FaissGpuIndex.why_not()
    ):
        published = FaissGpuIndex.name
    try:
        return load_index(version, vectors_VD, published, overlay)
    except (MissingDependencyError, UsageError) as error:
        warnings.warn(f"index {published!r} can't be used here ({error}); using index 'exact'", stacklevel=2)
        return ExactIndex.build(vectors_VD)


def load_index(version: StoreVersion, vectors_VD: Tensor, name: str, overlay: Overlay) -> VectorIndex:
    """Return the index ``name`` of a version with what lies on top. Raises as ``VectorIndex.load`` and ``build``."""
    base = _load_base(version, vectors_VD[: overlay.n_base], name)
    if overlay.n_base == len(vectors_VD) and not len(overlay.stale_S):
        return base
    return LayeredIndex(base, vectors_VD, overlay.n_base, torch.from_numpy(overlay.stale_S))


def _load_base(version: StoreVersion, vectors_VD: Tensor, name: str) -> VectorIndex:
    part: type[VectorIndex] = plugin_manager().part("index", name)
    published = version.manifest["index"]
    options = part.checked_options(published["options"] if name == published["name"] else None)
    # only a file of the manifest has been verified; what merely lies in the folder is not read
    if name == published["name"] and version.has(INDEX_FILE):
        return part.load(version.file(INDEX_FILE), vectors_VD, options)
    return part.build(vectors_VD, options)


def _check_pair(version: StoreVersion) -> None:
    """Require the encoder and the item table that were published together: another pair of one width runs."""
    for field, name in (("encoder_id", "encoder.safetensors"), ("item_table_hash", "items.safetensors")):
        wanted, actual = version.manifest[field], version.manifest["files"].get(name, {}).get("sha256")
        if wanted != actual:
            raise StoreError(
                f"version {version.name}: its {name} is not the one it was published with ({field} {str(wanted)[:8]}, "
                f"found {str(actual)[:8]}); an encoder and an index of different trainings can't mix: publish again"
            )


def _check_norms(served: Served) -> None:
    """Require length 1 of vectors that are said to have it: a cosine is computed without dividing again."""
    if served.version.manifest["normalised"]:
        worst = float((served.model.item_vectors_VD[1:].norm(dim=1) - 1).abs().max())
        if not worst < TOLERANCE:
            raise StoreError(
                f"version {served.version.name} is marked as normalised, but the length of an item vector is off by "
                f"{worst:.2g}; publish again"
            )


def _check_encoder(served: Served) -> None:
    golden = served.version.manifest["golden"]
    wanted_GD = torch.tensor(golden["queries"])
    got_GD = served.model.encode(served.histories.take(np.array(golden["users"])))[:, 0]
    if not torch.allclose(got_GD, wanted_GD, rtol=TOLERANCE, atol=TOLERANCE):
        worst = float((got_GD - wanted_GD).abs().max())
        raise StoreError(
            f"version {served.version.name}: its encoder gives other interests here than when it was published (by up "
            f"to {worst:.2g}); is a plugin of another version installed? It was published with "
            f"{served.version.manifest['packages']}"
        )


def _check_index(served: Served) -> None:
    """Require items as good as the true ones for the golden queries: ids may differ only among equal scores."""
    golden, manifest = served.version.manifest["golden"], served.version.manifest
    wanted_Gk = torch.tensor(golden["scores"])
    scores_Gk, rows_Gk = served.index.search(torch.tensor(golden["queries"]), golden["k"])
    ids = served.model.vocabulary.item_ids
    true = [
        [ids[row] in wanted for row in rows] for rows, wanted in zip(rows_Gk.tolist(), golden["item_ids"], strict=True)
    ]
    slack_G1 = TOLERANCE * (1 + wanted_Gk.abs().max(dim=1, keepdim=True).values)
    as_good_Gk = (torch.tensor(true) & (rows_Gk >= 0)) | (scores_Gk >= wanted_Gk[:, -1:] - slack_G1)
    share = float(as_good_Gk.float().mean())
    if served.index.name == manifest["index"]["name"]:
        least = golden["recall"] - (0 if golden["recall"] == 1 else RECALL_SLACK)
    else:
        least = 1.0 if served.index.capabilities.exact else 0.0
    best_differ = least == 1 and not torch.allclose(scores_Gk, wanted_Gk, rtol=TOLERANCE, atol=float(slack_G1.max()))
    if share < least or best_differ:
        raise StoreError(
            f"version {served.version.name}: index {served.index.name!r} answers its golden queries with {share:.0%} "
            f"of the items it should find (published with {golden['recall']:.0%}); publish again"
        )
