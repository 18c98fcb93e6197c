"""A sequence-interest encoder as the user tower of a two-tower retrieval model.

The two-tower form: Covington et al., RecSys 2016; Yi et al., RecSys 2019. Shape letters: B rows, O width of the towers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.streamable import Pipelineable

import bseq_plugin as bseq

PARTS = ("ebc", "query_proj", "candidate_proj", "_candidate_feature_names")


@bseq.hookimpl
def bseq_attach(host: nn.Module, interest: bseq.HistoryEncoder, frozen: bool) -> nn.Module | None:
    """``InterestTwoTower`` for a module with the parts of TorchRec's two-tower example."""
    return InterestTwoTower(host, interest, frozen) if all(hasattr(host, part) for part in PARTS) else None


class InterestTwoTower(nn.Module):
    """``(history, candidates) -> (query [B, O], candidate [B, O])``; score = inner product.

    Args:
        host: where the candidate tower comes from: its tables and projection are shared.
        interest: the user tower.
        frozen: gradients and dropout stop before the encoder.
    """

    def __init__(self, host: nn.Module, interest: bseq.HistoryEncoder, frozen: bool = False) -> None:
        super().__init__()
        names, ebc = list(host._candidate_feature_names), host.ebc
        self.frozen = frozen
        self.interest = interest.requires_grad_(not frozen)
        self.candidate_names = names
        self.candidate_ebc = _candidate_tables(ebc, names)  # type: ignore[arg-type]
        self.candidate_proj = host.candidate_proj
        last = [layer for layer in host.candidate_proj.modules() if isinstance(layer, nn.Linear)][-1:]  # type: ignore[union-attr]
        if not last:
            raise bseq.UsageError(
                "the host's candidate_proj has no linear layer, so the width of its towers is unknown"
            )
        self.query_proj = nn.Linear(interest.width, last[0].out_features, device=last[0].weight.device)
        self.train(host.training)

    def forward(self, history: KeyedJaggedTensor, candidates: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Embeddings of both towers."""
        return self.query(history), self.candidate(candidates)

    def query(self, history: KeyedJaggedTensor) -> Tensor:
        """Embeddings of the query tower alone."""
        interest = self.interest(history)[bseq.USER_INTEREST]
        return self.query_proj(interest.detach() if self.frozen else interest)

    def candidate(self, candidates: KeyedJaggedTensor) -> Tensor:
        """Embeddings of the candidate tower alone."""
        looked_up = self.candidate_ebc(candidates)
        return self.candidate_proj(torch.cat([looked_up[name] for name in self.candidate_names], dim=1))

    def export_towers(self, candidate_features: Callable[[Tensor], KeyedJaggedTensor] | None = None) -> bseq.Towers:
        """The towers for ``bseq.publish``.

        Args:
            candidate_features: rows of the vocabulary, int64 [N], 1 to V -> what the candidate tower reads of these
                items, N rows; needed if it reads more than an id, or ids of another numbering. Default: the rows
                themselves under the one candidate key.

        Raises UsageError without it for several candidate keys.
        """
        if candidate_features is None:
            if len(self.candidate_names) > 1:
                raise bseq.UsageError(
                    f"the candidate tower reads {self.candidate_names}; say what they are for each item: "
                    "bseq.publish(model.export_towers(candidate_features=...), ...)"
                )
            (name,) = self.candidate_names
            candidate_features = lambda rows_N: KeyedJaggedTensor([name], rows_N, lengths=torch.ones_like(rows_N))  # noqa: E731
        features = candidate_features
        return bseq.Towers(
            self, self.interest, self.query_proj, self.query, lambda rows: self.candidate(features(rows))
        )

    def train(self, mode: bool = True) -> InterestTwoTower:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.interest.eval()
        return self


@dataclass
class TwoTowerBatch(Pipelineable):
    """What a step reads: histories, one candidate each, and whether it was chosen (float32 [B], 0 or 1)."""

    history: KeyedJaggedTensor
    candidates: KeyedJaggedTensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> TwoTowerBatch:
        """The batch on another device."""
        return TwoTowerBatch(
            self.history.to(device, non_blocking),
            self.candidates.to(device, non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator of the stream that reads it."""
        for value in (self.history, self.candidates, self.labels):
            value.record_stream(stream)

    def pin_memory(self) -> TwoTowerBatch:
        """The batch in pinned memory."""
        return TwoTowerBatch(self.history.pin_memory(), self.candidates.pin_memory(), self.labels.pin_memory())


class InterestTwoTowerTrain(nn.Module):
    """``TwoTowerBatch -> (loss, (loss, logits, labels))``: binary cross-entropy of the inner product."""

    def __init__(self, two_tower: nn.Module) -> None:
        super().__init__()
        self.two_tower = two_tower
        self.loss_fn = nn.BCEWithLogitsLoss()

    def forward(self, batch: TwoTowerBatch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Mean over the rows."""
        query, candidate = self.two_tower(batch.history, batch.candidates)
        logits = (query * candidate).sum(dim=1)
        loss = self.loss_fn(logits, batch.labels)
        return loss, (loss.detach(), logits.detach(), batch.labels.detach())


def _candidate_tables(ebc: EmbeddingBagCollection, names: list[str]) -> EmbeddingBagCollection:
    """A collection of the candidates' tables alone, which are the host's own."""
    configs = [config for config in ebc.embedding_bag_configs() if set(config.feature_names) & set(names)]
    found = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    for config in configs:
        found.embedding_bags[config.name] = ebc.embedding_bags[config.name]
    return found
