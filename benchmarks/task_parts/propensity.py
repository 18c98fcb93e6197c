"""Purchase and churn: ours, recency/frequency/monetary counts, and both.

Shape letters: U households, N rows (a household at an instant), C categories, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from scipy.special import expit, logit
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from bseq_plugin.behaviour.curves import auroc
from bseq_plugin.behaviour.fit import Rows as HeadRows
from bseq_plugin.behaviour.fit import fit_heads
from bseq_plugin.behaviour.inputs import Scale
from bseq_plugin.behaviour.labels import WEEK_US, known_users, labels
from bseq_plugin.behaviour.moments import Objectives, moment
from bseq_plugin.behaviour.multitask import fit_multitask
from bseq_plugin.behaviour.rfm import own_features, rfm_features
from bseq_plugin.behaviour.tasks import Counts, Task
from bseq_plugin.behaviour.vectors import user_vectors
from task_parts.measure import Scored
from task_parts.protocol import DAYS, LOG_END, TEST_AT, TRAIN_AT, VALIDATION_AT, Case

USER_TASKS = ("churn:28", "churn:14", "purchase:7")
N_COMPONENTS = 8  # of the vectors, beside counts; of 4, 8 and 16 the best for trees on November, seed 0
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


@dataclass(frozen=True)
class Rows:
    """Households at instants: counts, frozen vectors, what the time-aware model says, and the answer."""

    counts_ND: np.ndarray
    vectors_ND: np.ndarray
    timed_N: np.ndarray
    y_N: np.ndarray

    @property
    def both_ND(self) -> np.ndarray:
        """Counts and vectors."""
        return np.hstack([self.counts_ND, self.vectors_ND])

    def beside(self, components: PCA) -> np.ndarray:
        """Counts and the principal components of the vectors."""
        return np.hstack([self.counts_ND, components.transform(self.vectors_ND)])

    def head(self, columns: np.ndarray) -> HeadRows:
        """For ``fit_heads``."""
        return HeadRows(columns.astype(np.float32), self.y_N[:, None])


def test_instants(task: Task) -> list[int]:
    """A week apart from 1 December on, as long as the window is complete."""
    return [at for at in range(TEST_AT, LOG_END, WEEK_US) if at + task.window_us <= LOG_END]


class UserTasks:
    """All questions about the household as a whole, of one seed."""

    def __init__(self, case: Case, timed: Case, seed: int) -> None:
        self.case, self.timed, self.seed = case, timed, seed
        self.tasks = [Task.parse(name) for name in USER_TASKS]
        self.objectives = Objectives(tuple((task, Counts(None, None)) for task in self.tasks))
        train = [moment(timed.model, timed.log, instant, self.objectives, LOG_END) for instant in TRAIN_AT]
        held = moment(timed.model, timed.log, VALIDATION_AT, self.objectives, LOG_END)
        self.fit = fit_multitask(timed.model, train, held, self.objectives, epochs=6, seed=seed)

    def rows(self, place: int, instants: list[int]) -> Rows:
        """Everybody known at each instant; in the test everybody known at its first, so that its columns match."""
        case, task, found = self.case, self.tasks[place], []
        alone = replace(self.objectives, tasks=(self.objectives.tasks[place],))
        for instant in instants:
            users = known_users(case.log, min(instant, TEST_AT))
            counts = logs(rfm_features(case.log, instant, case.values_T).to_numpy()[users])
            vectors = user_vectors(case.model, case.log, instant).numpy()[users]
            part = moment(self.timed.model, self.timed.log, instant, alone, LOG_END)
            known = np.isin(known_users(self.timed.log, instant), users)
            logits = self.fit.model.answers(part).logits_BK[known, place]
            found.append((counts, vectors, logits, labels(case.log, task, Counts(None, None), instant, LOG_END)[users]))
        return Rows(*(np.concatenate(columns) for columns in zip(*found, strict=True)))

    def scored(self, place: int) -> dict[str, Scored]:
        """All rankers on one of the questions."""
        task, seed = self.tasks[place], self.seed
        instants = test_instants(task)
        train, held, test = (self.rows(place, at) for at in (TRAIN_AT, [VALIDATION_AT], instants))

        def heads(columns: str) -> tuple[np.ndarray, np.ndarray]:
            own = [rows.head(getattr(rows, columns)) for rows in (train, held)]
            fitted = fit_heads(*own, (task.name,), digest=self.case.model.digest, seed=seed)
            said = [fitted.predict(getattr(rows, columns).astype(np.float32))[:, 0] for rows in (held, test)]
            return said[0], said[1]

        components = PCA(N_COMPONENTS, random_state=0).fit(train.vectors_ND)
        beside = tuple(rows.beside(components) for rows in (train, held, test))

        def boosted(columns: str | tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
            named = isinstance(columns, str)
            x, x_v, x_t = (getattr(rows, columns) for rows in (train, held, test)) if named else columns
            model = trees(x, train.y_N, (x_v, held.y_N), seed, 0.03)
            return model.predict_proba(x_v)[:, 1], model.predict_proba(x_t)[:, 1]

        theirs, mlp = boosted("counts_ND"), heads("counts_ND")
        timed = expit(held.timed_N), expit(test.timed_N)
        scores = {
            "logistic, counts": logistic(train.counts_ND, train.y_N, test.counts_ND),
            THEIRS: theirs[1],
            "mlp, counts": mlp[1],
            "ours alone (vector, mlp)": heads("vectors_ND")[1],
            "trees, counts + vector": boosted("both_ND")[1],
            "time-aware, counts": timed[1],
            "trees with mlp, counts": blended(theirs, mlp, held.y_N),
            "trees with time-aware, counts": blended(theirs, timed, held.y_N),
            "logistic, counts + ours": logistic(beside[0], train.y_N, beside[2]),
            BOTH: boosted(beside)[1],
        }
        labels_UK = test.y_N.reshape(len(instants), -1).T
        return {name: Scored(labels_UK, column.reshape(len(instants), -1).T) for name, column in scores.items()}


def blended(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], y_held: np.ndarray) -> np.ndarray:
    """Of the test, a mean of two rankers' logits whose weight is the best on November; both are (November, test)."""
    shares = np.linspace(0, 1, 11)
    held = [auroc(y_held, (1 - share) * logit(one[0]) + share * logit(other[0])) for share in shares]
    share = shares[int(np.argmax(held))]
    mixed: np.ndarray = (1 - share) * logit(one[1]) + share * logit(other[1])
    return mixed


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
