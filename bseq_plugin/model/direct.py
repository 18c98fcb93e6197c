"""Interests of a plain, unsharded encoder, without TorchRec between the histories and its tables.

A ``KeyedJaggedTensor`` and an ``EmbeddingCollection`` are what sharding needs. Where the tables lie in this process
they only cost: several milliseconds a call, a good part of what one user takes. The result is the same bit for bit.

Shape letters: B users, T events, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bseq_plugin.data.event_features import session_numbers
from bseq_plugin.events.events import EVENT_TYPE
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.model.anchored import AnchoredInterests
from bseq_plugin.model.encoder import ITEM_TABLE, SequenceInterestEncoder, read_interests
from bseq_plugin.model.interests import MultiInterests
from bseq_plugin.model.items import InterestHead
from bseq_plugin.model.leaves import StateReader
from bseq_plugin.schema.packed import PackedEvents


@dataclass(frozen=True)
class WideModules:
    """The dense modules of an encoder in float64; the tables stay as they are."""

    sequence_encoder: StateReader
    multi_interests: MultiInterests | AnchoredInterests | None
    interest_head: InterestHead

    @classmethod
    def of(cls, encoder: SequenceInterestEncoder) -> WideModules:
        """Copy the modules of ``encoder``."""
        multi = encoder.multi_interests
        return cls(
            copy.deepcopy(encoder.sequence_encoder).double().eval(),
            None if multi is None else copy.deepcopy(multi).double().eval(),
            copy.deepcopy(encoder.interest_head).double().eval(),
        )

    def interests(self, events: PackedEvents) -> Tensor:
        """Return ``[B * K, D]`` float64, as ``SequenceInterestEncoder.interests``."""
        events = replace(events, x_TD=events.x_TD.double())
        return read_interests(self.sequence_encoder, self.multi_interests, self.interest_head, events)


def direct_interests(encoder: SequenceInterestEncoder, histories: Sequences, wide: WideModules | None = None) -> Tensor:
    """Return ``[B, K * D]`` float32, the result of ``encoder(history_features(histories, ...))``.

    Args:
        encoder: unsharded and without item attributes, as an ``InterestModel`` has it.
        histories: at most ``max_length`` events each.
        wide: compute with these modules, in float64; the result is float64.

    Raises:
        ValueError: if the histories lack what an event feature needs.
    """
    events = packed_events(encoder, histories)
    interests_ND = encoder.interests(events) if wide is None else wide.interests(events)
    return interests_ND.reshape(histories.n_users, encoder.width)


def event_states(encoder: SequenceInterestEncoder, histories: Sequences) -> Tensor:
    """Return ``[T, S]``, the state of the sequence encoder after every event of the histories, in their order.

    Gradients flow to the encoder, so that a network on top of the states can train it further.

    Args:
        encoder: unsharded and without item attributes, as an ``InterestModel`` has it.
        histories: at most ``max_length`` events each (``Sequences.latest``).

    Raises:
        ValueError: if the histories lack what an event feature needs.
    """
    states_TS: Tensor = encoder.sequence_encoder(packed_events(encoder, histories), None, True)
    return states_TS


def event_attention(encoder: SequenceInterestEncoder, histories: Sequences) -> Tensor | None:
    """Return ``[T]``, the share of each event in its user's newest state (``SequenceEncoder.attention``).

    Return None if the encoder has no attention. Arguments and errors are those of ``event_states``.
    """
    weights_T: Tensor | None = encoder.sequence_encoder.part.attention(packed_events(encoder, histories))
    return weights_T


def packed_events(encoder: SequenceInterestEncoder, histories: Sequences) -> PackedEvents:
    """Return the events, ``x_TD`` summed in the order of the ``EventEmbedder``. Raises as ``direct_interests``."""
    tables = encoder.embedding_collection.embeddings
    inputs = encoder.event_embedder.inputs
    x_TD = F.embedding(_tensor(histories.items), tables[ITEM_TABLE].weight)
    rows = {name: _tensor(rows_T) for name, rows_T in inputs.rows(histories).items()}
    for name, rows_T in rows.items():
        x_TD = x_TD + F.embedding(rows_T, tables[name].weight)
    return PackedEvents(
        x_TD,
        _tensor(histories.offsets),
        None if histories.timestamps is None else _tensor(histories.timestamps),
        rows.get(EVENT_TYPE),
        _tensor(session_numbers(histories, inputs.session_gap_us)) if inputs.sessions else None,
    )


def _tensor(column: np.ndarray) -> Tensor:
    # columns read from Parquet may be read-only, which torch warns about
    return torch.from_numpy(column if column.flags.writeable else column.copy())
