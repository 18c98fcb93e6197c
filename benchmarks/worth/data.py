"""Requests of the grocery log: candidates from retrieval, labels from the week that follows, columns as of then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bseq_plugin import FeatureEngine, FeatureSpec, Recipe, Retriever, publish, train
from bseq_plugin.data.splits import HeldOut, time_window
from bseq_plugin.demo.data import DemoData
from bseq_plugin.events.events import DAY_US, Events, instant_us
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.serving.fit_blend import search_blend

ENCODER_UNTIL = "2017-09-01"  # the encoder knows nothing after it, so that no request is answered with its own future
BLEND_FROM = "2017-08-01"
WEEKS = {
    "train": pd.date_range("2017-09-01", periods=8, freq="7D", tz="UTC"),
    "validation": pd.date_range("2017-11-01", periods=3, freq="7D", tz="UTC"),
    "test": pd.date_range("2017-12-01", periods=4, freq="7D", tz="UTC"),
}
HORIZON_US, N_CANDIDATES, ACTIVE_DAYS = 7 * DAY_US, 50, 56
CATEGORICAL = ("department", "product_category", "brand", "manufacturer_id")
PLAIN = ("popularity_7d", "popularity_28d", "user_events_28d", "user_baskets_28d")  # of the product, of the household
CROSSES = ("pair_events", "pair_events_56d", "days_since_pair", "category_events")  # of both together
COUNTS = (*PLAIN, *CROSSES)


@dataclass(frozen=True)
class Rows:
    """Candidate rows of one part of the year.

    Attributes:
        frame: user_id, item_id, at, the columns of ``COUNTS``, ids of ``CATEGORICAL``, ``label`` (0 or 1), ``request``.
        features: float32 [N, columns], ours.
        names: of its columns.
    """

    frame: pd.DataFrame
    features: np.ndarray
    names: list[str]


def encoder_store(data: DemoData, recipe: Recipe, folder: Path) -> Retriever:
    """An encoder trained on events before ``ENCODER_UNTIL``, published with a blend fitted on the month before."""
    until = instant_us(pd.Timestamp(ENCODER_UNTIL, tz="UTC"))
    blend_from = instant_us(pd.Timestamp(BLEND_FROM, tz="UTC"))
    fixed = recipe.replace(split="none", training={"stop_after": recipe.training.epochs})
    early = train(data.events.before(blend_from), fixed, folder / "early", items=data.items)
    log = Sequences.from_events(data.events.before(until), early.vocabulary())
    held_out = HeldOut(time_window(log, blend_from, 28.0), log.between(None, blend_from), blend_from, "keep")
    blend = search_blend(early.model(), held_out).blend
    run = train(data.events.before(until), fixed, folder / "final", items=data.items)
    publish(run, folder / "store", index="exact", blend=blend)
    return Retriever.open(folder / "store")


def rows_of(part: str, data: DemoData, retriever: Retriever, new: bool) -> Rows:
    """Candidates of every household that bought anything in the 56 days before, for each week of a part.

    ``new``: only products that the household has not bought before.
    """
    log = Sequences.from_events(data.events, retriever.model.vocabulary)
    frames = [_week(data.events, log, retriever, at, new) for at in WEEKS[part]]
    frame = pd.concat(frames, ignore_index=True)
    frame["request"] = frame.groupby(["at", "user_id"], sort=False).ngroup()
    catalogue = data.items.set_index("item_id")
    for name in CATEGORICAL:
        frame[name] = pd.factorize(catalogue[name], sort=True)[0][catalogue.index.get_indexer(frame["item_id"])] + 1
    names, features = _ours(frame, log, retriever, data.items)
    return Rows(frame, features, names)


def _week(events: Events, log: Sequences, retriever: Retriever, at: pd.Timestamp, new: bool) -> pd.DataFrame:
    at_us = instant_us(at)
    recent = log.between(at_us - ACTIVE_DAYS * DAY_US, at_us)
    users = np.flatnonzero(recent.lengths)
    hits = retriever.retrieve(log.take(users), N_CANDIDATES, exclude="seen" if new else "none", at=at)
    hits = hits[["user_id", "item_id", "rank", "score", "interest"]].assign(at=at)
    past = events.before(at_us).frame
    bought = events.between(at_us, at_us + HORIZON_US).frame[["user_id", "item_id"]].drop_duplicates()
    hits = hits.merge(bought.assign(label=1), how="left", on=["user_id", "item_id"]).fillna({"label": 0})
    return _counted(hits, past, at_us)


def _counted(hits: pd.DataFrame, past: pd.DataFrame, at_us: int) -> pd.DataFrame:
    """The columns of ``COUNTS``: what anybody counts who has the log."""
    days = {n: past[past["timestamp"] >= at_us - n * DAY_US] for n in (7, 28, 56)}
    for n in (7, 28):
        users = days[n].groupby("item_id")["user_id"].nunique().rename(f"popularity_{n}d")
        hits = hits.merge(users, how="left", on="item_id")
    of_user = (
        days[28].groupby("user_id").agg(user_events_28d=("item_id", "size"), user_baskets_28d=("session_id", "nunique"))
    )
    hits = hits.merge(of_user, how="left", on="user_id")
    pair = past.groupby(["user_id", "item_id"])["timestamp"].agg(pair_events="size", last="max")
    hits = hits.merge(pair, how="left", on=["user_id", "item_id"])
    recent = days[56].groupby(["user_id", "item_id"]).size().rename("pair_events_56d")
    hits = hits.merge(recent, how="left", on=["user_id", "item_id"])
    hits["days_since_pair"] = (at_us - hits.pop("last")) / DAY_US
    counted = [name for name in COUNTS if name in hits and name != "days_since_pair"]
    return hits.fillna(dict.fromkeys(counted, 0)).fillna({"days_since_pair": 366.0})


def with_category_counts(rows: Rows, events: Events, items: pd.DataFrame) -> Rows:
    """Adds how often the household bought something of the candidate's category before the request."""
    category = items.set_index("item_id")["product_category"].fillna("?")
    past = events.frame[["user_id", "item_id", "timestamp"]].assign(
        category=lambda frame: category.reindex(frame["item_id"]).to_numpy()
    )
    wanted = rows.frame.assign(category=category.reindex(rows.frame["item_id"]).to_numpy())
    counts = np.zeros(len(wanted), np.float32)
    for at, week in wanted.groupby("at"):
        seen = (
            past[past["timestamp"] < instant_us(at)].groupby(["user_id", "category"]).size().rename("n").reset_index()
        )
        found = week[["user_id", "category"]].merge(seen, how="left", on=["user_id", "category"])["n"]
        counts[week.index.to_numpy()] = found.fillna(0).to_numpy(np.float32)
    return Rows(rows.frame.assign(category_events=counts), rows.features, rows.names)


