"""What every sequence encoder must do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from bseq_plugin.schema.encoders import SequenceEncoder
from bseq_plugin.schema.packed import PackedEvents

DIM, MAX_LENGTH = 8, 12


class EncoderTests:
    """Subclass it as ``class TestMine(EncoderTests): encoder = MyEncoder``.

    Set ``options`` to a dict if the encoder's options have no defaults.
    """

    encoder: ClassVar[type[SequenceEncoder]]
    options: ClassVar[dict[str, Any]] = {}
    lengths: ClassVar[Sequence[int]] = (3, 0, 1, 12, 5)

    def build(self, dropout: float = 0.0) -> SequenceEncoder:
        """An encoder with fixed weights, in evaluation mode."""
        torch.manual_seed(0)
        return self.encoder(DIM, MAX_LENGTH, dropout, self.encoder.checked_options(self.options)).eval()

    @staticmethod
    def events(lengths: Sequence[int], seed: int = 1) -> PackedEvents:
        """Random events of users with these lengths; sessions of three events, an hour between all events."""
        generator = torch.Generator().manual_seed(seed)
        n_events = sum(lengths)
        offsets_B1 = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int64)
        times_T = torch.arange(n_events) * 3_600_000_000 + 1_500_000_000_000_000
        types_T = torch.randint(0, 3, (n_events,), generator=generator)
        events = PackedEvents(torch.randn(n_events, DIM, generator=generator), offsets_B1, times_T, types_T)
        return replace(events, sessions_T=events.position_T // 3)

    def test_one_finite_state_an_event(self) -> None:
        """Shape, dtype, finiteness; users without events are allowed anywhere."""
        events = self.events(self.lengths)
        states_TD = self.build()(events)
        assert states_TD.shape == events.x_TD.shape
        assert states_TD.dtype == torch.float32
        assert torch.isfinite(states_TD).all()

    @pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (1,)])
    def test_empty_and_tiny_batches(self, lengths: Sequence[int]) -> None:
        """No users, no events, one event."""
        events, encoder = self.events(lengths), self.build()
        states_TD = encoder(events)
        assert states_TD.shape == (sum(lengths), DIM)
        assert torch.isfinite(states_TD).all()
        assert encoder.states_at(events, torch.empty(0, dtype=torch.int64)).shape == (0, DIM)

    def test_future_events_change_nothing(self) -> None:
        """A state depends on its own user's events up to its own only, for histories that end at the same place."""
        events = self.events(self.lengths)
        encoder = self.build()
        for place in range(12):
            x_TD = events.x_TD.clone()
            later = (events.user_T == 3) & (events.position_T > place)
            x_TD[later] = torch.randn(int(later.sum()), DIM)
            changed = encoder(events.with_x(x_TD))
            torch.testing.assert_close(changed[~later], encoder(events)[~later], rtol=1e-4, atol=1e-5)

    def test_future_times_and_sessions_change_nothing(self) -> None:
        """Nor when later events come, or in which session."""
        events = self.events(self.lengths)
        encoder = self.build()
        assert events.timestamps_T is not None
        assert events.sessions_T is not None
        for place in range(12):
            later = (events.user_T == 3) & (events.position_T > place)
            times_T = events.timestamps_T + later * 86_400_000_000
            sessions_T = events.sessions_T + later * 5
            changed = encoder(replace(events, timestamps_T=times_T, sessions_T=sessions_T))
            torch.testing.assert_close(changed[~later], encoder(events)[~later], rtol=1e-4, atol=1e-5)

    def test_users_do_not_mix(self) -> None:
        """Encoding users together or one by one gives the same states."""
        events = self.events(self.lengths)
        encoder = self.build()
        together = encoder(events)
        for user, length in enumerate(self.lengths):
            rows = slice(int(events.offsets_B1[user]), int(events.offsets_B1[user + 1]))
            assert events.timestamps_T is not None
            assert events.event_types_T is not None
            assert events.sessions_T is not None
            alone = PackedEvents(
                events.x_TD[rows],
                torch.tensor([0, length]),
                events.timestamps_T[rows],
                events.event_types_T[rows],
                events.sessions_T[rows],
            )
            torch.testing.assert_close(encoder(alone), together[rows], rtol=1e-4, atol=1e-5)

    def test_some_states_are_those_of_all(self) -> None:
        """``states_at`` is a cheaper way to a part of ``forward``, not another encoder."""
        events = self.events(self.lengths)
        encoder = self.build()
        for rows_Q in (torch.tensor([2, 3, 15, 20]), torch.tensor([0, 5, 20]), torch.tensor([], dtype=torch.int64)):
            torch.testing.assert_close(encoder.states_at(events, rows_Q), encoder(events)[rows_Q], rtol=1e-4, atol=1e-5)

    def test_gradients_reach_events_and_parameters(self) -> None:
        """Every parameter and every event gets a finite gradient."""
        events = self.events(self.lengths)
        x_TD = events.x_TD.clone().requires_grad_()
        encoder = self.build(dropout=0.1).train()
        encoder(events.with_x(x_TD)).square().sum().backward()
        assert x_TD.grad is not None
        assert torch.isfinite(x_TD.grad).all()
        assert (x_TD.grad.abs().sum(1) > 0).all()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, f"{name} gets no gradient"
            assert torch.isfinite(parameter.grad).all(), f"{name} gets a gradient that is no number"

    def test_can_be_made_on_the_meta_device(self) -> None:
        """Every module with parameters of its own can allocate and reset them, as DistributedModelParallel asks."""
        with torch.device("meta"):
            encoder = self.encoder(DIM, MAX_LENGTH, 0.0, self.encoder.checked_options(self.options))
        encoder.to_empty(device="cpu")
        for name, module in encoder.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                reset = getattr(module, "reset_parameters", None)
                assert callable(reset), f"{name} has parameters, but no reset_parameters()"
                reset()
        assert torch.isfinite(encoder.eval()(self.events(self.lengths))).all()
