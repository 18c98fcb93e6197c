"""What a sequence head says of users whose next events are known, beside the one-step model.

Shape letters: B users, K steps.
"""

from __future__ import annotations

import numpy as np
import torch

import bseq_plugin as bseq
from bseq_behaviour.contract.answers import checked_steps
from bseq_behaviour.contract.heads import SequenceHead
from bseq_behaviour.next_k.futures import Futures
from bseq_behaviour.next_k.paths import aggregate, beam_search, expected_items, sample_paths

RANKERS = ("one step", "first step", "beam", "samples", "expected")


@torch.no_grad()
def rank_next_k(
    decoder: SequenceHead, test: Futures, k: int, n_beams: int = 8, n_samples: int = 16, block: int = 64, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(ranker -> int64 [B, k], item rows or 0; int64 [B, k], the type of each step of the likeliest sequence).

    Rankers: ``one step``, the encoder's top k; ``first step``, the decoder's before it has taken any; ``beam`` and
    ``samples``, ``aggregate`` of what both ways find; ``expected``, by ``Paths.expected_BV``. Raises UsageError for a k
    that the decoder or the futures do not have.
    """
    if not 1 <= k <= test.items_BJ.shape[1]:
        raise bseq.UsageError(f"k = {k}, the futures have 1 to {test.items_BJ.shape[1]} steps; make them longer")
    generator = torch.Generator().manual_seed(seed)
    blocks: dict[str, list[torch.Tensor]] = {name: [] for name in (*RANKERS, "types")}
    n_rows = len(decoder.item_vectors_VD)
    for users in torch.split(torch.arange(len(test.users)), block):
        memory, items_BJ, types_BJ = test.take(users)
        scores_BV = memory.interest_BD @ decoder.item_vectors_VD.T
        scores_BV[:, 0] = -torch.inf
        blocks["one step"].append(scores_BV.topk(k, dim=1).indices)
        first = checked_steps(decoder, decoder(memory, items_BJ[:, :1], types_BJ[:, :1]), (len(users), 1))[0][:, 0]
        blocks["first step"].append(first.topk(k, dim=1).indices)
        beam = beam_search(decoder, memory, k, n_beams)
        drawn = sample_paths(decoder, memory, k, n_samples, generator=generator)
        blocks["beam"].append(aggregate(beam, k, n_rows, weighted=True))
        blocks["samples"].append(aggregate(drawn, k, n_rows))
        blocks["expected"].append(expected_items(drawn).topk(k, dim=1).indices)
        blocks["types"].append(beam.types_BRJ[:, 0])
    ranked = {name: torch.cat(parts).numpy() for name, parts in blocks.items()}
    types_BK = ranked.pop("types")
    return ranked, types_BK


def judge_next_k(
    decoder: SequenceHead, test: Futures, k: int, n_beams: int = 8, n_samples: int = 16, block: int = 64, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """float [B], Recall@k and NDCG@k of the next k events of each ranker of ``rank_next_k``; and the share of each
    user's next events whose type is right: of the decoder, of the commonest type, and of each user's own commonest.
    """
    ranked, types_BK = rank_next_k(decoder, test, k, n_beams, n_samples, block, seed)
    offsets, items = _targets(test.items_BJ[:, :k].numpy())
    judged: dict[str, dict[str, np.ndarray]] = {}
    for name, top_BK in ranked.items():
        metrics = bseq.ranking_metrics(np.where(top_BK > 0, top_BK, -1), offsets, items, [k])
        judged[name] = {metric: metrics[f"{metric}@{k}"] for metric in ("recall", "ndcg")}
    truth_BK, there_BK = test.types_BJ[:, :k].numpy(), test.items_BJ[:, :k].numpy() > 0
    guesses = {
        "decoder": types_BK,
        "the commonest": np.bincount(truth_BK[there_BK]).argmax(),
        "the user's commonest": test.usual_B[:, None].numpy(),
    }
    judged["event type"] = {
        name: ((guess == truth_BK) & there_BK).sum(1) / there_BK.sum(1) for name, guess in guesses.items()
    }
    return judged


def _targets(items_BJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, distinct items ascending) of each user."""
    rows = [np.unique(own[own > 0]) for own in items_BJ]
    return np.concatenate([[0], np.cumsum([len(own) for own in rows])]).astype(np.int64), np.concatenate(rows)
