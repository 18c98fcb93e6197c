"""Several encoders side by side, trained at once: an ensemble whose vectors a single index can hold.

Member m reads columns m * D ... (m + 1) * D of every table, D = ``vectors.dim``, has its own loss on them, and differs
from the others by its initial weights and its dropout. The interest is the members' states side by side, divided by
their number: an inner product with an item vector is then the mean of the members' scores (a deep ensemble,
Lakshminarayanan et al., NIPS 2017, section 2.4, averaged before the softmax).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bseq_plugin.schema.encoders import SequenceEncoder
from bseq_plugin.schema.losses import Negatives, SequenceLoss, Targets
from bseq_plugin.schema.packed import PackedEvents


class Ensemble(SequenceEncoder):
    """Encoders of one kind, each on its own columns of the events."""

    def __init__(self, parts: Sequence[SequenceEncoder]) -> None:
        first = parts[0]
        super().__init__(first.dim * len(parts), first.max_length, first.dropout, first.options)
        self.parts = torch.nn.ModuleList(parts)
        self.name = first.name  # type: ignore[misc]  # in errors it is the part that is meant
        self.predicts_masked = first.predicts_masked  # type: ignore[misc]

    def forward(self, events: PackedEvents) -> Tensor:
        """Return ``states_TD``, divided by the number of members."""
        return self._joined([part(own) for part, own in self._members(events)])

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD`` of ``rows_Q``."""
        return self._joined([part.states_at(own, rows_Q) for part, own in self._members(events)])

    def masked_states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD`` in the places of the hidden events ``rows_Q``."""
        return self._joined([part.masked_states_at(own, rows_Q) for part, own in self._members(events)])

    def attention(self, events: PackedEvents) -> Tensor | None:
        """Return the mean of the members' attention."""
        shares = [part.attention(own) for part, own in self._members(events)]
        known = [share for share in shares if share is not None]
        return torch.stack(known).mean(0) if len(known) == len(shares) else None

    def machine_choices(self, dim: int) -> dict[str, Any]:
        """Return the choices of a member, with ``dim`` its width."""
        choices: dict[str, Any] = self.parts[0].machine_choices(dim)  # type: ignore[operator]
        return choices

    def settle(self, choices: Mapping[str, Any]) -> None:
        """Take ``choices`` over in every member."""
        super().settle(choices)
        for part in self.parts:
            part.settle(choices)  # type: ignore[operator]  # a ModuleList forgets the type

    def _members(self, events: PackedEvents) -> list[tuple[SequenceEncoder, PackedEvents]]:
        columns = events.x_TD.chunk(len(self.parts), dim=1)
        return [
            (part, replace(events, x_TD=own.contiguous()))  # type: ignore[misc]  # a ModuleList forgets the type
            for part, own in zip(self.parts, columns, strict=True)
        ]

    def _joined(self, states: list[Tensor]) -> Tensor:
        # a plugin's part may give anything: what does not fit is told where the states are read
        return torch.cat(states, 1) / len(states)


def ensemble_loss(
    loss: SequenceLoss, n_members: int, states_QD: Tensor, targets: Targets, negatives: Negatives
) -> Tensor:
    """Return the mean of the members' losses, each of its own columns. ``states_QD`` are those of ``Ensemble``."""
    columns = zip(
        (states_QD * n_members).chunk(n_members, 1),
        targets.vectors_SD.chunk(n_members, 1),
        negatives.vectors_ND.chunk(n_members, 1),
        strict=True,
    )
    losses = [
        loss(
            state_Qd.contiguous(),
            replace(targets, vectors_SD=target_Sd.contiguous()),
            replace(negatives, vectors_ND=negative_Nd.contiguous()),
        )
        for state_Qd, target_Sd, negative_Nd in columns
    ]
    return torch.stack(losses).mean()
