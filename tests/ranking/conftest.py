"""What the feature tests share: our own features, and a loop that computes them one row at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.testing.ranking_features import NOW_US, manager_with

NAN = math.nan
SPANS = {"1h": 3600, "1d": 86400, "7d": 604800, "30d": 2592000}
THETA, SESSION_GAP_SECONDS, TAU = 0.3, 6, 0.1


def unit(vector):
    return vector / math.sqrt(sum(v * v for v in vector))


def nan_or(values, function):
    return float(function(values)) if len(values) else NAN


class Loop:
    """Features of a ``MeanModel`` over (user, item, seconds after NOW); even items are clicks, odd are buys."""

    def __init__(self, model, rows, category, history_length, ttl_days):
        self.model, self.rows, self.category = model, rows, category
        self.history_length, self.ttl_days = history_length, ttl_days
        self.vectors = model.item_vectors_VD.double().numpy()
        self.place = {int(i): n + 1 for n, i in enumerate(model.vocabulary.item_ids)}
        self.near_theta = False

    def vector(self, item):
        return unit(self.vectors[self.place[item]])

    def past(self, user, at_us):
        """(time in microseconds, item), oldest first; equal times by place in the log."""
        past = [(NOW_US + t * 1_000_000, n, i) for n, (u, i, t) in enumerate(self.rows) if u == user]
        past = sorted(event for event in past if event[0] < at_us)
        if past and self.ttl_days is not None and at_us - past[-1][0] > self.ttl_days * 86_400_000_000:
            return []
        return [(time, item) for time, _, item in past]

    def features(self, user, item, at_us, given):
        every = self.past(user, at_us)
        past = every[-self.history_length :]
        values = self.of_interests(every[-self.model.recipe.encoder.max_length :], item)
        values |= self.of_history(past, item)
        values |= self.of_counts(every, past, item, at_us)
        values |= {f"retrieval_{name}": given[name] for name in ("rank", "score", "interest")}
        values["n_interests_hit"] = given["n_interests"]
        return values | self.of_quality(every[-self.model.recipe.encoder.max_length :], item, at_us)

    def interests(self, past):
        known = [self.place[i] for _, i in past if i in self.place]
        k = self.model.n_interests
        return [unit(self.vectors[known[n::k]].mean(0)) if known[n::k] else None for n in range(k)]

    def of_interests(self, past, item):
        interests, dim = self.interests(past), self.vectors.shape[1]
        there = [(k, interest) for k, interest in enumerate(interests) if interest is not None]
        c = self.vector(item) if item in self.place else np.full(dim, NAN)
        sims = [float(i @ c) for _, i in there] if item in self.place else []
        pooled, nothing = np.full(dim, NAN), np.full(dim, NAN)
        if there:
            mean = sum(i for _, i in there) / len(there)
            weight = [math.exp(i @ mean) for _, i in there]
            pooled = sum(w * i for w, (_, i) in zip(weight, there, strict=True)) / sum(weight)
        ranked = sorted(sims, reverse=True)
        return {
            "user_interests": np.concatenate([nothing if i is None else i for i in interests]),
            "interest_mask": np.array([i is not None for i in interests], float),
            "user_pooled": pooled,
            "item_vec": c,
            "sim_max": nan_or(sims, max),
            "sim_mean": nan_or(sims, np.mean),
            "sim_top2_gap": ranked[0] - ranked[1] if len(ranked) > 1 else NAN,
            "sim_argmax_interest": nan_or(sims, lambda s: there[int(np.argmax(s))][0]),
            "sim_soft": nan_or(sims, lambda s: sum(math.exp(x) * x for x in s) / sum(math.exp(x) for x in s)),
            "sim_pooled": float(unit(pooled) @ c),
            "sim_per_interest": np.array([NAN if i is None else i @ c for i in interests]),
        }

    def of_history(self, past, item):
        known = [(time, i, self.vector(i)) for time, i in past if i in self.place]
        asked = item in self.place and known
        c = self.vector(item) if item in self.place else None
        cos = [float(v @ c) for _, _, v in known] if asked else []
        values = {
            "sim_last1": nan_or(cos[-1:], np.mean),
            "sim_last3_mean": nan_or(cos[-3:], np.mean),
            "hist_sim_max": nan_or(cos, max),
            "hist_sim_mean": nan_or(cos, np.mean),
            "hist_sim_p90": nan_or(cos, lambda s: sorted(s)[math.ceil(len(s) * 9 / 10) - 1]),
        }
        newest = known[-1][0] if known else 0
        for span, seconds in SPANS.items():
            weight = [2.0 ** (-(newest - time) / 1e6 / seconds) for time, _, _ in known]
            values[f"decay_sim_{span}"] = sum(map(lambda a, b: a * b, weight, cos)) / sum(weight) if asked else NAN
        for name, parity in (("buy", 1), ("click", 0)):
            values[f"sim_{name}_centroid"] = self.centroid([v for _, i, v in known if i % 2 == parity], c)
        values["neg_sim_skip"] = -values["sim_click_centroid"]
        attention = np.exp(np.array(cos) / TAU) / np.exp(np.array(cos) / TAU).sum() if asked else np.empty(0)
        values["din_attn_max"] = nan_or(attention, max)
        values["din_attn_entropy"] = nan_or(attention, lambda a: -sum(x * math.log(x) for x in a))
        dim = self.vectors.shape[1]
        values["din_ctx"] = attention @ np.array([v for _, _, v in known]) if asked else np.full(dim, NAN)
        return values

    def centroid(self, vectors, c):
        return float(unit(sum(vectors) / len(vectors)) @ c) if vectors and c is not None else NAN

    def of_counts(self, every, past, item, at_us):
        age = [(at_us - time) / 1e6 for time, _ in past]
        values = {"n_events": len(every)}
        for span, seconds in SPANS.items():
            values[f"n_events_{span}"] = sum(time >= at_us - seconds * 1_000_000 for time, _ in every)
        last = age[-1] if age else NAN
        values |= {
            "secs_since_last_event": last,
            "secs_since_last_event_log1p": math.log1p(last),
            "secs_since_last_event_sqrt": math.sqrt(last),
        }
        known = item in self.place
        same = [a for a, (_, i) in zip(age, past, strict=True) if known and i == item]
        sims = [(a, self.vector(i) @ self.vector(item)) for a, (_, i) in zip(age, past, strict=True)
                if known and i in self.place]  # fmt: skip
        self.near_theta = any(abs(s - THETA) < 1e-6 for _, s in sims)
        kind = self.category.get(item)
        types = [i % 2 for _, i in past]
        sessions = self.sessions(past)
        is_open = bool(past) and last <= SESSION_GAP_SECONDS
        return values | {
            "secs_since_last_same_item": nan_or(same, min),
            "secs_since_last_similar": nan_or([a for a, s in sims if s > THETA], min),
            "n_same_item": len(same) if known else NAN,
            "n_same_category": sum(self.category.get(i) == kind for _, i in past) if kind is not None else NAN,
            "n_same_action": sum(t == types[-1] for t in types) if past else NAN,
            "session_position": 1 + len(sessions[-1]) if is_open else 1,
            "session_len": len(sessions[-1]) if past else NAN,
        }

    def sessions(self, past):
        sessions = []
        for time, item in past:
            if not sessions or time - sessions[-1][-1][0] > SESSION_GAP_SECONDS * 1_000_000:
                sessions.append([])
            sessions[-1].append((time, item))
        return sessions

    def of_quality(self, past, item, at_us):
        there = [i for i in self.interests(past) if i is not None]
        return {
            "interest_age_secs": (at_us - past[-1][0]) / 1e6 if there else NAN,
            "encoder_version": int(self.model.digest[:6], 16),
            "is_cold_user": float(not there),
            "is_cold_item": float(item not in self.place),
            "interest_dispersion": 1 - math.sqrt(sum((sum(there) / len(there)) ** 2)) if there else NAN,
        }


@pytest.fixture(scope="session")
def manager():
    """Only our own features, whatever plugins are installed here."""
    return manager_with(*FEATURES)


@pytest.fixture(scope="session")
def loop():
    """The class of the loop: nothing of it is shared with the engine."""
    return Loop
