"""What every head has to do: subclass the suite of its kind, set ``head``, run pytest. Sequence heads:
``bseq_behaviour.testing.sequence_heads``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_behaviour.contract.choice import load_weights
from bseq_behaviour.contract.heads import BehaviourHead, BinaryHead, CatalogueHead, CountHead

# N rows, B users, D width, K tasks or interests, C categories
D, K, C = 6, 3, 3


class AnyHeadTests:
    """What the suites of all kinds share.

    Attributes:
        head: the class.
        options: of the head, as in a setting.
    """

    kind: ClassVar[type[BehaviourHead]]
    head: ClassVar[type[BehaviourHead]]
    options: ClassVar[dict[str, Any]] = {}

    @property
    def parsed(self) -> bseq.PartOptions:
        """``options`` as the head gets them."""
        return bseq.parse_options(self.head.Options, self.options, "options")

    def make(self, seed: int = 0) -> Any:
        """A new head, of the same weights for the same seed."""
        raise NotImplementedError

    def taught(self, head: Any) -> Tensor:
        """A scalar that some training lowers."""
        raise NotImplementedError

    def answers(self, head: Any) -> Tensor:
        """What it says of some inputs, the same in every call."""
        raise NotImplementedError

    def test_it_has_a_name_and_is_of_its_kind(self) -> None:
        """By these it is asked for."""
        assert isinstance(self.head.name, str)
        assert self.head.name
        assert issubclass(self.head, self.kind)
        assert self.head.answer == self.kind.answer

    def test_its_weights_are_all_that_it_learned(self) -> None:
        """Trained, saved and loaded into another one that began elsewhere, it gives the same answers."""
        head, other = self.make(seed=0), self.make(seed=1)
        unused = torch.zeros((), requires_grad=True)  # for heads without parameters
        optimizer = torch.optim.Adam([*head.parameters(), unused], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            (self.taught(head) + 0 * unused).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            bseq.save_sealed(Path(folder) / "head", head.state_dict(), {})
            load_weights(other, bseq.load_sealed(Path(folder) / "head", "this suite")[0])
        assert torch.equal(self.answers(head.eval()), self.answers(other.eval()))


class BinaryHeadTests(AnyHeadTests):
    """Conformance of a ``BinaryHead``."""

    kind = BinaryHead
    head: ClassVar[type[BinaryHead]]

    def make(self, seed: int = 0) -> BinaryHead:
        """Of D columns and K tasks."""
        torch.manual_seed(seed)
        return self.head(D, K, self.parsed)

    def taught(self, head: BinaryHead) -> Tensor:
        """The cross-entropy where all is a yes."""
        return F.softplus(-head(torch.linspace(-2, 1, 7 * D).view(7, D))).mean()

    def answers(self, head: BinaryHead) -> Tensor:
        """Of five rows."""
        logits_NK: Tensor = head(torch.linspace(-1, 1, 5 * D).view(5, D))
        return logits_NK

    def test_shape_and_no_rows(self) -> None:
        """One finite logit a row and task."""
        head = self.make().eval()
        for n_rows in (0, 1, 7):
            logits_NK = head(torch.randn(n_rows, D))
            assert logits_NK.shape == (n_rows, K)
            assert torch.isfinite(logits_NK).all()

    def test_rows_do_not_look_at_each_other(self) -> None:
        """A row alone gets what it gets among others."""
        head, vectors_ND = self.make().eval(), torch.randn(9, D)
        alone = torch.cat([head(vectors_ND[n : n + 1]) for n in range(9)])
        torch.testing.assert_close(head(vectors_ND), alone)

    def test_it_learns_tasks_that_disagree(self) -> None:
        """Task 0 asks for the sign of a column, task 1 for the opposite, task 2 for another column's."""
        head, vectors_ND = self.make(), torch.randn(512, D)
        truth_NK = torch.stack([vectors_ND[:, 0] > 0, vectors_ND[:, 0] <= 0, vectors_ND[:, 1] > 0], dim=1)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(head(vectors_ND), truth_NK.float())
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        right_K = ((head.eval()(vectors_ND) > 0) == truth_NK).float().mean(0)
        assert (right_K > 0.9).all(), right_K


