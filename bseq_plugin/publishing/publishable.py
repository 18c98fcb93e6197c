"""Which items of a model can be published: each id once, every vector finite and, for cosine scores, with a direction.

Shape letters: V items, D width, G items that stay. Rows here are index rows 0..V-1: vocabulary row minus 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.indexes.checks import all_finite
from bseq_plugin.model.interest_model import InterestModel

OnBad = Literal["error", "drop"]
Dedup = Literal["error", "last"]
ROWS = 1 << 16  # of the item vectors, checked at a time


def exportable(
    model: InterestModel, on_bad: OnBad = "error", dedup: Dedup = "error"
) -> tuple[InterestModel, np.ndarray | None]:
    """Return the model as it can be published, and its item rows by now: int64 ``[V + 1]``, 0 for those left out.

    The same object and None if there is nothing to leave out.

    Args:
        on_bad: "drop" leaves out items without a usable vector; their events become events of unknown items.
        dedup: "last" keeps the last row of an id that is there several times; events of the others move to it.

    Raises:
        StoreError: an id twice, a vector with NaN or Inf or without a direction, listed by id; or nothing is left.
        UsageError: another ``on_bad`` or ``dedup``.
    """
    for name, value, choices in (("on_bad", on_bad, ("error", "drop")), ("dedup", dedup, ("error", "last"))):
        if value not in choices:
            raise UsageError(f"{name} = {value!r}; use {' or '.join(map(repr, choices))}")
    ids_V = pd.Index(model.vocabulary.item_ids)
    kept_V = ~ids_V.duplicated(keep="last")
    if dedup == "error" and not kept_V.all():
        raise StoreError(
            f"{int((~kept_V).sum())} item ids are there more than once, for example "
            f"{ids_V[~kept_V].unique()[:10].tolist()}; nothing is published: make them unique, or publish with "
            "dedup='last'"
        )
    kept_V &= _usable(model, kept_V, on_bad)
    if kept_V.all():
        return model, None
    if not kept_V.any():
        raise StoreError("no item has a usable vector; nothing is published: train again, with a lower learning rate")
    # by id: events of a duplicate move to the one that is kept
    return model.with_items(np.flatnonzero(kept_V)), rows_after(ids_V, pd.Index(ids_V[kept_V]))


def require_finite(vectors_ND: Tensor, ids_N: np.ndarray, what: str, owners: str) -> None:
    """Raise StoreError that lists the first ten ids whose vector has NaN or Inf."""
    if not all_finite(vectors_ND):
        _refuse(~torch.isfinite(vectors_ND).all(1).numpy(), ids_N, what, owners)


def _refuse(bad_N: np.ndarray, ids_N: np.ndarray, what: str, owners: str) -> None:
    if bad_N.any():
        raise StoreError(
            f"{what} of {int(bad_N.sum())} {owners} have NaN or Inf, for example {ids_N[bad_N][:10].tolist()}; "
            "nothing is published: train again, with a lower learning rate"
        )


def _of_blocks(vectors_VD: Tensor, ask: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Return bool [V], computed a block of rows at a time: a table that is a mapped file is not copied."""
    return torch.cat([ask(block_ND) for block_ND in torch.split(vectors_VD, ROWS)]).numpy()


def _usable(model: InterestModel, kept_V: np.ndarray, on_bad: OnBad) -> np.ndarray:
    """Return bool [V], the items whose vector can be searched for. With "error" the first fault is raised instead."""
    vectors_VD, ids_V = model.item_vectors_VD[1:], model.vocabulary.item_ids
    finite_V = _of_blocks(vectors_VD, lambda block_ND: torch.isfinite(block_ND).all(1))
    usable_V = finite_V.copy()
    if (
        model.towers is None and model.recipe.vectors.cosine
    ):  # nothing is divided by zero, but a vector of zeros has no cosine
        # the popularity columns stand behind the direction and do not count
        dim = model.recipe.vectors.table_dim
        usable_V &= _of_blocks(vectors_VD, lambda block_ND: block_ND[:, :dim].norm(dim=1) > 0.5)
    bad_V = kept_V & ~usable_V
    if on_bad == "error":
        _refuse(kept_V & ~finite_V, ids_V, "item vectors", "items")
        if bad_V.any():
            raise StoreError(
                f"item vectors of {int(bad_V.sum())} items are zero and have no cosine, for example "
                f"{ids_V[bad_V][:10].tolist()}; nothing is published: train again, or publish with on_bad='drop'"
            )
    elif bad_V.any():
        warnings.warn(
            f"{int(bad_V.sum())} items have no usable vector (NaN, Inf or zero) and are left out, for example "
            f"{ids_V[bad_V][:10].tolist()}",
            stacklevel=4,
        )
    return usable_V


def rows_after(old_ids: pd.Index, new_ids: pd.Index) -> np.ndarray:
    """Return int64 ``[V + 1]``, the row of each old id among the new ones, which are unique; 0 for one that is gone."""
    return np.concatenate([[0], new_ids.get_indexer(old_ids) + 1]).astype(np.int64)
