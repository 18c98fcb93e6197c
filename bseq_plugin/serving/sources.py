"""Candidate sources in a store: fitted when a version is published, asked when it is served.

Shape letters: B users, K interests, D width, N candidates, Q queries. Rows of hits are index rows (vocabulary row - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bseq_plugin.errors import BseqError, PluginError, StoreError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.schema.indexes import VectorIndex
from bseq_plugin.schema.sources import CandidateSource, SourceCandidates, SourceInputs
from bseq_plugin.serving.hits import ExcludedPairs

SOURCES_FILE = "sources.safetensors"
MAX_EXTRA = 512  # of seen and filtered items that a source is asked for in excess
# What a source says of items that interest ranks high counts too, also where it has k better ones of its own: asked for
# ten alone, a blend of the ten best loses a third to a half of what the source is worth (docs/retrieval.md).
LEAST_DEPTH = 100


@dataclass(frozen=True)
class SourceScores:
    """What one source gave and may be shown: ascending ``user * V + index row``, and a score 0..1 of each."""

    keys_N: np.ndarray
    scores_N: np.ndarray

    def at(self, keys_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores float32 [M], 0 where the source has nothing; bool [M], whether it has)."""
        if len(self.keys_N) == 0:
            return np.zeros(len(keys_M), np.float32), np.zeros(len(keys_M), bool)
        places = np.searchsorted(self.keys_N, keys_M).clip(max=len(self.keys_N) - 1)
        there = self.keys_N[places] == keys_M
        return np.where(there, self.scores_N[places], np.float32(0)), there


def fitted_sources(names: Iterable[str], histories: Sequences, n_items: int) -> dict[str, CandidateSource]:
    """Return sources by name, fitted on these histories.

    Raises UsageError for an unknown name, PluginError that names a source that fails.
    """
    sources = {}
    for name in names:
        part = plugin_manager().part("candidate source", name)
        try:
            state = part.fit(histories, n_items)
            if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
                raise TypeError("fit has to give a dict of tensors")  # told with the source's name below
            sources[name] = part({key: value.contiguous() for key, value in state.items()})
        except BseqError:
            raise
        except Exception as error:
            raise PluginError(f"candidate source {name!r} failed to fit: {type(error).__name__}: {error}") from error
    return sources


def save_sources(sources: Mapping[str, CandidateSource], folder: Path) -> None:
    """Write one safetensors file, its tensors named SOURCE/KEY."""
    state = {f"{name}/{key}": value for name, source in sources.items() for key, value in source.state.items()}
    save_file(state, folder / SOURCES_FILE)


def load_sources(names: Iterable[str], path: Path) -> dict[str, CandidateSource]:
    """Read what ``save_sources`` wrote. Raises StoreError if it does not fit the sources that are installed."""
    state, sources = load_file(path), {}
    for name in names:
        part = plugin_manager().part("candidate source", name)
        own = {key.partition("/")[2]: value for key, value in state.items() if key.partition("/")[0] == name}
        try:
            sources[name] = part(own)
        except Exception as error:
            raise StoreError(
                f"candidate source {name!r} can't read what it was published with ({type(error).__name__}: {error}); "
                "is another version of its plugin installed? Publish again"
            ) from error
    return sources


def ask_sources(
    sources: Mapping[str, CandidateSource],
    inputs: SourceInputs,
    k: int,
    excluded: ExcludedPairs,
    allowed_V: np.ndarray | None,
) -> dict[str, SourceScores]:
    """Return the best ``max(k, LEAST_DEPTH)`` of each source that may be shown."""
    k = max(k, LEAST_DEPTH)
    depth = min(k + min(int(excluded.counts_B.max(initial=0)), MAX_EXTRA), excluded.n_items)
    if allowed_V is not None:
        depth = min(depth + MAX_EXTRA, excluded.n_items)
    return {name: _shown(_asked(source, inputs, depth), excluded, allowed_V, k) for name, source in sources.items()}


def searcher(index: VectorIndex, n_items: int) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """Return ``SourceInputs.search`` of an index: in vocabulary rows, and as deep as the index goes."""

    def search(queries_QD: Tensor, m: int) -> tuple[Tensor, Tensor]:
        limit = index.capabilities.max_k or n_items
        scores_Qm, rows_Qm = index.search(queries_QD, min(m, n_items, limit))
        missing = m - rows_Qm.shape[1]
        rows_Qm = torch.where(rows_Qm >= 0, rows_Qm + 1, rows_Qm)
        pad = torch.nn.functional.pad
        return pad(scores_Qm, (0, missing), value=-torch.inf), pad(rows_Qm, (0, missing), value=-1)

    return search


def _asked(source: CandidateSource, inputs: SourceInputs, k: int) -> SourceCandidates:
    """Return a source's answer, checked: it may be a plugin's. Raises PluginError that names the source."""
    try:
        answer = source.find(inputs, k)
    except BseqError:
        raise
    except Exception as error:
        raise PluginError(f"candidate source {source.name!r} failed: {type(error).__name__}: {error}") from error
    problem = _problem(answer, inputs, k)
    if problem:
        raise PluginError(f"candidate source {source.name!r} gave {problem}: repair the plugin it comes from")
    return answer


def _problem(answer: object, inputs: SourceInputs, k: int) -> str | None:
    if not isinstance(answer, SourceCandidates):
        return f"{type(answer).__name__}, not SourceCandidates"
    columns = (answer.users_N, answer.rows_N, answer.scores_N)
    kinds = [(tuple(column.shape), column.dtype) for column in columns]
    n = len(answer.users_N)
    if kinds != [((n,), torch.int64), ((n,), torch.int64), ((n,), torch.float32)]:
        return f"columns {kinds}; wanted int64, int64 and float32 of one length"
    if not n:
        return None
    n_users, n_rows = inputs.histories.n_users, len(inputs.item_vectors_VD)
    if not (int(answer.users_N.min()) >= 0 and int(answer.users_N.max()) < n_users):
        return f"users {int(answer.users_N.min())}..{int(answer.users_N.max())} of {n_users}"
    if not (int(answer.rows_N.min()) >= 1 and int(answer.rows_N.max()) < n_rows):
        return f"items in rows {int(answer.rows_N.min())}..{int(answer.rows_N.max())}; wanted 1..{n_rows - 1}"
    if not bool(((answer.scores_N >= 0) & (answer.scores_N <= 1)).all()):
        return "a score outside 0..1"
    if len(torch.unique(answer.users_N * n_rows + answer.rows_N)) != n:
        return "an item twice for one user"
    most = int(torch.bincount(answer.users_N).max())
    return f"{most} candidates for one user, asked for {k}" if most > k else None


def _shown(answer: SourceCandidates, excluded: ExcludedPairs, allowed_V: np.ndarray | None, k: int) -> SourceScores:
    """Return what may be shown of a source's answer, at most k a user."""
    users, rows, scores = answer.users_N.numpy(), answer.rows_N.numpy() - 1, answer.scores_N.numpy()
    kept = ~excluded.contains(users, rows)
    if allowed_V is not None:
        kept &= allowed_V[rows]
    best_first = np.flatnonzero(kept)[np.lexsort((rows[kept], -scores[kept], users[kept]))]
    sorted_users = users[best_first]
    best_first = best_first[np.arange(len(best_first)) - np.searchsorted(sorted_users, sorted_users) < k]
    keys = users[best_first] * excluded.n_items + rows[best_first]
    ascending = np.argsort(keys)
    return SourceScores(keys[ascending], scores[best_first][ascending])
