"""From a finished run to a store version: item vectors, ids, index, encoder, histories, interests, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from bseq_plugin.data.events import Events
from bseq_plugin.data.interest_files import InterestFiles
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.errors import RunError, SchemaError, UsageError
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.new_items import with_new_items
from bseq_plugin.publishing.choose import IndexTarget, choose_index, named_index
from bseq_plugin.publishing.history_parts import HistoryParts, InMemory, InPartitions
from bseq_plugin.publishing.publishable import Dedup, OnBad, exportable, rows_after
from bseq_plugin.publishing.write_version import Report, prepared, write_version
from bseq_plugin.serving.blend import BlendWeights
from bseq_plugin.store.store import Store


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
    log: Events | None = None,
    on_bad: OnBad = "error",
    dedup: Dedup = "error",
    target: IndexTarget | None = None,
    report: Report = lambda what, done, of: None,
) -> str:
    """Publish the best model of a finished run as the store's current version; returns the version's name.

    Args:
        index: name of an index (see ``bseq plugins``), or "auto": see ``choose_index``.
        histories: the users' histories to serve, in rows of the run's vocabulary; default: the whole log of the run,
            of a run on partitions a part at a time, with the interests that its processes left.
        items: an items table; items that the run has never seen enter by what its item encoders say of them.
        log: with ``items``: all events by now, which may have the new items already. They are the histories to serve
            then, and popularity columns are those at their end.
        on_bad: what to do with items whose vector has NaN or Inf, or for cosine scores no direction: "error", or
            "drop" them; their events are then of unknown items.
        dedup: what to do with item ids that are there twice: "error", or keep the "last".
        target: what ``index="auto"`` has to reach.
        report: called with ("users", users written, users in all).

    Raises:
        RunError: the run is missing or not finished.
        SchemaError: partitions, or the interests of their users, that are damaged, or a ``log`` without what the model
            reads; nothing is published.
        StoreError: items that can't be published (listed by id), another publisher, a failing disk; nothing is
            published.
        UsageError: an unknown index or index option, no index meets the target, a user stands twice in the
            histories, or ``log`` without ``items``, beside ``histories``, older than the run, or with none of its
            users.
    """
    if log is not None and (items is None or histories is not None):
        raise UsageError("log brings the events of new items: give items with it, and no histories")
    folder = Path(run) if isinstance(run, str | Path) else run.path
    model = InterestModel.from_run(folder)
    served = histories_of_run(folder, model) if histories is None else _once_each(histories)
    weights = BlendWeights.load(folder / "blend.json") if (folder / "blend.json").is_file() else BlendWeights()
    return _publish(
        model,
        served,
        store,
        index=index,
        index_options=index_options,
        blend=weights,
        items=items,
        log=log,
        on_bad=on_bad,
        dedup=dedup,
        target=target,
        report=report,
    )


def histories_of_run(run: Path, model: InterestModel) -> HistoryParts:
    """The whole log of a run; of one that was trained on partitions, from these, with the interests the run has."""
    if not (run / "sequences.parquet").is_file():
        raise RunError(f"{run} has no sequences.parquet; is it a run directory?")
    info = json.loads((run / "run.json").read_text(encoding="utf-8")) if (run / "run.json").is_file() else {}
    if "partitions" not in info:
        return _once_each(Sequences.load(run / "sequences.parquet", model.vocabulary))
    log = PartitionedSequences.open(Path(info["partitions"]))
    if log.digest != info["log_sha256"]:
        raise RunError(f"{log.folder} is not what {run} was trained on; give the histories to serve: histories=")
    known = InterestFiles(run / "interests")
    fits = known.fits(run / "model", log.digest)
    return InPartitions(log, model, known if fits else None)


def _once_each(histories: Sequences) -> InMemory:
    if not pd.Index(histories.user_ids).is_unique:
        raise UsageError("histories have a user twice; give each user one history")
    return InMemory(histories)


def _require_later(log: Events, model: InterestModel) -> None:
    """Raises SchemaError for a log without times where training had them, and UsageError for one that ends before
    training did: its popularity and histories would be of the past.
    """
    if model.trained_until_us is None:
        return
    if not log.has_times:
        raise SchemaError("log has no times, but the run was trained with them; give the whole log by now, with times")
    if not len(log) or int(log.frame["timestamp"].max()) < model.trained_until_us:
        raise UsageError("log ends before the newest event that the run has learned from; give the whole log by now")


def _by_now(log: Events, model: InterestModel, known: HistoryParts) -> InMemory:
    """The histories of a log, in rows of ``model``.

    Raises UsageError if no user of the run is in it: ids are written otherwise, or one of both has pseudonyms, and raw
    ids would be stored. Raises SchemaError if the model reads what the log does not have.
    """
    histories = _once_each(Sequences.from_events(log, model.vocabulary))
    users = pd.Index(histories.histories.user_ids)
    if not any(pd.Index(part.histories.user_ids).isin(users).any() for part in known.parts()):
        raise UsageError(
            "no user of the run is in log; give the whole log by now, with user ids as in training: if the run was "
            "trained with --pseudonymise, give the same key"
        )
    model.check_log(histories.histories)
    return histories


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
    return _publish(
        model,
        _once_each(histories),
        store,
        index=index,
        index_options=index_options,
        blend=blend or BlendWeights(),
        items=items,
        on_bad=on_bad,
        dedup=dedup,
        target=target,
    )


def _publish(
    model: InterestModel,
    histories: HistoryParts,
    store: Store | str | Path,
    *,
    index: str,
    index_options: dict[str, Any] | None,
    blend: BlendWeights,
    items: pd.DataFrame | None,
    log: Events | None = None,
    on_bad: OnBad,
    dedup: Dedup,
    target: IndexTarget | None,
    report: Report = lambda what, done, of: None,
) -> str:
    model, rows = exportable(model, on_bad, dedup)
    if rows is not None:
        histories = histories.moved(rows)
    if log is not None:
        _require_later(log, model)
    if items is not None:
        longer = with_new_items(model, items, progress=True, log=log)
        ids_V, longer_ids = (pd.Index(one.vocabulary.item_ids) for one in (model, longer))
        histories = histories.moved(rows_after(ids_V, longer_ids))
        model = longer
        if log is not None:
            histories = _by_now(log, model, histories)
    vectors_VD = model.item_vectors_VD[1:]
    if index != "auto":  # before a history is encoded: an unusable index is told at once
        choice = named_index(index, vectors_VD, index_options)
    made = prepared(model, histories)
    if index == "auto":
        if index_options:
            raise UsageError(f"index_options = {index_options} need the index they are for; 'auto' chooses its own")
        choice = choose_index(vectors_VD, made.sample_NKD.flatten(0, 1), target)
    return write_version(store, made, choice, blend, report=report)
