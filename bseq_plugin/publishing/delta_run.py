"""A run that went on from the published one, as a delta: only the rows that training changed lie on top of the index.

Training with sampled candidates reads, and so changes, the rows of the items it met. The others are, bit by bit, those
the index was built of. The encoder is replaced as a whole, and every history is encoded again.

Shape letters: V items, D width, U users, T events.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.data.sequences import EVENT_COLUMNS, Sequences
from bseq_plugin.errors import UsageError
from bseq_plugin.model.interest_model import ITEM_WEIGHT, KEYS, InterestModel
from bseq_plugin.model.run import Run
from bseq_plugin.publishing.delta import check_on_top, write_delta
from bseq_plugin.publishing.history_parts import InMemory
from bseq_plugin.publishing.publish import histories_of_run
from bseq_plugin.publishing.publishable import require_finite, rows_after
from bseq_plugin.publishing.write_version import prepared
from bseq_plugin.serving.blend import Blend
from bseq_plugin.serving.served import Served
from bseq_plugin.store.overlay import Overlay
from bseq_plugin.store.store import Store

ROWS = 1 << 18  # of the item vectors, compared at a time


def publish_run_delta(run: Run | str | Path, store: Store | str | Path, *, blend: Blend | None = None) -> str:
    """Publish a run's model over the index of the current version; return the version's name.

    Items that the run does not know keep their rows; what was removed stays removed. Histories are those of the
    version, and behind them the run's events that are newer than its newest one; without times, those of the run.
    ``blend``: None keeps the version's.

    Raises:
        UsageError: vectors that can't lie in one index with the version's (another width or score), ids of another
            kind, or more changed rows than is sensible: then ``publish`` in full.
        RunError: the run is missing or not finished.
        StoreError: no intact version, vectors that are not finite, another publisher; nothing is published.
    """
    opened = store if isinstance(store, Store) else Store(store)
    served = opened.load(lambda version: Served.load(version, None))
    finished = Run.open(run)
    new = finished.model()
    _check_pair(served.model, new, finished.path)
    model = composed(served.model, new)
    changed_C = changed_rows(served.model.item_vectors_VD[1:], model.item_vectors_VD[1:])
    require_finite(model.item_vectors_VD[1:][changed_C], model.vocabulary.item_ids[changed_C], "item vectors", "items")
    before = served.overlay
    stale_S = np.union1d(before.stale_S, changed_C[changed_C < before.n_base])
    overlay = Overlay(before.n_base, stale_S, before.removed_R)
    check_on_top(overlay, model.vocabulary.n_items)
    rows = rows_after(*(pd.Index(m.vocabulary.item_ids) for m in (new, model)))
    histories = _continued(served, histories_of_run(finished, new).moved(rows).whole(), model)
    return write_delta(opened, served, prepared(model, InMemory(histories)), overlay, blend or served.blend)


def composed(old: InterestModel, new: InterestModel) -> InterestModel:
    """``new`` over the items of ``old``, in their order, and its own new ones behind; unknown items as in ``old``.

    An item is as popular as ``new`` has counted it.
    """
    old_ids = old.vocabulary.item_ids
    fresh = pd.Index(new.vocabulary.item_ids).difference(pd.Index(old_ids), sort=False).to_numpy()
    ids_V = np.concatenate([old_ids, fresh.astype(old_ids.dtype)])
    rows_V = new.vocabulary.item_rows(ids_V)
    counts_V = np.concatenate([[0], new.vocabulary.item_counts])[rows_V]
    known = torch.from_numpy(np.concatenate([[True], rows_V > 0]))
    rows = torch.from_numpy(np.concatenate([[0], rows_V]))
    state = dict(new.encoder.state_dict())
    state[ITEM_WEIGHT] = _merged(old.item_table_VD, new.item_table_VD, rows, known)
    if KEYS in state:  # of an item that the run does not know there are no events to learn a neighbour from
        state[KEYS] = state[KEYS][rows] * known[:, None]
    priors = None
    if old.item_priors_VP is not None and new.item_priors_VP is not None:
        priors = _merged(old.item_priors_VP, new.item_priors_VP, rows, known)
    vocabulary = replace(new.vocabulary, item_ids=ids_V, item_counts=counts_V)
    return InterestModel.from_state(new.recipe, vocabulary, state, priors, new.trained_until_us, copy=False)


def changed_rows(old_VD: Tensor, new_WD: Tensor) -> np.ndarray:
    """int64, ascending: rows of ``new_WD`` that are not bit by bit those of ``old_VD``, the additional ones too."""
    found = [
        start + torch.nonzero((old_ND != new_WD[start : start + len(old_ND)]).any(1)).flatten()
        for start, old_ND in zip(range(0, len(old_VD), ROWS), torch.split(old_VD, ROWS), strict=True)
    ]
    return torch.cat([*found, torch.arange(len(old_VD), len(new_WD))]).numpy()


def _merged(old_VD: Tensor, new_WD: Tensor, rows_V: Tensor, known_V: Tensor) -> Tensor:
    merged_VD = new_WD.detach()[rows_V]
    unknown = torch.nonzero(~known_V).flatten()  # all of them are rows of the old table: the new ones come behind
    merged_VD[unknown] = old_VD.detach()[unknown]
    return merged_VD


def _check_pair(old: InterestModel, new: InterestModel, run: Path) -> None:
    for name in ("dim", "members", "score", "popularity_days"):
        before, now = getattr(old.recipe, name), getattr(new.recipe, name)
        if before != now:
            raise UsageError(
                f"{run} has {name} = {now!r}, the version in the store {before!r}: their vectors can't lie in one "
                "index; publish in full"
            )
    kinds = [np.issubdtype(model.vocabulary.item_ids.dtype, np.integer) for model in (old, new)]
    if kinds[0] != kinds[1]:
        raise UsageError(f"item ids of {run} and of the store are of different kinds (integers, text); publish in full")


def _continued(served: Served, log: Sequences, model: InterestModel) -> Sequences:
    """The version's histories and the newer events of ``log``, in rows of ``model``, whose items begin as before."""
    before = served.histories
    if before.timestamps is None or log.timestamps is None:
        return log
    if before.event_types is not None:
        rows = model.vocabulary.event_type_rows(list(served.model.vocabulary.event_types))
        before = replace(before, event_types=np.concatenate([[0], rows])[before.event_types])
    newer = log.between(served.watermark_us + 1, None) if served.watermark_us is not None else log
    newer = newer.take(np.flatnonzero(newer.lengths))
    return followed(before, newer)


