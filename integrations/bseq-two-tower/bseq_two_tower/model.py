"""The two-tower with an encoder in its query tower: Covington et al., RecSys 2016; Yi et al., RecSys 2019.

Shape letters: B rows, N candidates, O width of the towers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

import bseq_plugin as bseq

PARTS = ("ebc", "query_proj", "candidate_proj", "_candidate_feature_names")


class InterestTwoTower(nn.Module):
    """``(history, candidates[, query_features]) -> (query [B, O], candidate [N, O])``; score = inner product.

    Args:
        host: where the candidate tower and the tables of kept query features come from: they are shared. Its
            ``query_proj`` is not: the query tower reads something else now.
        interest: what the query tower reads, beside the kept features.
        frozen: gradients and dropout stop before the encoder.
        keep: query features of the host that stay, looked up and put behind the interest; ``()`` drops all of them.
            None: the user's id (a key called user, user_id, userId, uid, ...) is dropped if it is the only one, a user
            being what she did; any other, and all of several, are kept.
        query_proj: what makes a query of the interest and the kept embeddings, in this order; default: one linear
            layer. A store holds what ``bseq.Towers`` lists.

    Raises UsageError for a feature that the host does not have, for a candidate tower of unknown width, and for a table
    that a kept feature shares with a candidate feature: it would be looked up, and sharded, twice.
    """

    def __init__(
        self,
        host: nn.Module,
        interest: bseq.HistoryEncoder,
        frozen: bool = False,
        keep: Sequence[str] | None = None,
        query_proj: nn.Module | None = None,
    ) -> None:
        super().__init__()
        ebc = cast(EmbeddingBagCollection, host.ebc)
        self.candidate_names = [str(name) for name in cast(list[str], host._candidate_feature_names)]
        self.query_names = _kept(_query_features(host, ebc, self.candidate_names), keep)
        _check_not_shared(ebc, self.query_names, self.candidate_names)
        self.frozen = frozen
        self.interest = interest.requires_grad_(not frozen)
        self.candidate_ebc = _tables_of(ebc, self.candidate_names)
        configs = self.candidate_ebc.embedding_bag_configs()
        self.candidate_rows = {name: one.num_embeddings for one in configs for name in one.feature_names}
        self.candidate_proj = cast(nn.Module, host.candidate_proj)
        n_inputs = interest.width
        if self.query_names:
            self.query_ebc = _tables_of(ebc, self.query_names)
            n_inputs += sum(
                config.embedding_dim * len(config.feature_names) for config in self.query_ebc.embedding_bag_configs()
            )
        last = _last_layer(self.candidate_proj)
        self.query_proj = query_proj or nn.Linear(n_inputs, last.out_features, device=last.weight.device)
        self.learned = bseq.Learned().to(last.weight.device)
        self.train(host.training)

    def forward(
        self, history: KeyedJaggedTensor, candidates: KeyedJaggedTensor, query_features: KeyedJaggedTensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of both towers."""
        return self.query(history, query_features), self.candidate(candidates)

    def query(self, history: KeyedJaggedTensor, query_features: KeyedJaggedTensor | None = None) -> Tensor:
        """Embeddings of the query tower alone. Raises UsageError if the kept features are missing, or none is kept."""
        interest = self.interest(history)[bseq.USER_INTEREST]
        inputs = [interest.detach() if self.frozen else interest]
        if self.query_names:
            if query_features is None:
                raise bseq.UsageError(
                    f"the query tower reads {self.query_names} as well: give query_features, or attach with keep=[]"
                )
            looked_up = self.query_ebc(query_features)
            inputs += [looked_up[name] for name in self.query_names]
        elif query_features is not None:
            raise bseq.UsageError("the query tower keeps no feature of the host (keep=): leave query_features out")
        query_BO: Tensor = self.query_proj(torch.cat(inputs, dim=1))
        return self.learned(query_BO, "interests") if self.training else query_BO

    def candidate(self, candidates: KeyedJaggedTensor) -> Tensor:
        """Embeddings of the candidate tower alone."""
        looked_up = self.candidate_ebc(candidates)
        candidate_NO: Tensor = self.candidate_proj(torch.cat([looked_up[name] for name in self.candidate_names], dim=1))
        return self.learned(candidate_NO, "items") if self.training else candidate_NO

    def export_towers(self, candidate_features: Callable[[Tensor], KeyedJaggedTensor] | None = None) -> bseq.Towers:
        """The towers for ``bseq.publish``.

        Args:
            candidate_features: rows of the vocabulary, int64 [N], 1 to V -> what the candidate tower reads of these
                items, N rows; needed if it reads more than an id, or ids of another numbering. Default: the rows
                themselves under the one candidate key, whose table has V + 1 rows, as the encoder's.

        Raises UsageError without it for several candidate keys and for a candidate table of another size, and for a
        query tower that keeps features of the host: a store holds histories, and would have to know these features of
        every user at every request.
        """
        if self.query_names:
            raise bseq.UsageError(
                f"the query tower reads {self.query_names} beside the history, and a store holds no such features: "
                "serve this model by itself, or attach with keep=()"
            )
        if not isinstance(self.interest, bseq.SequenceInterestEncoder):
            raise bseq.UsageError(f"a store holds a SequenceInterestEncoder, not a {type(self.interest).__name__}")
        features = candidate_features or self._rows_as_ids(self.interest.n_items + 1)
        return bseq.Towers(
            self, self.interest, self.query_proj, self.query, lambda rows: self.candidate(features(rows)), self.learned
        )

    def _rows_as_ids(self, n_wanted: int) -> Callable[[Tensor], KeyedJaggedTensor]:
        """Return the candidate features of items whose ids are rows of the vocabulary."""
        say = "bseq.publish(model.export_towers(candidate_features=...), ...), from rows of the vocabulary to that"
        if len(self.candidate_names) > 1:
            raise bseq.UsageError(
                f"the candidate tower reads {self.candidate_names}; say what they are of items: {say}"
            )
        (name,) = self.candidate_names
        n_rows = self.candidate_rows[name]
        if n_rows != n_wanted:
            raise bseq.UsageError(
                f"the table of candidate key {name!r} has {n_rows} rows, the encoder's item table {n_wanted}, so that "
                f"candidate ids are no rows of the vocabulary; say which {name!r} each item is: {say}"
            )
        return lambda rows_N: KeyedJaggedTensor([name], rows_N, lengths=torch.ones_like(rows_N))

    def train(self, mode: bool = True) -> InterestTwoTower:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.interest.eval()
        return self


