"""The rows of the tables of behaviour.py: what each changes of the recipe they have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

TIME = ("time_gap", "time_of_week", "session")
FLOORS = ("session_knn", "user_knn", "popularity_28d", "personal_frequency_decayed")
SESSIONS = {"encoder": "cross_session", "event_features": TIME}

# The first row is what the others are compared with.
CROSS_SESSION: dict[str, dict[str, Any]] = {
    "causal, ids only": {"event_features": ()},
    "hstu, time": {"encoder": "hstu", "event_features": TIME},
    "cross_session": SESSIONS,
    "cross_session, session only": {**SESSIONS, "encoder_options": {"paths": "session"}},
    "cross_session, history only": {**SESSIONS, "encoder_options": {"paths": "history"}},
    "cross_session, no gap": {**SESSIONS, "encoder_options": {"gap": False}, "event_features": TIME[1:]},
    "cross_session, no session token": {**SESSIONS, "event_features": TIME[:2]},
    "cross_session, no gate": {**SESSIONS, "encoder_options": {"gate": False}},
    "causal, time": {"event_features": TIME},
    "gru, ids only": {"encoder": "gru", "event_features": ()},
}
INTERESTS: dict[str, dict[str, Any]] = {}
TABLES = {"cross_session": CROSS_SESSION}


def coverage(top_UK: np.ndarray, categories_V: np.ndarray) -> np.ndarray:
    """float64 [U], distinct categories among the items of each list."""
    found = np.sort(categories_V[np.maximum(top_UK, 0)], axis=1)
    fresh = np.concatenate([found[:, :1] > 0, (np.diff(found, axis=1) > 0)], axis=1)
    return fresh.sum(1).astype(np.float64)


def claims_of(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What the issue of behaviour promises, from what was measured."""
    claims = []
    if "cross_session" in figures:
        rows = figures["cross_session"]["rows"]
        for name in ("cross_session", "hstu, time"):
            if name in rows and "difference" in rows[name]["all ndcg@20"]:
                low = rows[name]["all ndcg@20"]["difference"]["low"]
                claims.append({"name": f"{name} beats causal of ids on NDCG@20", "value": low, "target": "> 0",
                               "holds": low > 0})  # fmt: skip
    return claims