def followed(first: Sequences, then: Sequences) -> Sequences:
    """Each user's events of ``first`` and then those of ``then``; new users come behind, in the order of ``then``.

    Without event types on one side these are unknown types (0), without values there are none (NaN), without sessions
    there are none at all, and events without the time at which they became known were known at once. Raises UsageError
    for user ids of different kinds.
    """
    known = pd.Index(first.user_ids)
    if first.n_users and then.n_users and pd.Index(then.user_ids).dtype.kind != known.dtype.kind:
        raise UsageError("user ids of the run and of the store are of different kinds (integers, text)")
    users = np.concatenate([first.user_ids, then.user_ids[known.get_indexer(then.user_ids) < 0]])
    places = pd.Index(users).get_indexer(then.user_ids)
    user_T = np.concatenate([first.user_index, places[then.user_index]])
    order_T = np.argsort(user_T, kind="stable")
    columns = {name: _joined(name, first, then) for name in EVENT_COLUMNS}
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user_T, minlength=len(users)))]).astype(np.int64)
    of_users = {name: None if values is None else values[order_T] for name, values in columns.items()}
    return Sequences(users, offsets, **of_users)  # type: ignore[arg-type]  # items are always there


def _joined(name: str, first: Sequences, then: Sequences) -> np.ndarray | None:
    parts = [getattr(first, name), getattr(then, name)]
    if all(part is None for part in parts) or (name == "session_ids" and any(part is None for part in parts)):
        return None
    for place, log in enumerate((first, then)):
        if parts[place] is None:
            nothing = np.full(log.n_events, np.nan) if name == "values" else np.zeros(log.n_events, np.int64)
            parts[place] = log.timestamps if name == "created" else nothing
    if name == "session_ids":  # numbers of two logs: the later ones stand above
        parts[1] = parts[1] + parts[0].max(initial=0) + 1
    return np.concatenate(parts)
