"""Rankers of the shape of TorchRec's golden training, and a sequence host: trained, published, searched.

``python ranker_job.py FOLDER RANK WORLD_SIZE`` does it in several processes. The rule of the data: a user goes on to
the item with the next number, and clicks if her latest item has an even one.
"""

from __future__ import annotations

import host_job
import numpy as np
import torch
from bseq_dlrm import DLRMInterestTrain, DLRMWithInterest, InterestBatch
from host_job import L, U, V
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM_DCN, DLRM_Projection

import bseq_plugin as bseq

DIM, N_ADS, N_DENSE, N_NEGATIVES = 16, 20, 3, 2
ITEM_KEYS = ("target", "negative")


def make_host(kind, device="meta"):
    configs = [
        EmbeddingBagConfig(name=f"{key}_table", embedding_dim=DIM, num_embeddings=rows, feature_names=[key])
        for key, rows in {"ad": N_ADS, "place": 5}.items()
    ]
    bags = EmbeddingBagCollection(tables=configs, device=torch.device(device))
    if kind is SimpleDeepFMNN:
        return SimpleDeepFMNN(N_DENSE, bags, 16, 8)
    if kind is DLRM_DCN:
        return DLRM_DCN(bags, N_DENSE, [16, DIM], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4)
    if kind is DLRM_Projection:
        return DLRM_Projection(bags, N_DENSE, [16, DIM], [16, 1], [3 * DIM, 2 * DIM], [3 * DIM, 2 * DIM])
    return kind(bags, N_DENSE, [16, DIM], [16, 1])


class MaskedItemHost(nn.Module):
    """A host of the shape of TorchRec's bert4rec, without tables of its own: it wires encoders in by itself."""

    def attach_interest(self, interest, frozen):
        return NextItems(interest)


class NextItems(nn.Module):
    """In-batch softmax of what each user went on to, scored with the encoder's own rows."""

    def __init__(self, interest):
        super().__init__()
        self.encoder, self.loss_fn = interest, InBatch()

    def forward(self, batch):
        interest, vectors = self.encoder.interest_and_items(batch.history)
        loss = self.loss_fn(interest["user_interest"], vectors["target"], batch.history)
        return loss, (loss.detach(), batch.labels)


class InBatch(nn.Module):
    def forward(self, interest_BI, target_BD, history):
        interest_BKD = interest_BI.view(len(target_BD), -1, target_BD.shape[1])
        logits_BB = torch.einsum("bkd,nd->bkn", interest_BKD, target_BD).amax(dim=1)
        ids_B = history["target"].values()
        same = (ids_B[:, None] == ids_B) & ~torch.eye(len(ids_B), dtype=torch.bool)
        return nn.functional.cross_entropy(logits_BB.masked_fill(same, float("-inf")), torch.arange(len(ids_B)))


def make_encoder(device="meta", n_interests=1, name="causal", item_keys=ITEM_KEYS, **more):
    several = {"interests": {"kind": "several", "n": n_interests}, "objective": {"kind": "prefix"}}
    recipe = bseq.Recipe(
        encoder={"name": name, "max_length": L, "dropout": 0.0, "n_blocks": 1},
        vectors={"dim": DIM},
        events={"features": ()},
        **(several if n_interests > 1 else {}),
    )
    return bseq.SequenceInterestEncoder(recipe, V, device=device, item_keys=item_keys, **more)


def batch(seed, n=128, event="event", item_keys=ITEM_KEYS):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, L + 1, (n,), generator=generator)
    items = torch.randint(1, V + 1, (int(lengths.sum()),), generator=generator)
    latest = items[lengths.cumsum(0) - 1]
    negatives = torch.randint(1, V + 1, (n * N_NEGATIVES,), generator=generator)
    values = {event: items, "target": latest % V + 1, "negative": negatives}
    counts = {event: lengths, "target": torch.ones_like(lengths), "negative": torch.full((n,), N_NEGATIVES)}
    keys = [event, *item_keys]
    history = KeyedJaggedTensor(
        keys, torch.cat([values[key] for key in keys]), lengths=torch.cat([counts[key] for key in keys])
    )
    sparse = torch.cat([torch.randint(0, rows, (n,), generator=generator) for rows in (N_ADS, 5)])
    sparse = KeyedJaggedTensor(["ad", "place"], sparse, lengths=torch.ones(2 * n, dtype=torch.int64))
    return InterestBatch(torch.randn(n, N_DENSE, generator=generator), sparse, history, (latest % 2 == 0).float())


def train(task, sharding="row_wise", optimizer="row_wise_adagrad", n_steps=60, make=batch):
    """Return the host under DMP, its pipeline attached and with steps left, and the losses."""
    return host_job.train(task, ["ad_table", "place_table"], sharding, optimizer, n_steps, make)


@torch.no_grad()
def top_of_host(encoder, rows):
    """The ten best items of each user by the host's own scores, int64 [U, 10]: exact search, one look-up."""
    every = np.arange(1, V + 1)
    lengths = np.concatenate([np.full(U, L), [V], np.zeros(U - 1), np.zeros(U)]).astype(np.int64)
    values = torch.from_numpy(np.concatenate([rows.ravel(), every]))
    features = KeyedJaggedTensor(["event", *ITEM_KEYS], values, lengths=torch.from_numpy(lengths))
    interest, vectors = encoder.eval().interest_and_items(features)
    interest_BKD = interest["user_interest"].view(U, -1, DIM)
    scores = torch.einsum("bkd,nd->bkn", interest_BKD, vectors["target"]).amax(dim=1)
    return scores.topk(10).indices.numpy() + 1


def make_task(kind, n_interests=1):
    """(the task, its encoder)."""
    if kind is MaskedItemHost:
        task = bseq.attach(MaskedItemHost(), make_encoder(n_interests=n_interests, name="masked"))
        return task, task.encoder
    ranker = DLRMWithInterest(make_host(kind), make_encoder(n_interests=n_interests))
    return DLRMInterestTrain(ranker, next_item_weight=0.5), ranker.interest


def trained_and_published(store, kind, sharding, optimizer, n_interests=1):
    """See ``host_job.compared``."""
    torch.manual_seed(0)
    task, encoder = make_task(kind, n_interests)
    return host_job.compared(*train(task, sharding, optimizer), store, lambda rows: top_of_host(encoder, rows))


def work(folder):
    return [
        trained_and_published(folder / "dcn", DLRM_DCN, "row_wise", "row_wise_adagrad"),
        trained_and_published(folder / "own", MaskedItemHost, "column_wise", "adagrad", 3),
    ]


if __name__ == "__main__":
    host_job.as_a_process(work)
