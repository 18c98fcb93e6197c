"""What tables of propensities have in common: rankers that anybody has who has the log.

Shape letters: N rows, D columns.
"""

from __future__ import annotations

import numpy as np
from bseq_behaviour.propensity.curves import auroc
from bseq_behaviour.propensity.inputs import Scale
from scipy.special import logit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

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


def blended(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], y_held: np.ndarray) -> np.ndarray:
    """Of the test, a mean of two rankers' logits whose weight is the best on November; both are (November, test)."""
    shares = np.linspace(0, 1, 11)
    held = [auroc(y_held, (1 - share) * logit(one[0]) + share * logit(other[0])) for share in shares]
    share = shares[int(np.argmax(held))]
    mixed: np.ndarray = (1 - share) * logit(one[1]) + share * logit(other[1])
    return mixed
