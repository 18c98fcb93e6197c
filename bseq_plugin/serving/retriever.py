"""Candidates for users, from a store: what a serving process holds.

Shape letters: B users, K interests, D width, N hits, P (user, item) pairs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.events.events import ITEM, USER, instant_us
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.serving.candidates import Candidates
from bseq_plugin.serving.diversity import Diversity
from bseq_plugin.serving.filters import Filters
from bseq_plugin.serving.histories import History, anonymous, read_history
from bseq_plugin.serving.request import Request
from bseq_plugin.serving.served import Served
from bseq_plugin.store.store import Store


class Retriever:
    """Answers from one verified store version at a time; safe to use from many threads.

    Open it with ``Retriever.open``. A process that forks must open its own: searching after a fork can hang.
    """

    def __init__(self, store: Store, served: Served, index: str | None) -> None:
        self._store = store
        self._served = served
        self._index = index
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._n_unknown_items = 0

    @classmethod
    def open(cls, store: Store | str | Path, index: str | None = None) -> Retriever:
        """Load the current version; if it is damaged, the newest intact one before it, with a warning.

        Args:
            index: name of an index; None: FAISS on a GPU where there is one, else the one it was published with.

        Raises:
            StoreError: no version is intact.
            UsageError, MissingDependencyError: the index asked for is unknown or not usable here.
        """
        store = store if isinstance(store, Store) else Store(store)
        return cls(store, store.load(lambda version: Served.load(version, index)), index)

    @property
    def version(self) -> str:
        """Return the name of the version that is served."""
        return self._served.version.name

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Return what the version says about itself."""
        return self._served.version.manifest

    @property
    def model(self) -> InterestModel:
        """Return the version's encoder, item vectors and vocabulary."""
        return self._served.model

    @property
    def histories(self) -> Sequences:
        """Return the histories of the users in the store."""
        return self._served.histories

    @property
    def n_unknown_items(self) -> int:
        """Return how many events of unknown items were in all histories given so far."""
        return self._n_unknown_items

    def refresh(self) -> bool:
        """Serve the store's current version; True if that is another one than before.

        Raises StoreError if the current version is damaged or fails its golden queries: the old one goes on serving.
        """
        self._check_process()
        if self._store.current_name() == self.version:  # a poll costs one small file
            return False
        self._served = Served.load(self._store.current(), self._index)
        return True

    def retrieve(
        self,
        history: History,
        k: int = 20,
        exclude: Literal["seen", "none"] = "seen",
        blend: bool = True,
        at: object | None = None,
        allow_future_model: bool = False,
        filters: Filters | None = None,
        diversity: Diversity | None = None,
    ) -> pd.DataFrame:
        """Return the k best items of each user.

        Args:
            history: user ids of the store; or events given now: a DataFrame (user_id, item_id, timestamp
                [, event_type]), ``Events``, or ``Sequences`` in rows of ``retriever.model.vocabulary``. Unknown items
                are counted in ``n_unknown_items`` and read as such; a history without a known item gets the most
                popular items.
            exclude: "seen" leaves out the items of the history.
            blend: score items by interest, by the candidate sources of the version, and with ``exclude="none"`` by the
                user's own history (see ``blend.py``).
            at: a time with a time zone; only events strictly before it that had arrived by then (``created_timestamp``)
                count, and ages are measured from it. Default: all events; ages from the newest event of the store or of
                the user, whichever is later.
            allow_future_model: answer an ``at`` before the end of training too, with vectors and popularity that know
                what came after it.
            filters: what may be shown, beside ``exclude``: see ``Filters``.
            diversity: how much a list may repeat its categories; the rank is then no longer that of the score. See
                ``Diversity``.

        Returns:
            Columns user_id, item_id, rank (from 1), score (float32), interest (which of the user's interests; missing
            for popular items), source ("interest", "history", names of candidate sources, several joined by "+"; or
            "popular"), exhausted. Users come in the order of the history, best item first, no item twice. There are
            fewer than k rows where the catalogue has no more that may be shown; then ``exhausted`` is True in all rows
            of the user (or the user has no row).

        Raises:
            UsageError: k below 1, an unknown user, an unknown ``exclude``, events that break the format, an ``at``
                that the model was trained beyond.
            StoreError: the process has forked since ``open``.
        """
        self._check_process()
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise UsageError(f"k = {k!r}; give a whole number of 1 or more")
        if exclude not in ("seen", "none"):
            raise UsageError(f"exclude = {exclude!r}; use 'seen' or 'none'")
        served = self._served
        histories = read_history(history, served.model.vocabulary, served.histories, served.users)
        at_us = None if at is None else instant_us(at)
        if at_us is not None:
            trained_until_us = served.model.trained_until_us
            if trained_until_us is not None and trained_until_us >= at_us and not allow_future_model:
                raise UsageError(
                    f"at = {at} lies before the end of training ({pd.Timestamp(trained_until_us, unit='us')} UTC): the "
                    "vectors know what came after it. Use a version trained before, or allow_future_model=True"
                )
            histories = histories.known_at(at_us)
        rules = (filters or Filters()).resolve(served.model.vocabulary, histories.user_ids)
        allowed_V = served.overlay.allowed(rules.allowed_V, served.model.vocabulary.n_items)
        rules = replace(rules, allowed_V=allowed_V)
        spread = None if diversity is None else diversity.resolve(served.model.vocabulary)
        request = Request(served, histories, exclude == "seen", blend, at_us, rules)
        with self._lock:
            self._n_unknown_items += request.n_unknown
        return _frame(request.answer(int(k), spread), histories, served, int(k))

    def retrieve_items(
        self,
        item_ids: Sequence[object] | np.ndarray,
        k: int = 20,
        exclude: Literal["seen", "none"] = "seen",
        blend: bool = True,
    ) -> pd.DataFrame:
        """Retrieve for one anonymous history of item ids, oldest first; its ``user_id`` is 0.

        The events are taken to be of one moment, the newest in the store, and of an unknown type.
        """
        self._check_process()
        served = self._served
        return self.retrieve(anonymous(item_ids, served.model.vocabulary, served.watermark_us), k, exclude, blend)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                f"this retriever was opened in process {self._pid} and is used in its fork {os.getpid()}, where a "
                "search can hang: call Retriever.open in the child, or start it with 'spawn'"
            )


def _frame(candidates: Candidates, histories: Sequences, served: Served, k: int) -> pd.DataFrame:
    hits = candidates.hits
    exhausted_B = np.bincount(hits.users_N, minlength=histories.n_users) < k
    return pd.DataFrame(
        {
            USER: histories.user_ids[hits.users_N],
            ITEM: served.model.vocabulary.item_ids[hits.rows_N],
            "rank": hits.ranks(),
            "score": hits.scores_N,
            "interest": pd.arrays.IntegerArray(hits.interests_N, hits.interests_N < 0),
            "source": candidates.sources_N,
            "exhausted": exhausted_B[hits.users_N],
        }
    )
