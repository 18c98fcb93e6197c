"""The next k events as a sequence, decoded by any sequence head: beams, samples, and one ranked list of them.

Shape letters: B users, J steps, V items, R beams or samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import bseq_plugin as bseq
from bseq_behaviour.contract.answers import checked_steps, nonsense
from bseq_behaviour.contract.heads import DecoderMemory, SequenceHead


@dataclass(frozen=True)
class Paths:
    """Decoded sequences, the likeliest first.

    Attributes:
        items_BRJ, types_BRJ: int64; a type is the likeliest at its step. Items 0: there is no further sequence.
        log_chance_BR: float, of the items.
        expected_BV: float, how often each item is to be expected in a sequence, of sampled ones: the chances of every
            step, summed, the mean over the samples. With far fewer samples it is as exact as counting them.
    """

    items_BRJ: Tensor
    types_BRJ: Tensor
    log_chance_BR: Tensor
    expected_BV: Tensor | None = None


@torch.no_grad()
def beam_search(
    decoder: SequenceHead, memory: DecoderMemory, n_steps: int, n_beams: int, repeats: bool = False
) -> Paths:
    """The likeliest sequences that a search of ``n_beams`` finds. ``repeats``: an item may come again.

    Raises UsageError for a number of steps that the decoder does not have, or more than there are items; PluginError
    for a decoder that gives nonsense.
    """
    _check(decoder, n_steps, n_beams, repeats)
    n_users, n_rows = len(memory.interest_BD), len(decoder.item_vectors_VD)
    paths = _Steps(decoder, memory, n_users, n_steps)
    chances_BR = torch.zeros(n_users, 1)
    for step in range(n_steps):
        log_BRV, types_BR = paths.ahead(step, repeats)
        total = (chances_BR[:, :, None] + log_BRV).flatten(1)
        chances_BR, flat = total.topk(min(n_beams, total.shape[1]), dim=1)
        from_BR = flat // n_rows
        paths.go(step, from_BR, flat % n_rows, types_BR.gather(1, from_BR))
    possible_BR1 = (chances_BR > -torch.inf)[..., None]
    return Paths(paths.items_BRJ * possible_BR1, paths.types_BRJ * possible_BR1, chances_BR)


@torch.no_grad()
def sample_paths(
    decoder: SequenceHead, memory: DecoderMemory, n_steps: int, n_samples: int, repeats: bool = False,
    temperature: float = 1.0, generator: torch.Generator | None = None,
) -> Paths:  # fmt: skip
    """``n_samples`` sequences drawn step by step, the likeliest first. Raises as ``beam_search``."""
    _check(decoder, n_steps, n_samples, repeats)
    if not temperature > 0:
        raise bseq.UsageError(f"temperature = {temperature}; give a positive number")
    n_users = len(memory.interest_BD)
    paths = _Steps(decoder, memory, n_users, n_steps)
    paths.spread(n_samples)
    chances_BR, every = torch.zeros(n_users, n_samples), torch.arange(n_samples).expand(n_users, -1)
    expected_BV = torch.zeros(n_users, len(decoder.item_vectors_VD))
    for step in range(n_steps):
        log_BRV, types_BR = paths.ahead(step, repeats)
        chance_BRV = (log_BRV / temperature).softmax(-1)
        expected_BV += chance_BRV.mean(1)
        drawn = torch.multinomial(chance_BRV.flatten(0, 1), 1, generator=generator)
        items_BR = drawn.view(n_users, n_samples)
        chances_BR = chances_BR + log_BRV.gather(2, items_BR[..., None])[..., 0]
        paths.go(step, every, items_BR, types_BR)
    order = chances_BR.argsort(dim=1, descending=True, stable=True)
    wide = order[..., None].expand(-1, -1, n_steps)
    items_BRJ, types_BRJ = paths.items_BRJ.gather(1, wide), paths.types_BRJ.gather(1, wide)
    return Paths(items_BRJ, types_BRJ, chances_BR.gather(1, order), expected_BV)


def aggregate(paths: Paths, k: int, n_rows: int, weighted: bool = False) -> Tensor:
    """int64 [B, k], the items that stand earliest in most sequences: by the sum of 1 / (place from 1), 0 = no more.

    ``weighted``: a sequence counts by its share of the chance of all, for beams; samples are as frequent as likely.
    Source: reciprocal rank fusion, Cormack, Clarke and Buettcher, SIGIR 2009, without its constant.
    """
    n_users, _, n_steps = paths.items_BRJ.shape
    weights_BR = paths.log_chance_BR.softmax(1) if weighted else torch.ones_like(paths.log_chance_BR)
    votes = weights_BR[..., None] / torch.arange(1, n_steps + 1)
    scores_BV = torch.zeros(n_users, n_rows).scatter_add(1, paths.items_BRJ.flatten(1), votes.flatten(1))
    scores_BV[:, 0] = 0
    top, rows = scores_BV.sort(dim=1, descending=True, stable=True)
    return torch.where(top[:, :k] > 0, rows[:, :k], 0)


def expected_items(paths: Paths) -> Tensor:
    """``expected_BV``. Raises UsageError for sequences that were not sampled."""
    if paths.expected_BV is None:
        raise bseq.UsageError("these sequences were searched, not sampled; take those of sample_paths")
    return paths.expected_BV


class _Steps:
    """Sequences as they grow."""

    def __init__(self, decoder: SequenceHead, memory: DecoderMemory, n_users: int, n_steps: int) -> None:
        self.decoder, self.memory = decoder, memory
        self.items_BRJ = torch.zeros(n_users, 1, n_steps, dtype=torch.int64)
        self.types_BRJ = torch.zeros_like(self.items_BRJ)

    def spread(self, n: int) -> None:
        """The same beginnings n times."""
        self.items_BRJ, self.types_BRJ = (x.expand(-1, n, -1).clone() for x in (self.items_BRJ, self.types_BRJ))

    def ahead(self, step: int, repeats: bool) -> tuple[Tensor, Tensor]:
        """(log chances [B, R, V + 1] of the item of ``step``, likeliest type [B, R])."""
        n_users, n_paths, _ = self.items_BRJ.shape
        owner = torch.arange(n_users).repeat_interleave(n_paths)
        items, types = (x[..., : step + 1].flatten(0, 1) for x in (self.items_BRJ, self.types_BRJ))
        answers = self.decoder.step(self.memory.take(owner), items, types)
        logits, type_logits = checked_steps(self.decoder, answers, (len(items),))
        if not repeats and step:
            logits = logits.scatter(1, items[:, :step], -torch.inf)
        log_chances = logits.log_softmax(-1)
        if bool(log_chances[:, 0].isnan().any()) or not bool(type_logits.isfinite().all()):  # one NaN: all of the row
            raise nonsense(self.decoder, "logits that are NaN or infinite", "finite ones but for the unknown item")
        return log_chances.view(n_users, n_paths, -1), type_logits.argmax(-1).view(n_users, n_paths)

    def go(self, step: int, from_BR: Tensor, items_BR: Tensor, types_BR: Tensor) -> None:
        """Continue the sequences at these places with these items and types."""
        wide = from_BR[..., None].expand(-1, -1, self.items_BRJ.shape[2])
        self.items_BRJ, self.types_BRJ = self.items_BRJ.gather(1, wide), self.types_BRJ.gather(1, wide)
        self.items_BRJ[..., step], self.types_BRJ[..., step] = items_BR, types_BR


def _check(decoder: SequenceHead, n_steps: int, n_paths: int, repeats: bool) -> None:
    n_items = len(decoder.item_vectors_VD) - 1
    if not 1 <= n_steps <= decoder.n_steps or n_paths < 1:
        raise bseq.UsageError(f"{n_steps} steps, {n_paths} sequences; this decoder has 1 to {decoder.n_steps} steps")
    if not repeats and n_steps > n_items:
        raise bseq.UsageError(
            f"{n_steps} steps without repeats, but there are {n_items} items; take fewer, or repeats=True"
        )
