"""What every sequence head has to do: subclass ``SequenceHeadTests``, set ``head``, run pytest."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import bseq_plugin as bseq
from bseq_behaviour.contract.heads import DecoderMemory, SequenceHead
from bseq_behaviour.testing.heads import AnyHeadTests

# B users, M states in memory, S width of a state, D width of item vectors, J steps, V items, E event types
B, M, S, D, V, N_TYPES, J = 4, 5, 6, 8, 7, 2, 3

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)  # logits of some tens, in float32


class SequenceHeadTests(AnyHeadTests):
    """Conformance of a ``SequenceHead``.

    Attributes:
        n_batches, learning_rate: how long, and how fast, it is taught a cycle of eight items.
    """

    kind = SequenceHead
    head: ClassVar[type[SequenceHead]]
    n_batches: ClassVar[int] = 200
    learning_rate: ClassVar[float] = 3e-3

    def make(self, seed: int = 0) -> SequenceHead:
        """With weights that have been moved, so that outputs that begin at zero are seen; items are the same."""
        vectors_VD = torch.randn(V + 1, D, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(seed)
        head = self.head(S, vectors_VD, N_TYPES, J, self.parsed)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return head

    def memory(self) -> DecoderMemory:
        """User 1 has two events, user 2 one, the others five."""
        generator = torch.Generator().manual_seed(1)
        padded = torch.arange(M) >= torch.tensor([M, 2, 1, M])[:, None]
        items = torch.randint(0, V + 1, (B, M), generator=generator)
        types = torch.randint(0, N_TYPES + 1, (B, M), generator=generator)
        states, interests = torch.randn(B, M, S, generator=generator), torch.randn(B, D, generator=generator)
        return DecoderMemory(states, items, types, padded, interests)

    def steps(self) -> tuple[Tensor, Tensor]:
        """(items, types) [B, J] that were taken."""
        generator = torch.Generator().manual_seed(2)
        items = torch.randint(1, V + 1, (B, J), generator=generator)
        return items, torch.randint(0, N_TYPES + 1, (B, J), generator=generator)

    def taught(self, head: SequenceHead) -> Tensor:
        """Its loss of the steps that were taken."""
        return head.loss(self.memory(), *self.steps())

    def answers(self, head: SequenceHead) -> Tensor:
        """Item and type logits, one after the other."""
        logits, type_logits = head(self.memory(), *self.steps())
        return torch.cat([logits, type_logits], dim=2)

    def test_shape_and_no_users(self) -> None:
        """Finite logits of all types and of all items but the unknown one, which is no answer."""
        head = self.make().eval()
        for n_users in (0, 1, B):
            for n_steps in (1, J):
                users = torch.arange(n_users)
                items, types = (x[:n_users, :n_steps] for x in self.steps())
                logits, type_logits = head(self.memory().take(users), items, types)
                assert logits.shape == (n_users, n_steps, V + 1)
                assert type_logits.shape == (n_users, n_steps, N_TYPES + 1)
                assert (logits[..., 0] == -torch.inf).all()
                assert torch.isfinite(logits[..., 1:]).all()
                assert torch.isfinite(type_logits).all()

    def test_more_steps_than_it_has_are_refused(self) -> None:
        """In words, and at once."""
        items, types = (torch.cat([x, x], dim=1) for x in self.steps())
        with pytest.raises(bseq.UsageError, match=rf"{2 * J} steps are given, this decoder has {J}"):
            self.make()(self.memory(), items, types)

    def test_a_later_step_changes_no_earlier_answer(self) -> None:
        """Of what was taken, a step reads the steps before it only: teacher forcing must not tell the answer."""
        head, memory, (items, types) = self.make().eval(), self.memory(), self.steps()
        before = self.answers(head)
        for step in range(J):
            changed, of_types = items.clone(), types.clone()
            changed[:, step:] = changed[:, step:] % V + 1
            of_types[:, step:] = (of_types[:, step:] + 1) % (N_TYPES + 1)
            after = torch.cat(head(memory, changed, of_types), dim=2)
            close(after[:, : step + 1], before[:, : step + 1])

    def test_steps_one_after_the_other_are_those_of_all_at_once(self) -> None:
        """``step`` and ``forward`` agree, whatever stands in the last, unread place."""
        head, memory, (items, types) = self.make().eval(), self.memory(), self.steps()
        whole = self.answers(head)
        for step in range(J):
            part_items, part_types = items[:, : step + 1].clone(), types[:, : step + 1].clone()
            part_items[:, -1], part_types[:, -1] = 0, 0
            alone = torch.cat(head.step(memory, part_items, part_types), dim=1)
            close(alone, whole[:, step])

    def test_users_do_not_look_at_each_other(self) -> None:
        """A user alone gets what they get among others."""
        head, memory, (items, types) = self.make().eval(), self.memory(), self.steps()
        alone = [
            torch.cat(head(memory.take(torch.tensor([u])), items[u : u + 1], types[u : u + 1]), 2) for u in range(B)
        ]
        close(self.answers(head), torch.cat(alone))

    def test_padding_is_not_read(self) -> None:
        """Neither states nor items and types of it."""
        head, memory = self.make().eval(), self.memory()
        noisy = replace(
            memory,
            states_BMS=memory.states_BMS + 9 * memory.padded_BM[..., None],
            items_BM=torch.where(memory.padded_BM, 2, memory.items_BM),
            types_BM=torch.where(memory.padded_BM, 1, memory.types_BM),
        )
        close(torch.cat(head(noisy, *self.steps()), 2), self.answers(head))

    def test_a_cycle_is_learned(self) -> None:
        """After item i comes i + 1, of the other type; the interest knows only where the cycle stands."""
        torch.manual_seed(0)
        n_items, n_steps = 8, 4
        vectors = torch.cat([torch.zeros(1, n_items), torch.eye(n_items)])
        head = self.head(n_items, vectors, 2, n_steps, self.parsed)
        optimizer = torch.optim.Adam(head.parameters(), lr=self.learning_rate)

        def batch(last: Tensor) -> tuple[DecoderMemory, Tensor, Tensor]:
            nothing = torch.zeros(len(last), 1, dtype=torch.int64)
            interests = torch.eye(n_items)[(last + 1) % n_items]
            memory = DecoderMemory(torch.eye(n_items)[last][:, None], nothing, nothing, nothing.bool(), interests)
            items = (last[:, None] + 1 + torch.arange(n_steps)) % n_items + 1
            return memory, items, items % 2 + 1

        for _ in range(self.n_batches):
            optimizer.zero_grad()
            loss: Any = head.loss(*batch(torch.randint(0, n_items, (64,))))
            loss.backward()
            optimizer.step()
        memory, items, types = batch(torch.arange(n_items))
        logits, type_logits = head.eval()(memory, items, types)
        assert (logits.argmax(-1) == items).float().mean() > 0.9
        assert (type_logits.argmax(-1) == types).float().mean() > 0.9
