"""Small encoders, and histories for them: what the tests of compiling, tracing and exporting need."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import bseq_plugin as bseq

N_ITEMS, N_TYPES, DIM, LONGEST = 20, 2, 8, 6
ENCODERS = ("causal", "hstu", "gru", "mean", "masked", "cross_session")
LENGTHS = (3, 1, 6, 0, 2)


def small_recipe(name, **sections):
    # two blocks: with one, the newest events alone look, and no batch is laid out in lines
    options = {"n_blocks": 1} if name == "masked" else {"n_blocks": 2} if name in ("causal", "hstu") else {}
    encoder = {"name": name, "max_length": LONGEST, "dropout": 0.0, **options}
    return bseq.Recipe(encoder=encoder, vectors={"dim": DIM}).replace(**sections)


def make_encoder(chosen, device=None):
    torch.manual_seed(0)
    made = bseq.SequenceInterestEncoder(chosen, N_ITEMS, N_TYPES, device=device)
    if device is None:
        for parameter in made.parameters():  # tables that start at zero would hide mistakes
            nn.init.normal_(parameter, std=0.3)
    return made.eval()


def make_features(lengths, chosen, seed=0):
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    times, values = np.sort(random.integers(0, 10**13, n)), random.normal(0, 20, n)
    items, types = random.integers(0, N_ITEMS + 1, n), random.integers(0, N_TYPES + 1, n)
    sequences = bseq.Sequences(
        np.arange(len(lengths)), offsets, items, times, types, times // 1_000_000_000_000, values=values
    )
    return bseq.history_features(sequences, chosen)
