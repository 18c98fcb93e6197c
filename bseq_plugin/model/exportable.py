"""The encoder as one graph for ``torch.export``: flat tensors in, interests out.

Shape letters: K keys of a history, T events, B users, I width of all interests of a user.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.data.batches import EVENT, SESSION_NUMBER, TIMESTAMP
from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import EVENT_TYPE
from bseq_plugin.model.encoder import ITEM_TABLE, SequenceInterestEncoder
from bseq_plugin.schema.options import names_in
from bseq_plugin.schema.packed import PackedEvents


class ExportableEncoder(nn.Module):
    """A ``SequenceInterestEncoder`` whose computation does not depend on what its tensors hold.

    It shares the weights of ``encoder``, and gives its interests, but for the last digits: every history takes
    ``encoder.max_length`` cells (attention: its square), so that it costs more for short ones. No operator of fbgemm is
    in it. ``torch.export.export(ExportableEncoder(encoder, keys), (values_KT, lengths_B), dynamic_shapes=...)`` takes T
    and B as dynamic.

    Args:
        encoder: unsharded, in evaluation mode, without item attributes, as an ``InterestModel`` has it.
        keys: of the rows of ``values_KT``, in their order: ``event``, each of ``events.features``, ``session_number``
            if the encoder reads sessions, and ``timestamp`` if there are times; more are ignored. They are our names,
            those of ``history_features(sequences, recipe).keys()``, whatever the encoder calls them in its batches (its
            argument ``keys``), and no ``item_keys``.

    Raises:
        UsageError: if the encoder is not such a one, or a key is missing.
    """

    def __init__(self, encoder: SequenceInterestEncoder, keys: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.keys = names_in(keys, "keys")
        self.features = encoder.event_embedder.inputs.features
        _check(encoder, self.keys)

    def forward(self, values_KT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return ``[B, I]`` float32.

        Args:
            values_KT: int64, a row for each of ``keys``; the columns are events, user by user, oldest first.
            lengths_B: int64, events of each user, at most ``encoder.max_length``: a longer one ends in a RuntimeError.
        """
        longest = self.encoder.event_embedder.max_length
        # one more user with one event, so that no batch is empty: a graph for T = 0 would be another one
        lengths_B = F.pad(lengths_B, (0, 1), value=1)
        fits = lengths_B.max().item() <= longest
        torch._check(fits, lambda: f"a history has more than {longest} events")  # type: ignore[no-untyped-call]
        rows = dict(zip(self.keys, F.pad(values_KT, (0, 1)).unbind(0), strict=True))
        events = PackedEvents(
            self._embedded(rows),
            F.pad(lengths_B.cumsum(0), (1, 0)),
            rows.get(TIMESTAMP),
            rows.get(EVENT_TYPE),
            rows.get(SESSION_NUMBER),
            longest,
        )
        return self.encoder.interests(events).reshape(-1, self.encoder.width)[:-1]

    def _embedded(self, rows: dict[str, Tensor]) -> Tensor:
        tables = self.encoder.embedding_collection.embeddings
        x_TD = F.embedding(rows[EVENT], tables[ITEM_TABLE].weight)
        for name in self.features:
            x_TD = x_TD + F.embedding(rows[name], tables[name].weight)
        return x_TD


def _check(encoder: SequenceInterestEncoder, keys: tuple[str, ...]) -> None:
    if encoder.training:
        raise UsageError("an encoder is exported in evaluation mode: call encoder.eval() first")
    if encoder.item_tower.attribute_table is not None:
        raise UsageError("the encoder still sums attributes into its item rows: export that of an InterestModel")
    wanted = [EVENT, *encoder.event_embedder.inputs.features]
    if encoder.event_embedder.inputs.sessions:
        wanted.append(SESSION_NUMBER)
    missing = sorted(set(wanted) - set(keys))
    if missing:
        raise UsageError(f"the encoder reads {missing}, which are not among the keys {list(keys)}")