class CatalogueHeadTests(AnyHeadTests):
    """Conformance of a ``CatalogueHead``."""

    kind = CatalogueHead
    head: ClassVar[type[CatalogueHead]]

    def make(self, seed: int = 0) -> CatalogueHead:
        """Of width D."""
        torch.manual_seed(seed)
        return self.head(D, self.parsed)

    def taught(self, head: CatalogueHead) -> Tensor:
        """How far the queries are from 1."""
        queries_BKD: Tensor = head(torch.linspace(-2, 1, 14 * D).view(7, 2, D))
        return (queries_BKD - 1).square().mean()

    def answers(self, head: CatalogueHead) -> Tensor:
        """Of five users with two interests."""
        queries_BKD: Tensor = head(torch.linspace(-1, 1, 10 * D).view(5, 2, D))
        return queries_BKD

    def test_shape_and_no_users(self) -> None:
        """A finite query an interest."""
        head = self.make().eval()
        for shape in ((0, 1, D), (1, 1, D), (7, K, D), (0, K, D)):
            queries_BKD = head(torch.randn(shape))
            assert queries_BKD.shape == shape
            assert torch.isfinite(queries_BKD).all()

    def test_users_do_not_look_at_each_other(self) -> None:
        """A user alone gets what they get among others."""
        head, interests_BKD = self.make().eval(), torch.randn(9, K, D)
        alone = torch.cat([head(interests_BKD[user : user + 1]) for user in range(9)])
        torch.testing.assert_close(head(interests_BKD), alone)

    def test_an_item_for_each_user_is_learned_with_the_interests(self) -> None:
        """As beside an encoder: gradients reach the interests through the head, and each user's item ranks first."""
        head, items_VD = self.make(), torch.randn(8, D)
        interests_BKD = torch.nn.Parameter(0.1 * torch.randn(8, 2, D))
        wanted_B = torch.arange(8).flip(0)
        optimizer = torch.optim.Adam([*head.parameters(), interests_BKD], lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            scores_BV = (head(interests_BKD) @ items_VD.T).amax(1)
            F.cross_entropy(scores_BV, wanted_B).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert torch.equal((head.eval()(interests_BKD) @ items_VD.T).amax(1).argmax(1), wanted_B)
        assert interests_BKD.grad is not None
        assert (interests_BKD.grad.flatten(1).abs().amax(1) > 0).all(), "no gradient reaches some interests"


class CountHeadTests(AnyHeadTests):
    """Conformance of a ``CountHead``."""

    kind = CountHead
    head: ClassVar[type[CountHead]]

    def make(self, seed: int = 0, usual: tuple[float, ...] = (0.1, 1.0, 0.0)) -> CountHead:
        """Of D columns and C categories, of which the last has never been taken."""
        torch.manual_seed(seed)
        return self.head(D, torch.tensor(usual), self.parsed)

    def taught(self, head: CountHead) -> Tensor:
        """Its loss, where two units of each category are taken."""
        return head.loss(torch.linspace(-2, 1, 7 * D).view(7, D), torch.ones(7, C), torch.full((7, C), 2.0))

    def answers(self, head: CountHead) -> Tensor:
        """Of five rows."""
        rates_NC: Tensor = head(torch.linspace(-1, 1, 5 * D).view(5, D), torch.arange(5.0)[:, None].expand(5, C))
        return rates_NC

    def test_shape_signs_and_no_rows(self) -> None:
        """A positive, finite rate a row and category, and a finite loss, also of those who took nothing."""
        head = self.make().eval()
        for n_rows in (0, 1, 7):
            vectors_ND, recent_NC = torch.randn(n_rows, D), torch.zeros(n_rows, C)
            rates_NC = head(vectors_ND, recent_NC)
            assert rates_NC.shape == (n_rows, C)
            assert (rates_NC > 0).all()
            assert torch.isfinite(rates_NC).all()
            if n_rows:
                assert torch.isfinite(head.loss(vectors_ND, recent_NC, torch.zeros(n_rows, C)))

    def test_rows_do_not_look_at_each_other(self) -> None:
        """A row alone gets what it gets among others."""
        head, vectors_ND, recent_NC = self.make().eval(), torch.randn(9, D), torch.rand(9, C)
        alone = torch.cat([head(vectors_ND[n : n + 1], recent_NC[n : n + 1]) for n in range(9)])
        torch.testing.assert_close(head(vectors_ND, recent_NC), alone)

    def test_it_learns_rates_by_its_own_loss(self) -> None:
        """Category 0 follows a column, category 1 another, the third is the same for everybody."""
        head, vectors_ND = self.make(usual=(0.1, 1.0, 0.5)), torch.randn(1024, D)
        rates_NC = torch.cat([(0.5 * vectors_ND[:, :2]).exp(), torch.full((1024, 1), 2.0)], 1)
        recent_NC, units_NC = torch.poisson(torch.ones(1024, C)), torch.poisson(rates_NC)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            head.loss(vectors_ND, recent_NC, units_NC).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found_NC = head.eval()(vectors_ND, recent_NC).detach()
        for category in range(2):
            assert torch.corrcoef(torch.stack([found_NC[:, category], rates_NC[:, category]]))[0, 1] > 0.9
        torch.testing.assert_close(found_NC.mean(0), units_NC.mean(0), rtol=0.1, atol=0.05)
