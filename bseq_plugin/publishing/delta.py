"""New, changed and removed items between two full builds: a version that keeps the index and lays the rest on top.

Building the index is what takes time with millions of items. A delta version keeps the file of the one before it:
items that changed are hidden in it and searched exactly beside it, new ones too, removed ones are never shown.
``merge_delta`` builds the index again over what is left, as the next ``publish`` of a run does.

Shape letters: N items of the delta, D width, P popularity columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.errors import UsageError
from bseq_plugin.events.ids import ids_like
from bseq_plugin.publishing.choose import Choice
from bseq_plugin.publishing.history_parts import InMemory
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.publishing.publishable import rows_after
from bseq_plugin.publishing.write_version import prepared, write_version
from bseq_plugin.serving.served import Served, load_index
from bseq_plugin.store.overlay import Overlay
from bseq_plugin.store.store import Store
from bseq_plugin.store.version import INDEX_FILE

MAX_SHARE = 0.2  # of the catalogue on top: beyond that, searching it exactly and over-fetching cost more than building


def publish_delta(
    store: Store | str | Path,
    item_ids: Iterable[object] = (),
    rows_ND: Tensor | None = None,
    *,
    removed: Iterable[object] = (),
    priors_NP: Tensor | None = None,
) -> str:
    """Publish the current version with other items; returns the version's name.

    Args:
        item_ids: new items, or known ones with a new vector. A removed item that is given again comes back.
        rows_ND: float32, their rows of the item table, as the model was trained with (attributes summed in).
        removed: items that are not shown any more. Histories may still have them.
        priors_NP: popularity columns of the items, for a recipe with ``popularity_days``.

    Raises:
        UsageError: shapes that do not fit, an item twice or both given and removed, an unknown item to remove, values
            that are not finite, or more items on top than is sensible.
        StoreError: the store has no intact version, another publisher; nothing is published.
    """
    opened = store if isinstance(store, Store) else Store(store)
    served = opened.load(lambda version: Served.load(version, None))
    catalogue = served.model.vocabulary.item_ids
    given, gone = (pd.Index(ids_like(x, catalogue, what)) for x, what in ((item_ids, "item_ids"), (removed, "removed")))
    _check(served, given, rows_ND, gone, priors_NP)
    known = served.model.vocabulary.item_rows(given.to_numpy()) - 1 if len(given) else np.empty(0, np.int64)
    rows = torch.empty(0, served.model.recipe.vectors.table_dim) if rows_ND is None else rows_ND
    model = served.model.with_rows(given.to_numpy(), rows, priors_NP)
    before = served.overlay
    went = served.model.vocabulary.item_rows(gone.to_numpy()) - 1 if len(gone) else np.empty(0, np.int64)
    overlay = Overlay(
        before.n_base,
        np.union1d(before.stale_S, known[(known >= 0) & (known < before.n_base)]),
        np.setdiff1d(np.union1d(before.removed_R, went), known),
    )
    on_top, n_items = len(overlay.stale_S) + model.vocabulary.n_items - overlay.n_base, model.vocabulary.n_items
    if on_top > MAX_SHARE * n_items:
        raise UsageError(f"{on_top} of {n_items} items would lie on top of the index; publish in full, or merge_delta")
    made, index = prepared(model, InMemory(served.histories)), served.version.manifest["index"]
    if not served.version.has(INDEX_FILE):  # nothing was built that could be kept
        overlay = replace(overlay, n_base=n_items, stale_S=overlay.stale_S[:0])
    kept = load_index(served.version, model.item_vectors_VD[1:], index["name"], overlay)
    return write_version(opened, made, Choice(kept, index["name"], index["options"]), served.blend, overlay)


def merge_delta(
    store: Store | str | Path, *, index: str | None = None, index_options: dict[str, Any] | None = None
) -> str:
    """Publish the current version in full: without the removed items, in order of ids, the index built anew.

    Args:
        index: name of an index, default: the one it has. Raises as ``publish_model``.
    """
    opened = store if isinstance(store, Store) else Store(store)
    served = opened.load(lambda version: Served.load(version, "exact"))
    ids_V = pd.Index(served.model.vocabulary.item_ids)
    left = np.setdiff1d(np.arange(len(ids_V)), served.overlay.removed_R)
    left = left[np.argsort(ids_V[left].to_numpy(), kind="stable")]
    if not len(left):
        raise UsageError("every item of the version is removed; there is nothing to publish")
    published = served.version.manifest["index"]
    options = published["options"] if index is None else index_options
    return publish_model(
        served.model.with_items(left),
        replace(served.histories, items=rows_after(ids_V, ids_V[left])[served.histories.items]),
        opened,
        index=index or published["name"],
        index_options=options,
        blend=served.blend,
    )


def _check(served: Served, given: pd.Index, rows_ND: Tensor | None, gone: pd.Index, priors_NP: Tensor | None) -> None:
    n_priors, dim = len(served.model.recipe.popularity_days), served.model.recipe.vectors.table_dim
    if not len(given) and not len(gone):
        raise UsageError("a delta of nothing: give item_ids with rows_ND, or removed")
    for what, ids in (("item_ids", given), ("removed", gone)):
        if not ids.is_unique or ids.hasnans:
            raise UsageError(
                f"{what} has an id twice or a missing one: {ids[ids.duplicated() | ids.isna()][:10].tolist()}"
            )
    both = given.intersection(gone)
    if len(both):
        raise UsageError(f"{len(both)} items are given and removed, for example {both[:10].tolist()}")
    for what, given_ND, width in (("rows_ND", rows_ND, dim), ("priors_NP", priors_NP, n_priors)):
        shape = (0, width) if given_ND is None else tuple(given_ND.shape)
        if width and shape != (len(given), width):
            raise UsageError(f"{what} has shape {shape}; wanted {(len(given), width)}, a row for each of item_ids")
        if given_ND is not None and not bool(torch.isfinite(given_ND).all()):
            raise UsageError(f"{what} has NaN or Inf; nothing is published")
    unknown = gone[served.model.vocabulary.item_rows(gone.to_numpy()) == 0] if len(gone) else gone
    if len(unknown):
        raise UsageError(f"{len(unknown)} items to remove are not in the store, for example {unknown[:10].tolist()}")
