"""Purchase and churn: ours, recency/frequency/monetary counts, and both.

Shape letters: U households, N rows (a household at an instant), C categories, D columns.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from bseq_plugin.behaviour.fit import Rows, fit_heads
from bseq_plugin.behaviour.inputs import Scale
from bseq_plugin.behaviour.labels import known_users, labels
from bseq_plugin.behaviour.rfm import own_features, rfm_features
from bseq_plugin.behaviour.tasks import Counts, Task
from bseq_plugin.behaviour.vectors import user_vectors
from task_parts.measure import Scored
from task_parts.protocol import DAYS, LOG_END, TEST_AT, TRAIN_AT, VALIDATION_AT, Case

USER_TASKS = ("churn:28", "purchase:7")
N_CATEGORIES = 40  # product categories with the most households in the four weeks before September
THEIRS, BOTH = "trees, counts", "trees, counts + ours"


def logs(values: np.ndarray) -> np.ndarray:
    """Signed log1p: counts and days have long tails."""
    return np.sign(values) * np.log1p(np.abs(values))


def trees(train: np.ndarray, y: np.ndarray, held: tuple[np.ndarray, np.ndarray], seed: int, rate: float):  # noqa: ANN201
    """Gradient-boosted trees, stopped on November."""
    model = HistGradientBoostingClassifier(
        max_iter=400, learning_rate=rate, max_leaf_nodes=15, min_samples_leaf=40, max_features=0.4, l2_regularization=5,
        early_stopping=True, n_iter_no_change=15, random_state=seed,
    )  # fmt: skip
    return model.fit(train, y, X_val=held[0], y_val=held[1])


def logistic(train: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Probabilities of a logistic regression on standardised columns."""
    scale = Scale.of(train)
    model = LogisticRegression(max_iter=300, C=0.05).fit(scale(train), y)
    return np.asarray(model.predict_proba(scale(test))[:, 1])


def user_task(case: Case, task: Task, seed: int) -> dict[str, Scored]:
    """All rankers on one question about the household as a whole."""
    parts = {}
    for name, instants in (("train", TRAIN_AT), ("validation", [VALIDATION_AT]), ("test", [TEST_AT])):
        found = []
        for instant in instants:
            users = known_users(case.log, instant)
            counts = logs(rfm_features(case.log, instant, case.values_T).to_numpy()[users])
            vectors = user_vectors(case.model, case.log, instant).numpy()[users]
            found.append((counts, vectors, labels(case.log, task, Counts(None, None), instant, LOG_END)[users]))
        parts[name] = [np.concatenate(columns) for columns in zip(*found, strict=True)]
    (rfm, ours, y), (rfm_v, ours_v, y_v), (rfm_t, ours_t, y_t) = parts["train"], parts["validation"], parts["test"]
    both, both_v, both_t = (np.hstack(pair) for pair in ((rfm, ours), (rfm_v, ours_v), (rfm_t, ours_t)))

    def heads(x: np.ndarray, x_v: np.ndarray, x_t: np.ndarray) -> np.ndarray:
        rows = [Rows(a.astype(np.float32), b[:, None]) for a, b in ((x, y), (x_v, y_v))]
        return fit_heads(*rows, (task.name,), digest=case.model.digest, seed=seed).predict(x_t.astype(np.float32))[:, 0]

    scores = {
        "logistic, counts": logistic(rfm, y, rfm_t),
        THEIRS: trees(rfm, y, (rfm_v, y_v), seed, 0.03).predict_proba(rfm_t)[:, 1],
        "ours alone (vector, mlp)": heads(ours, ours_v, ours_t),
        "mlp, counts": heads(rfm, rfm_v, rfm_t),
        "mlp, counts + ours": heads(both, both_v, both_t),
        "logistic, counts + ours": logistic(both, y, both_t),
        BOTH: trees(both, y, (both_v, y_v), seed, 0.03).predict_proba(both_t)[:, 1],
    }
    return {name: Scored(y_t[:, None], column[:, None]) for name, column in scores.items()}


class CategoryRows:
    """Every household beside each of the most bought categories, as of an instant."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.code_V, names = case.categories("product_category")
        before = case.log.between(TRAIN_AT[0] - 28 * 86_400_000_000, TRAIN_AT[0])
        pairs = np.unique(np.stack([self.code_V[before.items], before.user_index]), axis=1)[0]
        self.chosen_C = np.argsort(-np.bincount(pairs[pairs >= 0], minlength=len(names)), kind="stable")[:N_CATEGORIES]
        self.names = [names[code] for code in self.chosen_C]
        n_items = case.model.vocabulary.n_items
        codes = self.code_V[1:]
        self.member = sparse.csr_matrix((np.ones(n_items), (codes, np.arange(n_items))), (len(names), n_items))

    def affinity(self, users: np.ndarray, instant: int) -> np.ndarray:
        """float [U, C], ln of the share of the model's softmax that falls on each category."""
        vectors_UD = user_vectors(self.case.model, self.case.log, instant)[torch.from_numpy(users)]
        with torch.no_grad():
            shares_UV = torch.softmax(vectors_UD @ self.case.model.item_vectors_VD[1:].T, dim=1).numpy()
        return np.log((self.member @ shares_UV.T).T[:, self.chosen_C] + 1e-12)

    def at(self, instant: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(counts [U * C, D], affinity [U * C, 1], labels [U, C]); households outside, categories inside."""
        case, users = self.case, known_users(self.case.log, instant)
        whole = rfm_features(case.log, instant, case.values_T).to_numpy()[users]
        own, answers = [], []
        for place, code in enumerate(self.chosen_C):
            counts = Counts(self.code_V == code, None)
            table = own_features(case.log, instant, counts, case.values_T).to_numpy()[users]
            popular = np.full((len(users), 2), [np.mean(table[:, 3] > 0), place])
            own.append(np.concatenate([whole, table, popular], axis=1))
            answers.append(labels(case.log, Task("purchase", DAYS), counts, instant, LOG_END)[users])
        columns = logs(np.stack(own, axis=1)).reshape(len(users) * N_CATEGORIES, -1).astype(np.float32)
        affinity = self.affinity(users, instant).reshape(-1, 1).astype(np.float32)
        return columns, affinity, np.stack(answers, axis=1)


def categories(case: Case, seed: int) -> dict[str, Scored]:
    """All rankers on whether a household buys of each category within 28 days."""
    rows = CategoryRows(case)
    train = [rows.at(instant) for instant in TRAIN_AT[::2]]
    x, a = (np.concatenate([part[place] for part in train]) for place in (0, 1))
    y = np.concatenate([part[2].ravel() for part in train])
    (x_v, a_v, y_v), (x_t, a_t, y_t) = rows.at(VALIDATION_AT), rows.at(TEST_AT)
    both, both_v, both_t = (np.hstack(pair) for pair in ((x, a), (x_v, a_v), (x_t, a_t)))
    scores = {
        "logistic, counts": logistic(x, y, x_t),
        THEIRS: trees(x, y, (x_v, y_v.ravel()), seed, 0.1).predict_proba(x_t)[:, 1],
        "ours alone (affinity)": a_t[:, 0],
        "logistic, counts + ours": logistic(both, y, both_t),
        BOTH: trees(both, y, (both_v, y_v.ravel()), seed, 0.1).predict_proba(both_t)[:, 1],
    }
    return {name: Scored(y_t, column.reshape(y_t.shape)) for name, column in scores.items()}