def _query_features(host: nn.Module, ebc: EmbeddingBagCollection, candidates: list[str]) -> list[str]:
    if hasattr(host, "_feature_names_query"):
        return [str(name) for name in cast(list[str], host._feature_names_query)]
    names = [name for config in ebc.embedding_bag_configs() for name in config.feature_names]
    return [name for name in dict.fromkeys(names) if name not in candidates]


def _kept(names: list[str], keep: Sequence[str] | None) -> list[str]:
    if keep is None:
        return [] if len(names) == 1 and _is_user_id(names[0]) else names
    if isinstance(keep, str) or (stray := [name for name in keep if name not in names]):
        what = repr(keep) if isinstance(keep, str) else stray
        raise bseq.UsageError(f"keep = {what}: give a list of query features of the host, which has {names}")
    return [name for name in names if name in keep]


def _is_user_id(name: str) -> bool:
    return name.lower().replace("_", "") in ("user", "userid", "uid")


def _check_not_shared(ebc: EmbeddingBagCollection, query: list[str], candidates: list[str]) -> None:
    for config in ebc.embedding_bag_configs():
        of_query, of_candidates = (
            [name for name in config.feature_names if name in names] for names in (query, candidates)
        )
        if of_query and of_candidates:
            raise bseq.UsageError(
                f"table {config.name!r} is read by query feature {of_query[0]!r} and candidate feature "
                f"{of_candidates[0]!r}, which are looked up in two collections: leave {of_query[0]!r} out of keep, or "
                "give it a table of its own"
            )


def _tables_of(ebc: EmbeddingBagCollection, names: list[str]) -> EmbeddingBagCollection:
    """Return a collection of the tables of these features alone, which are the host's own."""
    configs = [
        replace(config, feature_names=[name for name in config.feature_names if name in names])
        for config in ebc.embedding_bag_configs()
        if set(config.feature_names) & set(names)
    ]
    found = EmbeddingBagCollection(tables=configs, is_weighted=ebc.is_weighted(), device=torch.device("meta"))
    for config in configs:
        found.embedding_bags[config.name] = ebc.embedding_bags[config.name]
    return found


def _last_layer(projection: nn.Module) -> nn.Linear:
    layers = [layer for layer in projection.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise bseq.UsageError("the host's candidate_proj has no linear layer, so the width of its towers is unknown")
    return layers[-1]
