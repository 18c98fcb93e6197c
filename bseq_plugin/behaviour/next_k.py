"""The next k events as a sequence: a decoder over an encoder's states, an item and an event type a step.

It is trained on the states of a frozen encoder, with the true steps before as inputs (teacher forcing). Before training
it scores items at every step exactly as the encoder does: what it learns is what the steps before add, and how often
people come back to what they had.

Shape letters: B users, M states in memory, S width of a state, D width of item vectors, H width of the decoder,
J steps, V items, E event types with the unknown one, R beams or samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.encoders.identity import ZeroLinear
from bseq_plugin.errors import UsageError


@dataclass(frozen=True)
class Memory:
    """What a decoder reads of B users.

    Attributes:
        states_BMS: float, the latest states of the encoder, oldest first, padded at the right.
        items_BM, types_BM: int64, rows of the items and types of these events; what stands in the padding is not read.
        padded_BM: bool, True where there is no state.
        interest_BD: float, the left-hand side of the encoder's score.
    """

    states_BMS: Tensor
    items_BM: Tensor
    types_BM: Tensor
    padded_BM: Tensor
    interest_BD: Tensor

    def take(self, users: Tensor) -> Memory:
        """Of the users at these places, repeats allowed."""
        return Memory(
            self.states_BMS[users], self.items_BM[users], self.types_BM[users], self.padded_BM[users],
            self.interest_BD[users],
        )  # fmt: skip

    def counts(self, n_rows: int) -> Tensor:
        """float32 [B, n_rows], how often each item is among these events."""
        there_BM = (~self.padded_BM).float()
        return torch.zeros(len(there_BM), n_rows).scatter_add(1, self.items_BM * ~self.padded_BM, there_BM)


class NextKDecoder(nn.Module):
    """One pre-norm Transformer decoder layer (Vaswani et al., NeurIPS 2017).

    An item's logit is ``(interest + W h) . v + (w . h) ln(1 + n)``, h the layer's answer and n how often the item is
    among the events in memory: the second part is what coming back adds (in the spirit of RepeatNet, Ren et al., AAAI
    2019). W and w begin at zero.

    Args:
        item_vectors_VD: float [V + 1, D], frozen; row 0 is the unknown item's, and begins a sequence.
        n_event_types: E - 1; 0 for a log without types.
    """

    item_vectors_VD: Tensor

    def __init__(
        self,
        state_dim: int,
        item_vectors_VD: Tensor,
        n_event_types: int,
        n_steps: int,
        dim: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if n_steps < 1:
            raise UsageError(f"n_steps = {n_steps}; give 1 or more")
        self.n_steps = n_steps
        self.register_buffer("item_vectors_VD", item_vectors_VD.detach().clone(), persistent=False)
        width = item_vectors_VD.shape[1]
        self.memory_in, self.interest_in = nn.Linear(state_dim, dim), nn.Linear(width, dim)
        self.item_in = nn.Linear(width, dim)
        self.type_in = nn.Embedding(n_event_types + 1, dim)
        self.place_JH = nn.Parameter(0.02 * torch.randn(n_steps, dim))
        self.layer = nn.TransformerDecoderLayer(dim, 2, 2 * dim, dropout, "gelu", batch_first=True, norm_first=True)
        self.item_out, self.again_out = ZeroLinear(dim, width), ZeroLinear(dim, 1)
        self.type_out = nn.Linear(dim, n_event_types + 1)

    def forward(self, memory: Memory, items_BJ: Tensor, types_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """``(item logits [B, J, V + 1], type logits [B, J, E])`` of each step, from the steps before it.

        Args:
            items_BJ, types_BJ: int64, the steps that were taken, J of them at most ``n_steps``; the last is not read.
        """
        return self.answers(memory, self.hidden(memory, items_BJ, types_BJ))

    def hidden(self, memory: Memory, items_BJ: Tensor, types_BJ: Tensor) -> Tensor:
        """``[B, J, H]``. Raises UsageError for more steps than the decoder has."""
        n_steps = items_BJ.shape[1]
        if n_steps > self.n_steps:
            raise UsageError(f"{n_steps} steps are given, this decoder has {self.n_steps}; give it no more")
        before = F.pad(items_BJ[:, :-1], (1, 0)), F.pad(types_BJ[:, :-1], (1, 0))
        x_BJH = self._events(*before) + self.place_JH[:n_steps] + self.interest_in(memory.interest_BD)[:, None]
        memory_BMH = self.memory_in(memory.states_BMS) + self._events(memory.items_BM, memory.types_BM)
        later_JJ = torch.ones(n_steps, n_steps, dtype=torch.bool, device=x_BJH.device).triu(1)
        h_BJH: Tensor = self.layer(x_BJH, memory_BMH, tgt_mask=later_JJ, memory_key_padding_mask=memory.padded_BM)
        return h_BJH

    def answers(self, memory: Memory, h_BJH: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` gives."""
        queries_BJD = memory.interest_BD[:, None] + self.item_out(h_BJH)
        known_BV = memory.counts(len(self.item_vectors_VD)).log1p()
        logits = queries_BJD @ self.item_vectors_VD.T + self.again_out(h_BJH) * known_BV[:, None]
        logits[..., 0] = -torch.inf  # the unknown item is no answer
        return logits, self.type_out(h_BJH)

    def _events(self, items: Tensor, types: Tensor) -> Tensor:
        found: Tensor = self.item_in(self.item_vectors_VD[items]) + self.type_in(types)
        return found

    def loss(self, memory: Memory, items_BJ: Tensor, types_BJ: Tensor) -> Tensor:
        """Mean cross-entropy of items and of types, added; a step of item 0 (there was none) does not count."""
        logits, type_logits = self(memory, items_BJ, types_BJ)
        there_BJ = items_BJ > 0
        if not bool(there_BJ.any()):
            nothing: Tensor = 0.0 * type_logits.sum()
            return nothing
        of_items = F.cross_entropy(logits[there_BJ], items_BJ[there_BJ])
        total: Tensor = of_items + F.cross_entropy(type_logits[there_BJ], types_BJ[there_BJ])
        return total


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
def beam_search(decoder: NextKDecoder, memory: Memory, n_steps: int, n_beams: int, repeats: bool = False) -> Paths:
    """The likeliest sequences that a search of ``n_beams`` finds. ``repeats``: an item may come again.

    Raises UsageError for a number of steps that the decoder does not have, or more than there are items.
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
    decoder: NextKDecoder, memory: Memory, n_steps: int, n_samples: int, repeats: bool = False,
    temperature: float = 1.0, generator: torch.Generator | None = None,
) -> Paths:  # fmt: skip
    """``n_samples`` sequences drawn step by step, the likeliest first. Raises as ``beam_search``."""
    _check(decoder, n_steps, n_samples, repeats)
    if not temperature > 0:
        raise UsageError(f"temperature = {temperature}; give a positive number")
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
        raise UsageError("these sequences were searched, not sampled; take those of sample_paths")
    return paths.expected_BV


class _Steps:
    """Sequences as they grow."""

    def __init__(self, decoder: NextKDecoder, memory: Memory, n_users: int, n_steps: int) -> None:
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
        memory = self.memory.take(owner)
        hidden = self.decoder.hidden(memory, items, types)[:, -1:]
        logits, type_logits = (x[:, 0] for x in self.decoder.answers(memory, hidden))
        if not repeats and step:
            logits = logits.scatter(1, items[:, :step], -torch.inf)
        return logits.log_softmax(-1).view(n_users, n_paths, -1), type_logits.argmax(-1).view(n_users, n_paths)

    def go(self, step: int, from_BR: Tensor, items_BR: Tensor, types_BR: Tensor) -> None:
        """Continue the sequences at these places with these items and types."""
        wide = from_BR[..., None].expand(-1, -1, self.items_BRJ.shape[2])
        self.items_BRJ, self.types_BRJ = self.items_BRJ.gather(1, wide), self.types_BRJ.gather(1, wide)
        self.items_BRJ[..., step], self.types_BRJ[..., step] = items_BR, types_BR


def _check(decoder: NextKDecoder, n_steps: int, n_paths: int, repeats: bool) -> None:
    n_items = len(decoder.item_vectors_VD) - 1
    if not 1 <= n_steps <= decoder.n_steps or n_paths < 1:
        raise UsageError(f"{n_steps} steps, {n_paths} sequences; this decoder has 1 to {decoder.n_steps} steps")
    if not repeats and n_steps > n_items:
        raise UsageError(f"{n_steps} steps without repeats, but there are {n_items} items; take fewer, or repeats=True")
