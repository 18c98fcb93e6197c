"""The rankers: logistic regression on counts, boosted trees, and TorchRec's DLRM without and with ours.

Shape letters: N rows, F sparse features, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from bseq_dlrm import DLRMWithInterest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.models.dlrm import DLRM

import bseq_plugin as bseq
from benchmarks.worth.data import CATEGORICAL, COUNTS, PLAIN, Rows

DIM, BATCH, EPOCHS = 64, 4096, 4
SPARSE = ("user_id", "item_id", *CATEGORICAL)


def base_names(base: str) -> list[str]:
    """Columns that a ranker has beside ids: ``plain`` = counts of the household and of the product; ``crosses`` =
    counts of both together too, made by hand, of which some of ours are a form. Retrieval's rank and score are ours.
    """
    return list({"plain": PLAIN, "crosses": COUNTS}[base])


def base_of(rows: Rows, base: str) -> np.ndarray:
    """float32 [N, columns] of ``base_names``."""
    return rows.frame[base_names(base)].to_numpy(np.float32)


def logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities of a logistic regression on log counts, standardised."""
    scale = Scale.of(train)
    model = LogisticRegression(max_iter=300, random_state=seed).fit(scale(train), labels)
    return np.asarray(model.predict_proba(scale(test))[:, 1])


def trees(
    train: np.ndarray, labels: np.ndarray, held_out: tuple[np.ndarray, np.ndarray], seed: int
) -> HistGradientBoostingClassifier:
    """Gradient-boosted trees, stopped on the validation weeks; a seed draws the columns that each split looks at."""
    model = HistGradientBoostingClassifier(
        max_iter=300, learning_rate=0.08, max_leaf_nodes=31, max_features=0.5, early_stopping=True,
        n_iter_no_change=15, random_state=seed,
    )  # fmt: skip
    return model.fit(train, labels, X_val=held_out[0], y_val=held_out[1])


@dataclass(frozen=True)
class Scale:
    """Signed log1p and standardisation, fitted on the training weeks; a missing value becomes 0, the mean."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """Fit."""
        logs = np.sign(values) * np.log1p(np.abs(values))
        with np.errstate(all="ignore"):
            mean = np.nan_to_num(np.nanmean(logs, axis=0))
            deviation = np.nan_to_num(np.nanstd(logs, axis=0))
        return cls(mean, np.where(deviation > 1e-6, deviation, 1.0))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """float32, same shape."""
        logs = np.sign(values) * np.log1p(np.abs(values))
        return np.nan_to_num((logs - self.mean) / self.deviation).astype(np.float32)


@dataclass(frozen=True)
class DlrmData:
    """Rows as a DLRM reads them.

    Attributes:
        dense: float32 [N, *]; sparse: int64 [N, F]; labels: float32 [N].
        request: int64 [N], row of ``interests`` (float32 [Q, I]) of each candidate row; None without an encoder.
    """

    dense: Tensor
    sparse: Tensor
    labels: Tensor
    request: Tensor
    interests: Tensor | None = None

    def batches(self, order: Tensor) -> Iterator[tuple[Tensor, KeyedJaggedTensor, Tensor | None, Tensor]]:
        """(dense, sparse, interests, labels) of rows in an order."""
        for rows in torch.split(order, BATCH):
            values = self.sparse[rows].T.flatten()
            kjt = KeyedJaggedTensor(list(SPARSE), values, lengths=torch.ones_like(values))
            interest = None if self.interests is None else self.interests[self.request[rows]]
            yield self.dense[rows], kjt, interest, self.labels[rows]


class GivenInterest(nn.Module):
    """Stands in for a frozen encoder: a request's interest is computed once, not once a candidate and epoch."""

    def __init__(self, encoder: bseq.SequenceInterestEncoder) -> None:
        super().__init__()
        self.readout = encoder.readout

    def forward(self, interest_BI: Tensor) -> KeyedTensor:
        """The same KeyedTensor that the encoder gives."""
        return KeyedTensor(keys=["user_interest"], length_per_key=[interest_BI.shape[1]], values=interest_BI)


def dlrm(
    n_dense: int, n_rows: list[int], seed: int, model: bseq.InterestModel | None, item_rows: np.ndarray | None
) -> nn.Module:
    """A DLRM; with ``model`` its encoder is attached, frozen, and item embeddings begin as its item vectors."""
    torch.manual_seed(seed)
    tables = [
        EmbeddingBagConfig(name=f"t_{key}", embedding_dim=DIM, num_embeddings=n, feature_names=[key])
        for key, n in zip(SPARSE, n_rows, strict=True)
    ]
    host = DLRM(EmbeddingBagCollection(tables=tables), n_dense, [128, DIM], [128, 64, 1])
    for bag in host.sparse_arch.embedding_bag_collection.embedding_bags.values():
        nn.init.normal_(bag.weight, std=0.05)
    if model is None:
        return host
    attached = bseq.attach(host, model.encoder, frozen=True)
    if not isinstance(attached, DLRMWithInterest):
        raise TypeError(f"bseq-dlrm attached a {type(attached).__name__}")
    attached.interest = GivenInterest(model.encoder)
    with torch.no_grad():
        of_items = host.sparse_arch.embedding_bag_collection.embedding_bags["t_item_id"].weight
        of_items[: len(item_rows)] = model.item_vectors_VD[torch.from_numpy(item_rows), :DIM]
    return attached


def fit_dlrm(module: nn.Module, train: DlrmData, held_out: DlrmData, seed: int) -> nn.Module:
    """Adam on everything; the epoch that is best on the validation weeks is kept."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    best, state = float("inf"), module.state_dict()
    for _ in range(EPOCHS):
        module.train()
        for dense, sparse, interest, labels in train.batches(torch.randperm(len(train.labels), generator=generator)):
            loss = nn.functional.binary_cross_entropy_with_logits(_logits(module, dense, sparse, interest), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scores = predict_dlrm(module, held_out).clip(1e-6, 1 - 1e-6)
        wanted = held_out.labels.numpy()
        found = float(-(wanted * np.log(scores) + (1 - wanted) * np.log(1 - scores)).mean())
        if found >= best:
            break
        best, state = found, {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module


@torch.no_grad()
def predict_dlrm(module: nn.Module, data: DlrmData) -> np.ndarray:
    """Probabilities [N]."""
    module.eval()
    parts = [_logits(module, *batch[:3]) for batch in data.batches(torch.arange(len(data.labels)))]
    return np.asarray(torch.sigmoid(torch.cat(parts)).numpy())


def _logits(module: nn.Module, dense: Tensor, sparse: KeyedJaggedTensor, interest: Tensor | None) -> Tensor:
    given = (dense, sparse) if interest is None else (dense, sparse, interest)
    logits: Tensor = module(*given)
    return logits.squeeze(-1)
