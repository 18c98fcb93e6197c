"""Items placed among similar items, once training is over: training itself learns from ids alone.

The row of an item says what its users like, as far as its events tell. Before them the best guess is the rows of the
items whose vectors (of item encoders) are near: the mean of these rows, weighted by nearness (Nadaraya, 1964; Watson,
1964). A row with n events and the guess become one as an estimate and its prior do in empirical Bayes (Efron and
Morris, "Data Analysis Using Stein's Estimator and its Generalizations", JASA 1975): ``(n * row + m * guess) / (n +
m)``. Items with many events keep their row, an item without any has the guess.

Where people have the same item again and again (groceries), an item has to be told from its neighbours in the histories
of those who have it: the row says which item it is, and not only what it is like. A mean with the guess blurs that, and
a new item that is nothing but the guess can't be found by those who took it yesterday. With ``own_direction`` rows
stay whole, ``row + m / (n + m) * guess``, and a new item has a random direction of its own beside the guess; in many
dimensions random directions are nearly orthogonal.

Shape letters: V catalogue items, N items asked about, G distinct keys, E width of the encoders' vectors, K of the keys,
D of the item table, k neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.data.items import ItemVectors
from bseq_plugin.errors import RunError
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.schema.indexes import VectorIndex

KEY_WIDTH = 384  # leading directions of the whitened vectors that are kept
N_NEIGHBOURS = 20
TEMPERATURE = 0.05  # of cosines: what is nearer by so much weighs e times as much
ROWS = 1 << 12  # items placed at a time
EXACT_PAIRS = 1e10  # of keys compared one by one; beyond, FAISS looks at some of the lists
LISTS = 32

Blocks = Iterable[tuple[int, Tensor]]


class NeighbourItems(nn.Module):
    """The part of a model that item encoders fill: buffers that go with it, and that training does not read.

    Args:
        width: E.
        vectors: of all items, for a new model; None for one whose state is read.
    """

    identity: Tensor  # uint8 [32]: sha256 of the encoders
    centre_E: Tensor  # mean of the vectors
    axes_EE: Tensor  # and their whitening axes
    keys_VK: Tensor | None  # float16, of the items in the table; only in exported models

    def __init__(self, width: int, vectors: ItemVectors | None = None) -> None:
        super().__init__()
        identity = bytes(32) if vectors is None else bytes.fromhex(vectors.identity)
        self.register_buffer("identity", torch.tensor(list(identity), dtype=torch.uint8))
        centre_E, axes_EE = torch.zeros(width), torch.zeros(width, width)
        if vectors is not None:
            centre_E, axes_EE = whitening(vectors.vectors_VE)
        self.register_buffer("centre_E", centre_E)
        self.register_buffer("axes_EE", axes_EE)
        self.register_buffer("keys_VK", None)

    @property
    def vectors_identity(self) -> str:
        """The ``ItemVectors.identity`` of the vectors that the model was made with."""
        return bytes(self.identity.tolist()).hex()

    def keys_of(self, vectors_NE: Tensor) -> Tensor:
        """Return float16 [N, K], of length 1: two items are as near as the inner product says; zeros stay zeros."""
        axes_EK = self.axes_EE[:, :KEY_WIDTH]
        parts = [
            (F.normalize((part_NE - self.centre_E) @ axes_EK, dim=1) * part_NE.any(1, keepdim=True)).half()
            for part_NE in torch.split(vectors_NE, 1 << 16)
        ]
        return torch.cat(parts)

    def rows_of(self, vectors_NE: Tensor, table_VD: Tensor, counts_V: np.ndarray) -> Tensor:
        """Return float32 [N, D], the guess for items that are not in the table; zeros for a vector of zeros.

        ``table_VD`` [V + 1, D] and ``counts_V`` int64 [V], events of each item, are those of the exported model; of
        another one RunError is raised.
        """
        if self.keys_VK is None:
            raise RunError("the model has no keys of its items, which only an exported one has; load it from its run")
        similar = SimilarItems(self.keys_VK, counts_V, blocks_of(table_VD), len(vectors_NE))
        return torch.cat([similar.guess(keys_NK)[0] for keys_NK in torch.split(self.keys_of(vectors_NE), ROWS)])


class SimilarItems:
    """The distinct keys of the items with events, and the sum of the rows of each; items of one key count one by one.

    Args:
        keys_VK: float16 [V + 1, K]; zeros for an item of which nothing is known.
        counts_V: int64 [V].
        blocks: (first row, rows [n, D]) of the item table.
        n_asked: items that will be asked about, which decides on how they are searched.
    """

    def __init__(self, keys_VK: Tensor, counts_V: np.ndarray, blocks: Blocks, n_asked: int) -> None:
        places_W = np.flatnonzero(keys_VK.any(1).numpy() & (np.concatenate([[0], counts_V]) > 0))
        distinct_GK, codes_W = _distinct(keys_VK.numpy()[places_W])
        codes_V = np.full(len(keys_VK), -1)
        codes_V[places_W] = codes_W
        self.codes_V = torch.from_numpy(codes_V)
        self.sizes_G = torch.from_numpy(np.bincount(codes_W, minlength=len(distinct_GK)).astype(np.float32))
        self.sums_GD = torch.empty(0)
        for first, rows_ND in blocks:
            if not len(self.sums_GD):
                self.sums_GD = torch.zeros(len(distinct_GK), rows_ND.shape[1])
            codes_N = self.codes_V[first : first + len(rows_ND)]
            self.sums_GD.index_add_(0, codes_N[codes_N >= 0], rows_ND[codes_N >= 0].float())
        self._nearest = _search(torch.from_numpy(distinct_GK).float(), n_asked)

    def guess(self, keys_NK: Tensor, own_ND: Tensor | None = None, first: int = 0) -> tuple[Tensor, Tensor]:
        """Return (float32 [N, D], bool [N]): the guess, and whether there is one; zeros where not.

        ``own_ND`` are the rows of the items asked about if they are in the table, from row ``first`` on: an item is no
        neighbour of its own.
        """
        asked_N = keys_NK.any(1)
        if not len(self.sizes_G):
            return torch.zeros(len(keys_NK), self.sums_GD.shape[1]), torch.zeros_like(asked_N)
        cosines_Nk, codes_Nk = self._nearest(keys_NK.float())
        sizes_Nk, sums_NkD = self.sizes_G[codes_Nk], self.sums_GD[codes_Nk]
        if own_ND is not None:
            own_Nk = (codes_Nk == self.codes_V[first : first + len(keys_NK), None]).float()
            sizes_Nk = sizes_Nk - own_Nk
            sums_NkD = sums_NkD - own_Nk[..., None] * own_ND[:, None]
        weights_Nk = ((cosines_Nk - 1) / TEMPERATURE).exp() * (sizes_Nk > 0) * asked_N[:, None]
        total_N = (weights_Nk * sizes_Nk).sum(1)
        guess_ND = torch.einsum("nk,nkd->nd", weights_Nk, sums_NkD) / total_N.clamp_min(1e-30)[:, None]
        return guess_ND, total_N > 0


def completed(
    keys_VK: Tensor, counts_V: np.ndarray, prior_events: float, blocks: Callable[[], Blocks], whole: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows [n, D]) of the item table with the guesses in it; ``blocks`` are asked for twice.

    Args:
        prior_events: m, how many events of an item the guess counts for.
        whole: the guess is added, and the row left as it is.
    """
    similar = SimilarItems(keys_VK, counts_V, blocks(), len(keys_VK))
    events_V = torch.from_numpy(np.concatenate([[0], counts_V])).float()
    for first, rows_ND in blocks():
        for start in range(0, len(rows_ND), ROWS):
            at = first + start
            own_ND = rows_ND[start : start + ROWS].float()
            guess_ND, has_guess_N = similar.guess(keys_VK[at : at + len(own_ND)], own_ND, at)
            n_N1 = events_V[at : at + len(own_ND), None]
            own_share_N1 = 1.0 if whole else n_N1 / (n_N1 + prior_events)
            mixed_ND = own_share_N1 * own_ND + prior_events / (n_N1 + prior_events) * guess_ND
            yield at, torch.where(has_guess_N[:, None], mixed_ND, own_ND)


