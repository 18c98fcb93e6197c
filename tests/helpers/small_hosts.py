"""Small hosts on one process: one that scores with the encoder's own rows, one with towers, and their training."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

import bseq_plugin as bseq

N_ITEMS, DIM, WIDTH, LENGTH = 30, 8, 6, 5
IDS = np.arange(N_ITEMS) * 10 + 3
NEXT = 7  # what follows item row i is i + 7


def recipe(**sections):
    encoder = {"name": "causal", "max_length": LENGTH, "n_blocks": 1, "dropout": 0.0}
    return bseq.Recipe(**{"encoder": encoder, "vectors": {"dim": DIM}, "events": {"features": ()}, **sections})


def make_vocabulary():
    return bseq.Vocabulary(IDS, np.ones(N_ITEMS, np.int64), ())


def make_histories():
    rows = np.random.default_rng(1).integers(0, N_ITEMS, (40, LENGTH + 2))
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(rows.size), "min")
    users = np.repeat(np.arange(40), rows.shape[1])
    frame = pd.DataFrame({"user_id": users, "item_id": IDS[rows.ravel()], "timestamp": times})
    return bseq.Sequences.from_events(bseq.Events.from_frame(frame), make_vocabulary())


class Scoring(nn.Module):
    """Scores targets with the encoder's own rows."""

    def __init__(self, chosen=None, **options):
        super().__init__()
        options = {"item_keys": ["target"], **options}
        self.interest = bseq.SequenceInterestEncoder(chosen or recipe(), N_ITEMS, **options)

    def forward(self, batch):
        interest, items = self.interest.interest_and_items(batch)
        scores = torch.einsum(
            "bkd,nd->bkn", interest["user_interest"].view(len(items["target"]), -1, DIM), items["target"]
        )
        return nn.functional.cross_entropy(scores.amax(1), torch.arange(scores.shape[2]))


class TwoTower(nn.Module):
    def __init__(self, query_proj, chosen=None):
        super().__init__()
        self.interest = bseq.SequenceInterestEncoder(chosen or recipe(), N_ITEMS)
        self.query_proj, self.items = query_proj, nn.Embedding(N_ITEMS + 1, WIDTH)

    def query(self, history):
        return self.query_proj(self.interest(history)["user_interest"])

    def forward(self, batch):
        scores = self.query(batch) @ self.items(batch["target"].values()).T
        return nn.functional.cross_entropy(scores, torch.arange(len(scores)))

    def export_towers(self):
        return bseq.Towers(self, self.interest, self.query_proj, self.query, self.items)


def batch(seed, n=64):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTH + 1, (n,), generator=generator)
    items = torch.randint(1, N_ITEMS + 1, (int(lengths.sum()),), generator=generator)
    targets = (items[lengths.cumsum(0) - 1] + NEXT - 1) % N_ITEMS + 1
    return KeyedJaggedTensor(
        ["event", "target"], torch.cat([items, targets]), lengths=torch.cat([lengths, torch.ones_like(targets)])
    )


def trained(host, steps=150):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(host.train().parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        host(batch(step)).backward()
        optimizer.step()
    return host


def queries(n_outputs=WIDTH, n_inputs=DIM):
    return nn.Sequential(nn.Linear(n_inputs, 9), nn.GELU(), nn.LayerNorm(9), nn.Dropout(0.3), nn.Linear(9, n_outputs))
