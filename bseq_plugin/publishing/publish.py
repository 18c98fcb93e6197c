"""From a finished run to a store version: item vectors, ids, index, encoder, histories, interests, all or nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
from torch import nn

from bseq_plugin.data.interest_files import InterestFiles
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.distributed import world
from bseq_plugin.errors import RunError, SchemaError, UsageError
from bseq_plugin.events.events import Events
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.model.from_host import model_of_host
from bseq_plugin.model.host_inputs import check_ids
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.new_items import with_new_items
from bseq_plugin.model.run import Run
from bseq_plugin.model.towers import Towers
from bseq_plugin.publishing.choose import Choice, IndexTarget, choose_index
from bseq_plugin.publishing.history_parts import HistoryParts, InMemory, InPartitions
from bseq_plugin.publishing.measure import built
from bseq_plugin.publishing.publishable import Dedup, OnBad, exportable, rows_after
from bseq_plugin.publishing.write_version import Report, prepared, write_version
from bseq_plugin.serving.blend import Blend
from bseq_plugin.store.store import Store


def publish(
    run: Run | str | Path | InterestModel | nn.Module | Towers,
    store: Store | str | Path,
    *,
    blend: Blend | None = None,
    index: str = "auto",
    index_options: dict[str, Any] | None = None,
    histories: Sequences | None = None,
    items: pd.DataFrame | None = None,
    log: Events | None = None,
    vocabulary: Vocabulary | None = None,
    trained_until: object = None,
    on_bad: OnBad = "error",
    dedup: Dedup = "error",
    target: IndexTarget | None = None,
    report: Report = lambda what, done, of: None,
) -> str:
    """Publish the best model of a finished run, or what a host model has trained, as the store's current version.

    Return the version's name. A host may be sharded: every rank calls this with the same arguments, and all return the
    name, or raise what is wrong on one of them. Nothing becomes current unless the host's own scores of sampled
    (history, item) pairs equal the store's to 1e-5 of the largest.

    Args:
        run: a finished run, or its folder; a trained model (``InterestModel``); or a host: a module with an encoder
            inside, under ``DistributedModelParallel`` or not, or its ``Towers`` (see ``export_towers``).
        blend: how interest, personal history and candidate sources count (``fit_blend``); None: interest alone.
        index: name of an index (see ``bseq plugins``), or "auto": see ``choose_index``.
        histories: the users' histories to serve, in rows of the vocabulary; default: the whole log of the run, of a
            run on partitions a part at a time, with the interests that its processes left.
        items: an items table; items that the run has never seen enter by what its item encoders say of them.
        log: with ``items``: all events by now, which may have the new items already. They are the histories to serve
            then, and popularity columns are those at their end.
        vocabulary: of a host: its items, in the order of the rows of the encoder's table.
        trained_until: of a host: time of the newest event that it has learned from; without it ranking features can't
            tell whether the model knows the future.
        on_bad: what to do with items whose vector has NaN or Inf, or for cosine scores no direction: "error", or
            "drop" them; their events are then of unknown items.
        dedup: what to do with item ids that are there twice: "error", or keep the "last".
        target: what ``index="auto"`` has to reach.
        report: called with ("users", users written, users in all).

    Raises:
        RunError: the run is missing or not finished, or a host scores otherwise than the store would.
        SchemaError: partitions, or the interests of their users, that are damaged, or a ``log`` without what the model
            reads; nothing is published.
        StoreError: items that can't be published (listed by id), another publisher, a failing disk; nothing is
            published.
        UsageError: a host that can't be published (see ``export_towers``), or histories or a vocabulary that are
            missing or too many; an unknown index or index option, no index meets the target, a user stands twice in the
            histories, or ``log`` without ``items``, beside ``histories``, older than the run, or with none of its
            users.
    """
    publish_it = partial(
        publish_model, store=store, blend=blend, index=index, index_options=index_options, items=items, log=log,
        on_bad=on_bad, dedup=dedup, target=target, report=report,
    )  # fmt: skip
    if isinstance(run, nn.Module | Towers):
        with world() as here:  # what all ranks hold together
            here.on_all(lambda: _check_log(log, items, histories))
            model = model_of_host(run, vocabulary, histories, trained_until)
            return here.on_first(lambda: publish_it(cast(InterestModel, model), cast(Sequences, histories)))
    _check_log(log, items, histories)
    if vocabulary is not None or trained_until is not None:
        raise UsageError("vocabulary and trained_until are for a host model; a run has its own: leave them out")
    if isinstance(run, InterestModel):
        if histories is None:
            raise UsageError("a model is published with the histories to serve: histories=")
        return publish_it(run, histories)
    opened = Run.open(run)
    trained = opened.model()
    return publish_it(trained, histories_of_run(opened, trained) if histories is None else histories)


def _check_log(log: Events | None, items: pd.DataFrame | None, histories: Sequences | None) -> None:
    if log is not None and (items is None or histories is not None):
        raise UsageError("log brings the events of new items: give items with it, and no histories")


def histories_of_run(run: Run, model: InterestModel) -> HistoryParts:
    """Return the whole log of a run; of one trained on partitions, from these, with the interests that the run has."""
    info = run.info
    if "partitions" not in info:
        return _once_each(run.sequences())
    log = PartitionedSequences.open(Path(info["partitions"]))
    if log.digest != info["log_sha256"]:
        raise RunError(f"{log.folder} is not what {run.path} was trained on; give the histories to serve: histories=")
    known = InterestFiles(run.path / "interests")
    fits = known.fits(run.path / "model", log.digest)
    return InPartitions(log, model, known if fits else None)


def _once_each(histories: Sequences) -> InMemory:
    check_ids(histories.user_ids, "histories", "users")
    if not pd.Index(histories.user_ids).is_unique:
        raise UsageError("histories have a user twice; give each user one history")
    return InMemory(histories)


def _require_later(log: Events, model: InterestModel) -> None:
    """Raise SchemaError for a log without times where training had them, and UsageError for one that ends before
    training did: its popularity and histories would be of the past.
    """
    if model.trained_until_us is None:
        return
    if not log.has_times:
        raise SchemaError("log has no times, but the run was trained with them; give the whole log by now, with times")
    if not len(log) or int(log.frame["timestamp"].max()) < model.trained_until_us:
        raise UsageError("log ends before the newest event that the run has learned from; give the whole log by now")


def _by_now(log: Events, model: InterestModel, known: HistoryParts) -> InMemory:
    """Return the histories of a log, in rows of ``model``.

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
    histories: Sequences | HistoryParts,
    store: Store | str | Path,
    *,
    blend: Blend | None = None,
    index: str = "auto",
    index_options: dict[str, Any] | None = None,
    items: pd.DataFrame | None = None,
    log: Events | None = None,
    on_bad: OnBad = "error",
    dedup: Dedup = "error",
    target: IndexTarget | None = None,
    report: Report = lambda what, done, of: None,
) -> str:
    """Publish a model in memory with these histories; see ``publish``."""
    parts = _once_each(histories) if isinstance(histories, Sequences) else histories
    model, rows = exportable(model, on_bad, dedup)
    if rows is not None:
        parts = parts.moved(rows)
    if log is not None:
        _require_later(log, model)
    if items is not None:
        longer = with_new_items(model, items, progress=True, log=log)
        parts = parts.moved(rows_after(*(pd.Index(one.vocabulary.item_ids) for one in (model, longer))))
        model = longer
        if log is not None:
            parts = _by_now(log, model, parts)
    if index != "auto":  # before a history is encoded: an unusable index is told at once
        options = dict(index_options or {})
        choice = Choice(built(index, options, model.item_vectors_VD[1:])[0], index, options)
        made = prepared(model, parts)
    else:  # chosen by the interests of the encoded sample
        made = prepared(model, parts)
        if index_options:
            raise UsageError(f"index_options = {index_options} need the index they are for; 'auto' chooses its own")
        choice = choose_index(model.item_vectors_VD[1:], made.sample_NKD.flatten(0, 1), target)
    return write_version(store, made, choice, blend or Blend(), report=report)