def _ours(
    frame: pd.DataFrame, log: Sequences, retriever: Retriever, items: pd.DataFrame
) -> tuple[list[str], np.ndarray]:
    """All scalar features, from the engine, in pieces."""
    left_out = {"din_ctx", "sim_per_interest", "interest_mask", "encoder_version"}
    names = tuple(name for name in FeatureSpec.without("vectors").names if name not in left_out)
    options = {"neg_sim_skip": {"event_types": ["coupon"]}}
    spec = FeatureSpec(names=names, history_length=400, category="product_category", options=options)
    engine = FeatureEngine(log, spec, model=retriever.model, items=items)
    asked = frame[["user_id", "item_id", "at", "rank", "score", "interest"]]
    tables = [engine.features(asked[start : start + 50_000]) for start in range(0, len(asked), 50_000)]
    return tables[0].names, np.concatenate([np.stack(list(t.columns.values()), axis=1) for t in tables])


def with_varying_columns(parts: dict[str, Rows]) -> dict[str, Rows]:
    """Without columns that are missing or the same in all training rows, as the gap between interests is for K = 1."""
    values = parts["train"].features
    finite = np.isfinite(values)
    lowest, largest = np.where(finite, values, np.inf).min(0), np.where(finite, values, -np.inf).max(0)
    kept = np.flatnonzero(largest > lowest)
    names = [parts["train"].names[place] for place in kept]
    return {part: Rows(rows.frame, rows.features[:, kept], names) for part, rows in parts.items()}


def groups_of(names: list[str], retriever: Retriever) -> list[str]:
    """The group of each column of ours."""
    parts = FeatureSpec.without("vectors").parts()
    types = retriever.model.vocabulary.event_types
    of_column = {column: part.group for part in parts for column in part.columns(types)}
    return [of_column[name] for name in names]
