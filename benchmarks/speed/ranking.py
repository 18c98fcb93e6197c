"""Ranking features: rows a second, beside the same matrix products in plain torch, and one request online.

    make bench-ranking                            # 1,000,000 candidate rows, histories of 200, width 64
    make bench-ranking ARGS="--rows 100000"

Offline: all features of the default specification for `--rows` candidates of requests with 500 candidates each, in
pieces as `write_features` makes them. In the same run, with interests given: the features that come from matrix
products (cosines to interests, history, decayed and per-type means, attention), beside the same columns by torch and
NumPy code that knows all shapes beforehand and checks nothing, and beside those products alone: in float64, which the
features take so that the same row has the same bytes in any table, and in float32. Online: one request of 500
candidates, encoder included. The model is an untrained causal encoder: its weights do not change what it
costs. Writes benchmarks/results/ranking.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks import harness
from bseq_plugin import FeatureEngine, FeatureSpec, InterestModel, Recipe, SequenceInterestEncoder, StoredInterests
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.ranking.streaming import PIECE_ROWS, candidate_pieces

CANDIDATES, LENGTH, DIM, ITEMS, TYPES = 500, 200, 64, 20_000, ("buy", "click", "like")
AT = pd.Timestamp("2024-05-01", tz="UTC")
HALF_LIVES = (3_600, 86_400, 7 * 86_400, 30 * 86_400)


def model(seed: int) -> InterestModel:
    """An untrained encoder of the reference shape over ``ITEMS`` items."""
    torch.manual_seed(seed)
    recipe = Recipe.load("reference").replace(events={"features": ()})
    vocabulary = Vocabulary(np.arange(ITEMS), np.ones(ITEMS, np.int64), TYPES)
    return InterestModel(recipe, vocabulary, SequenceInterestEncoder(recipe, ITEMS).eval(), None, 0)


def log(n_users: int, seed: int) -> Sequences:
    """Histories of exactly ``LENGTH`` events within 90 days, in rows of the vocabulary."""
    rng = np.random.default_rng(seed)
    n_events = n_users * LENGTH
    times = np.sort(AT.value // 1000 - rng.integers(1, 90 * 86_400_000_000, (n_users, LENGTH)), axis=1)
    offsets = np.arange(n_users + 1) * LENGTH
    items, types = rng.integers(1, ITEMS + 1, n_events), rng.integers(1, len(TYPES) + 1, n_events)
    return Sequences(np.arange(n_users), offsets, items, times.ravel(), types)


def candidates(n_rows: int, n_users: int, seed: int) -> pd.DataFrame:
    """``CANDIDATES`` rows a user, as retrieval gives them."""
    rng = np.random.default_rng(seed)
    places = np.arange(n_rows)
    return pd.DataFrame(
        {
            "user_id": places // CANDIDATES % n_users,
            "item_id": rng.integers(0, ITEMS, n_rows),
            "rank": places % CANDIDATES + 1,
            "score": rng.standard_normal(n_rows).astype(np.float32),
            "interest": np.zeros(n_rows, np.int64),
        }
    )


def offline(engine: FeatureEngine, rows: pd.DataFrame) -> float:
    """Seconds for all rows, in pieces; the tables are dropped as soon as they are made."""
    started = time.perf_counter()
    for piece in candidate_pieces(rows, PIECE_ROWS):
        engine.features(piece, AT)
    return time.perf_counter() - started


def plain(engine: FeatureEngine, rows: pd.DataFrame, with_columns: bool, dtype: torch.dtype) -> float:
    """Seconds of plain code, a request at a time as the widest products: the products, or columns as well."""
    units_VD = torch.nn.functional.normalize(engine.model.item_vectors_VD.to(dtype), dim=1)
    items_UL = torch.from_numpy(engine.log.items).view(-1, LENGTH)
    types_UL = torch.from_numpy(np.asarray(engine.log.event_types)).view(-1, LENGTH)
    age_UL = (AT.value // 1000 - torch.from_numpy(np.asarray(engine.log.timestamps)).view(-1, LENGTH)) / 1e6
    users = torch.from_numpy(rows["user_id"].to_numpy()[::CANDIDATES].copy())
    item_UC = torch.from_numpy(rows["item_id"].to_numpy().copy()).view(-1, CANDIDATES) + 1
    interest_U1D = torch.randn(len(users), 1, DIM, dtype=dtype)
    weights_UML = torch.stack(
        [torch.exp2(-age_UL / h) for h in HALF_LIVES]
        + [(types_UL == t).float() for t in range(1, len(TYPES) + 1)]
        + [
            torch.ones(LENGTH).expand(len(items_UL), -1),
            (torch.arange(LENGTH) >= LENGTH - 3).float().expand_as(age_UL),
        ],
        1,
    ).to(dtype)
    started = time.perf_counter()
    out: dict[str, Tensor] = {}
    for place, user in enumerate(users.tolist()):
        c_CD, h_LD = units_VD.index_select(0, item_UC[place]), units_VD.index_select(0, items_UL[user])
        products(c_CD, h_LD, weights_UML[user], interest_U1D[place], with_columns, out)
    return time.perf_counter() - started


def products(
    c_CD: Tensor, h_LD: Tensor, w_ML: Tensor, interest_KD: Tensor, with_columns: bool, out: dict[str, Tensor]
) -> None:
    """Cosines to events, to their weighted means and to interests, and the attended history of one request."""
    cos_CL = c_CD @ h_LD.T
    mean_MD = w_ML @ h_LD
    out["means"] = c_CD @ (mean_MD / w_ML.sum(1, keepdim=True)).T if with_columns else c_CD @ mean_MD.T
    out["interests"] = c_CD @ interest_KD.T
    if not with_columns:
        out["context"] = cos_CL @ h_LD
        return
    # NumPy where it is the faster of the two here: sorting, exponentials, the first that is true
    cosines = cos_CL.numpy()
    ordered = np.sort(cosines, axis=1)
    largest = ordered[:, -1:]
    weights = cosines - largest
    weights *= 10
    np.exp(weights, out=weights)
    total = weights.sum(1, keepdims=True)
    context_CD = (torch.from_numpy(weights) @ h_LD) / torch.from_numpy(total)
    out["context"] = context_CD
    out["max"], out["p90"] = torch.from_numpy(largest), torch.from_numpy(ordered[:, int(0.9 * LENGTH) - 1])
    out["attention_max"] = torch.from_numpy(1 / total)
    attended_C = (context_CD * c_CD).sum(1)
    out["entropy"] = torch.from_numpy(np.log(total)[:, 0] + 10 * largest[:, 0]) - 10 * attended_C
    out["similar"] = torch.from_numpy((cosines[:, ::-1] > 0.7).argmax(1))
    out["item"], out["user"] = c_CD.clone(), interest_KD.expand(len(c_CD), -1).clone()


def online(engine: FeatureEngine, rows: pd.DataFrame, n_requests: int) -> dict[str, float]:
    """Milliseconds of one request of ``CANDIDATES`` candidates after another, the first ten left out."""
    taken = []
    for request in range(n_requests + 10):
        asked = rows[request * CANDIDATES : (request + 1) * CANDIDATES]
        started = time.perf_counter()
        engine.features(asked, AT)
        taken.append(1e3 * (time.perf_counter() - started))
    taken = taken[10:]
    return {"median": statistics.median(taken), "p95": float(np.quantile(taken, 0.95)), "min": min(taken)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=100, help="online")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    n_users = max(1, min(2_000, chosen.rows // CANDIDATES))
    rows = candidates(chosen.rows, n_users, chosen.seed)
    encoder, histories = model(chosen.seed), log(n_users, chosen.seed)
    engine = FeatureEngine(histories, FeatureSpec.default(), model=encoder)
    newest = np.asarray(histories.timestamps)[histories.offsets[1:] - 1]
    vectors = encoder.encode(histories.latest(encoder.recipe.encoder.max_length))
    stored = StoredInterests(histories.user_ids, newest, vectors, encoder.digest)
    of_products = FeatureSpec.without("counts", "retrieval", "quality")
    alike = FeatureEngine(histories, of_products, model=encoder, interests=stored)
    for warm in (engine, alike):
        offline(warm, rows[: 10 * CANDIDATES])
    seconds = {
        "features": offline(engine, rows),
        "features_of_products": offline(alike, rows),
        "plain_columns": plain(engine, rows, True, torch.float64),
        "plain_columns_float32": plain(engine, rows, True, torch.float32),
        "plain_products": plain(engine, rows, False, torch.float64),
        "plain_products_float32": plain(engine, rows, False, torch.float32),
    }
    torch.set_num_threads(1)
    milliseconds = online(engine, candidates(200 * CANDIDATES, n_users, chosen.seed + 1), chosen.requests)
    figures: dict[str, Any] = {"rows": len(rows), "seconds": seconds, "online_ms": milliseconds}
    ratios = {name: seconds["features_of_products"] / taken for name, taken in seconds.items() if "plain" in name}
    aims = [
        ("seconds for a million rows, all features", seconds["features"] * 1e6 / len(rows), 60.0),
        ("features of products / plain columns from them", ratios["plain_columns"], 2.0),
        ("the same, plain columns in float32", ratios["plain_columns_float32"], 2.0),
        ("features of products / the bare products", ratios["plain_products"], None),
        ("the same, bare products in float32", ratios["plain_products_float32"], None),
        ("online, 500 candidates, ms, median, one core", milliseconds["median"], 10.0),
    ]
    claims = [harness.at_most(name, value, aim) for name, value, aim in aims]
    harness.show(claims, 52, "8.3f")
    harness.write("ranking", figures, claims, threads=chosen.threads)


if __name__ == "__main__":
    main()