def own_directions(ids: Iterable[object], table_VD: Tensor, counts_V: np.ndarray) -> Tensor:
    """Return float32 [N, D], a random direction of each id, always the same; as long as rows with events (mean)."""
    drawn = []
    for one in ids:
        seed = int.from_bytes(hashlib.sha256(str(one).encode("utf-8", "surrogatepass")).digest()[:8], "big")
        drawn.append(np.random.default_rng(seed).standard_normal(table_VD.shape[1], np.float32))
    known = np.flatnonzero(counts_V > 0) + 1
    parts = np.array_split(known, max(1, len(known) // ROWS))
    total = sum(float(table_VD[part].float().norm(dim=1).sum()) for part in parts if len(part))
    directions_ND = torch.from_numpy(np.array(drawn, np.float32).reshape(-1, table_VD.shape[1]))
    return F.normalize(directions_ND, dim=1) * (total / max(1, len(known)))


def directed(guess_ND: Tensor, ids: Iterable[object], table_VD: Tensor, counts_V: np.ndarray, length: float) -> Tensor:
    """Return ``[N, D]``, rows of new items: the guess plus ``length`` times an own direction; zeros without a guess."""
    if length == 0:
        return guess_ND
    return guess_ND + length * own_directions(ids, table_VD, counts_V) * guess_ND.any(1, keepdim=True)


def blocks_of(table_VD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield a table in memory as blocks."""
    for first in range(0, len(table_VD), 1 << 16):
        yield first, table_VD[first : first + (1 << 16)]


def _distinct(keys_WK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (distinct keys [G, K], the place among them of each key)."""
    if not len(keys_WK):
        return keys_WK, np.empty(0, np.int64)
    as_bytes = np.ascontiguousarray(keys_WK).view(np.dtype((np.void, keys_WK.itemsize * keys_WK.shape[1])))[:, 0]
    _, firsts, codes = np.unique(as_bytes, return_index=True, return_inverse=True)
    return keys_WK[firsts], codes


def _search(keys_GK: Tensor, n_asked: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function that gives (cosines [N, k], places [N, k]) of the nearest keys."""
    k = min(N_NEIGHBOURS, len(keys_GK))
    if len(keys_GK) * n_asked <= EXACT_PAIRS:
        return lambda asked_NK: torch.topk(asked_NK @ keys_GK.T, k, dim=1)
    part: type[VectorIndex] = plugin_manager().part("index", "faiss_cpu")
    index = part.build(keys_GK, part.checked_options({"factory": "ivf_flat", "nprobe": LISTS}))

    def search(asked_NK: Tensor) -> tuple[Tensor, Tensor]:
        cosines_Nk, places_Nk = index.search(asked_NK, k)
        # lists that hold fewer than k: what is missing weighs nothing
        return cosines_Nk.masked_fill(places_Nk < 0, -torch.inf), places_Nk.clamp_min(0)

    return search


SAMPLE = 100_000  # items that a mean and a covariance are taken of
LEAST = 0.1  # of the mean variance is added to that of each direction


def whitening(vectors_VE: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return (mean float32 [E], axes float32 [E, E]) of the vectors that are not zero.

    Sentence vectors share a large common part and lie in few directions (Su et al., "Whitening Sentence
    Representations", 2021). The directions of most variance come first; those of little are not blown up to 1: what
    they hold is mostly rounding.
    """
    known = np.flatnonzero(vectors_VE.any(1))
    sample = vectors_VE[known[:: max(1, len(known) // SAMPLE)]].astype(np.float64)
    centre_E = sample.mean(0)
    variances, axes_EE = np.linalg.eigh((sample - centre_E).T @ (sample - centre_E) / len(sample))
    scale_E = 1 / np.sqrt(variances.clip(0) + LEAST * variances.mean() + 1e-12)
    return torch.from_numpy(centre_E).float(), torch.from_numpy((axes_EE * scale_E)[:, ::-1].copy()).float()
