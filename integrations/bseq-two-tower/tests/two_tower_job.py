"""A two-tower of the shape of TorchRec's retrieval example: trained under DMP and the pipeline, published, searched.

``python two_tower_job.py FOLDER RANK WORLD_SIZE`` does it in several processes. The rule of the data: the right
candidate of a user is the item with the next number.
"""

from __future__ import annotations

import host_job
import torch
from bseq_two_tower import CandidateLoss, InBatchSoftmax, InterestTwoTower, InterestTwoTowerTrain, TwoTowerBatch
from host_job import L, U, V
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.mlp import MLP

import bseq_plugin as bseq

DIM, WIDTH, N_COUNTRIES, N_CANDIDATES = 16, 16, 5, 4
LOSSES = {"one": CandidateLoss, "several": CandidateLoss, "in_batch": InBatchSoftmax}


class RetrievalHost(nn.Module):
    """The parts of TorchRec's example; ``features`` are the query's, the user's id first."""

    def __init__(self, device="cpu", features=("user",)):
        super().__init__()
        rows = {"user": U, "country": N_COUNTRIES}
        rows = {name: rows[name] for name in features} | {"item": V + 1}
        configs = [
            EmbeddingBagConfig(name=f"t_{key}", embedding_dim=DIM, num_embeddings=n, feature_names=[key])
            for key, n in rows.items()
        ]
        self.ebc = EmbeddingBagCollection(tables=configs, device=torch.device(device))
        self._feature_names_query, self._candidate_feature_names = list(features), ["item"]
        self.query_proj, self.candidate_proj = MLP(DIM * len(features), [WIDTH]), MLP(DIM, [32, WIDTH])

    def forward(self, kjt):
        found = self.ebc(kjt)
        query = torch.cat([found[name] for name in self._feature_names_query], dim=1)
        return self.query_proj(query), self.candidate_proj(found["item"])


def make_encoder(device="meta", n_interests=1):
    several = {"interests": {"kind": "several", "n": n_interests}, "objective": {"kind": "prefix"}}
    recipe = bseq.Recipe(
        encoder={"name": "causal", "max_length": L, "dropout": 0.0, "n_blocks": 1},
        vectors={"dim": DIM},
        events={"features": ()},
        **(several if n_interests > 1 else {}),
    )
    return bseq.SequenceInterestEncoder(recipe, V, device=device)


def ids(key, values):
    return KeyedJaggedTensor([key], values, lengths=torch.ones_like(values))


def batch(seed, kind, n=128):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, L + 1, (n,), generator=generator)
    items = torch.randint(1, V + 1, (int(lengths.sum()),), generator=generator)
    right = items[lengths.cumsum(0) - 1] % V + 1
    others = torch.randint(1, V + 1, (n, N_CANDIDATES if kind == "several" else 1), generator=generator)
    chosen = torch.randint(0, 2, others.shape, generator=generator) == 1
    candidates = right[:, None] if kind == "in_batch" else torch.where(chosen, right[:, None], others)
    labels = (candidates == right[:, None]).float()
    country = ids("country", torch.randint(0, N_COUNTRIES, (n,), generator=generator))
    labels = labels if kind == "several" else labels[:, 0]
    history = KeyedJaggedTensor(["event"], items, lengths=lengths)
    return TwoTowerBatch(history, ids("item", candidates.flatten()), labels, country)


def train(task, sharding, optimizer, kind, n_steps):
    """Return the host under DMP, its pipeline attached and with steps left, and the losses."""
    return host_job.train(task, ["t_item", "t_country"], sharding, optimizer, n_steps, lambda seed: batch(seed, kind))


@torch.no_grad()
def top_of_host(two_tower, rows):
    """The ten best items of each user by the host's own towers, int64 [U, 10]: exact search."""
    lengths = torch.full((U,), L)
    query = two_tower.eval().query(KeyedJaggedTensor(["event"], torch.from_numpy(rows.ravel()), lengths=lengths))
    return (query @ two_tower.candidate(ids("item", torch.arange(1, V + 1))).T).topk(10).indices.numpy() + 1


def trained_and_published(store, sharding, optimizer, kind, n_steps=60, n_interests=1):
    """See ``host_job.compared``."""
    torch.manual_seed(0)
    model = InterestTwoTower(RetrievalHost("meta"), make_encoder(n_interests=n_interests))
    trained = train(InterestTwoTowerTrain(model, LOSSES[kind]()), sharding, optimizer, kind, n_steps)
    return host_job.compared(*trained, store, lambda rows: top_of_host(model, rows))


def work(folder):
    return [
        trained_and_published(folder / f"store_{sharding}", sharding, optimizer, "in_batch")
        for sharding, optimizer in (("row_wise", "row_wise_adagrad"), ("column_wise", "adagrad"))
    ]


if __name__ == "__main__":
    host_job.as_a_process(work)
