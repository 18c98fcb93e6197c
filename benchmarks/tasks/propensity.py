"""Purchase and churn: ours, recency/frequency/monetary counts, and both.

Shape letters: U households, N rows (a household at an instant), D columns, K instants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from bseq_behaviour.propensity.fit_heads import Rows as HeadRows
from bseq_behaviour.propensity.fit_heads import fit_heads
from bseq_behaviour.propensity.labels import WEEK_US, known_users, labels
from bseq_behaviour.propensity.rfm import rfm_features
from bseq_behaviour.propensity.tasks import Counts, Task
from bseq_behaviour.propensity.vectors import user_vectors
from bseq_behaviour.returns.fit_return_time import fit_return_time
from bseq_behaviour.returns.return_time import ReturnTime, return_recipe
from scipy.special import logit
from sklearn.decomposition import PCA

from benchmarks.tasks.measure import Scored
from benchmarks.tasks.protocol import ENCODER_UNTIL, LOG_END, TEST_AT, TRAIN_AT, VALIDATION_AT, Case, at
from benchmarks.tasks.rankers import BOTH, THEIRS, blended, logistic, logs, trees

USER_TASKS = ("churn:28", "churn:14", "purchase:7")
N_COMPONENTS = 8  # of the vectors, beside counts; of 4, 8 and 16 the best for trees on November, seed 0
SPANS = (7.0, 14.0, 28.0)  # days, of the columns of the return time
MANY_FROM = at("2017-04-01")  # counts need no encoder: trees may learn from every week since, with a quarter before it
STRONG = "trees, counts, every week"  # their best
RETURN, RETURNED, STRONG_RETURNED = "return time alone", "trees with return time", "every week, with return time"
CONTROL = "trees with mlp, counts"
Said = tuple[np.ndarray, np.ndarray]  # of November, of the test


@dataclass(frozen=True)
class Rows:
    """Households at instants: counts, frozen vectors, chances of a return, and the answer."""

    counts_ND: np.ndarray
    vectors_ND: np.ndarray
    returns_ND: np.ndarray
    y_N: np.ndarray
    components_ND: np.ndarray | None = None  # of the vectors

    def columns(self, *names: str) -> np.ndarray:
        """Some of them, side by side."""
        return np.hstack([getattr(self, name) for name in names])

    def head(self, columns: np.ndarray) -> HeadRows:
        """For ``fit_heads``."""
        return HeadRows(columns.astype(np.float32), self.y_N[:, None])


def with_components(rows: Iterable[Rows]) -> Iterator[Rows]:
    """The same with the principal components of the vectors of the first."""
    first, *others = rows
    found = PCA(N_COMPONENTS, random_state=0).fit(first.vectors_ND)
    for one in (first, *others):
        yield replace(one, components_ND=found.transform(one.vectors_ND))


def test_instants(task: Task) -> list[int]:
    """A week apart from 1 December on, as long as the window is complete."""
    return [at_us for at_us in range(TEST_AT, LOG_END, WEEK_US) if at_us + task.window_us <= LOG_END]


class UserTasks:
    """All questions about the household as a whole, of one seed."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.seed = case, seed
        self.returns, self.newest = (
            fit_return_time(case.log, until_us, return_recipe(True, seed))
            for until_us in (at(ENCODER_UNTIL), VALIDATION_AT)  # the later one is for beside trees of every week
        )

    def counted(self, task: Task, instants: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(counts, answers) of everybody known at each instant; in the test everybody known at its first, so that its
        columns match.
        """
        case, found = self.case, []
        for instant in instants:
            users = known_users(case.log, min(instant, TEST_AT))
            counts = logs(rfm_features(case.log, instant, case.values_T).to_numpy()[users])
            found.append((counts, labels(case.log, task, Counts(None, None), instant, LOG_END)[users]))
        return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])

    def rows(self, task: Task, instants: list[int]) -> Rows:
        """The same with all that is ours."""
        case, vectors, returns = self.case, [], []
        for instant in instants:
            users = known_users(case.log, min(instant, TEST_AT))
            vectors.append(user_vectors(case.model, case.log, instant).numpy()[users])
            chances = self.returns.within(case.log, instant, SPANS)[users]
            returns.append(logit(np.clip(chances, 1e-9, 1 - 1e-9)))
        counts, answers = self.counted(task, instants)
        return Rows(counts, np.concatenate(vectors), np.concatenate(returns), answers)

    def scored(self, name: str) -> dict[str, Scored]:
        """All rankers on one of the questions."""
        task, seed = Task.parse(name), self.seed
        instants = test_instants(task)
        train, held, test = with_components(self.rows(task, of) for of in (TRAIN_AT, [VALIDATION_AT], instants))

        def heads(columns: str) -> Said:
            own = [rows.head(rows.columns(columns)) for rows in (train, held)]
            fitted = fit_heads(*own, (name,), digest=self.case.model.digest, seed=seed)
            said = [fitted.predict(rows.columns(columns).astype(np.float32))[:, 0] for rows in (held, test)]
            return said[0], said[1]

        def boosted(*columns: str) -> Said:
            x, x_v, x_t = (rows.columns(*columns) for rows in (train, held, test))
            return _said(trees(x, train.y_N, (x_v, held.y_N), seed, 0.03), x_v, x_t)

        many = self.counted(task, list(range(MANY_FROM, VALIDATION_AT - task.window_us + 1, WEEK_US)))
        every_week = trees(*many, (held.counts_ND, held.y_N), seed, 0.03)
        theirs, mlp, strong = (
            boosted("counts_ND"),
            heads("counts_ND"),
            _said(every_week, held.counts_ND, test.counts_ND),
        )
        returns = self.returned(self.returns, task, instants)
        scores = {
            "logistic, counts": logistic(train.counts_ND, train.y_N, test.counts_ND),
            THEIRS: theirs[1],
            STRONG: strong[1],
            "mlp, counts": mlp[1],
            "ours alone (vector, mlp)": heads("vectors_ND")[1],
            "trees, counts + vector": boosted("counts_ND", "vectors_ND")[1],
            "trees, counts + 8 components": boosted("counts_ND", "components_ND")[1],
            RETURN: returns[1],
            BOTH: boosted("counts_ND", "returns_ND")[1],
            CONTROL: blended(theirs, mlp, held.y_N),
            RETURNED: blended(theirs, returns, held.y_N),
            STRONG_RETURNED: blended(strong, self.returned(self.newest, task, instants), held.y_N),
        }
        labels_UK = test.y_N.reshape(len(instants), -1).T
        return {ranker: Scored(labels_UK, said_N.reshape(len(instants), -1).T) for ranker, said_N in scores.items()}

    def returned(self, model: ReturnTime, task: Task, instants: list[int]) -> Said:
        """The chances of a yes that a return time gives."""
        found = []
        for asked in ([VALIDATION_AT], instants):
            parts = [
                model.within(self.case.log, at_us, [task.days])[known_users(self.case.log, min(at_us, TEST_AT)), 0]
                for at_us in asked
            ]
            chances = np.clip(np.concatenate(parts), 1e-9, 1 - 1e-9)
            found.append(1 - chances if task.kind == "churn" else chances)
        return found[0], found[1]


def _said(model, x_held: np.ndarray, x_test: np.ndarray) -> Said:  # noqa: ANN001
    return model.predict_proba(x_held)[:, 1], model.predict_proba(x_test)[:, 1]
