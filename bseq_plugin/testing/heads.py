"""What every head has to do: subclass ``HeadTests``, set ``head``, run pytest."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from bseq_plugin.schema.heads import BehaviourHead
from bseq_plugin.schema.options import parse_options

# N rows, D width, K tasks


class HeadTests:
    """Conformance of a ``BehaviourHead``.

    Attributes:
        head: the class.
        options: of the head, as in a setting.
    """

    head: ClassVar[type[BehaviourHead]]
    options: ClassVar[dict[str, Any]] = {}

    def make(self, dim: int = 6, n_tasks: int = 3) -> BehaviourHead:
        """A new head with known weights."""
        torch.manual_seed(0)
        return self.head(dim, n_tasks, parse_options(self.head.Options, self.options, "options"))

    def test_it_has_a_name(self) -> None:
        """The name by which it is asked for."""
        assert isinstance(self.head.name, str)
        assert self.head.name

    def test_shape_and_no_rows(self) -> None:
        """One finite logit a row and task."""
        head = self.make().eval()
        for n_rows in (0, 1, 7):
            logits_NK = head(torch.randn(n_rows, 6))
            assert logits_NK.shape == (n_rows, 3)
            assert torch.isfinite(logits_NK).all()

    def test_rows_do_not_look_at_each_other(self) -> None:
        """A row alone gets what it gets among others."""
        head, vectors_ND = self.make().eval(), torch.randn(9, 6)
        alone = torch.cat([head(vectors_ND[n : n + 1]) for n in range(9)])
        torch.testing.assert_close(head(vectors_ND), alone)

    def test_it_learns_tasks_that_disagree(self) -> None:
        """Task 0 asks for the sign of a column, task 1 for the opposite, task 2 for another column's."""
        head, vectors_ND = self.make(), torch.randn(512, 6)
        truth_NK = torch.stack([vectors_ND[:, 0] > 0, vectors_ND[:, 0] <= 0, vectors_ND[:, 1] > 0], dim=1)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(head(vectors_ND), truth_NK.float())
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        right_K = ((head.eval()(vectors_ND) > 0) == truth_NK).float().mean(0)
        assert (right_K > 0.9).all(), right_K
