"""Purchase of a category: ours, counts, and both.

Shape letters: U households, C categories, D columns.
"""

from __future__ import annotations

import numpy as np
import torch
from bseq_behaviour.propensity.labels import known_users, labels
from bseq_behaviour.propensity.rfm import own_features, rfm_features
from bseq_behaviour.propensity.tasks import Counts, Task
from bseq_behaviour.propensity.vectors import user_vectors
from scipy import sparse

from benchmarks.tasks.measure import Scored
from benchmarks.tasks.protocol import DAYS, LOG_END, TEST_AT, TRAIN_AT, VALIDATION_AT, Case
from benchmarks.tasks.rankers import BOTH, THEIRS, logistic, logs, trees

N_CATEGORIES = 40  # product categories with the most households in the four weeks before September


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
