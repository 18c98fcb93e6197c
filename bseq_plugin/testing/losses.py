"""What every loss must do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bseq_plugin.schema.losses import Negatives, SequenceLoss, Targets

N_ITEMS, DIM = 11, 4


class LossTests:
    """Subclass it as ``class TestMine(LossTests): loss = MyLoss``."""

    loss: ClassVar[type[SequenceLoss]]
    options: ClassVar[dict[str, Any]] = {}

    def build(self) -> SequenceLoss:
        """The loss under test."""
        return self.loss(self.loss.checked_options(self.options))

    @staticmethod
    def problem(sampled: bool, seed: int = 0) -> tuple[Tensor, Targets, Negatives]:
        """Three states with 1, 0 and 3 targets, over 11 items or 7 sampled ones, in float64."""
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(N_ITEMS + 1, DIM, generator=generator, dtype=torch.float64)
        ids_S = torch.tensor([4, 1, 5, 9])
        weights_S = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
        targets = Targets(vectors[ids_S], ids_S, torch.tensor([0, 2, 2, 2]), weights_S)
        if sampled:
            ids_N = torch.tensor([4, 4, 7, 1, 2, 11, 3])
            negatives = Negatives(vectors[ids_N], ids_N, torch.randn(7, generator=generator, dtype=torch.float64))
        else:
            negatives = Negatives(vectors[1:], torch.arange(1, N_ITEMS + 1))
        return torch.randn(3, DIM, generator=generator, dtype=torch.float64), targets, negatives

    @pytest.mark.parametrize("sampled", [False, True])
    def test_gradients_are_the_derivative(self, sampled: bool) -> None:
        """Against finite differences, in states, targets and negatives."""
        states_QD, targets, negatives = self.problem(sampled)
        loss = self.build()

        def value(states: Tensor, positives: Tensor, vectors: Tensor) -> Tensor:
            moved: Tensor = loss(states, replace(targets, vectors_SD=positives), replace(negatives, vectors_ND=vectors))
            return moved

        leaves = [x.clone().requires_grad_() for x in (states_QD, targets.vectors_SD, negatives.vectors_ND)]
        assert torch.autograd.gradcheck(value, leaves)

    @pytest.mark.parametrize("sampled", [False, True])
    def test_own_targets_are_no_negatives(self, sampled: bool) -> None:
        """Moving an item that is the only state's target changes nothing."""
        states_QD, targets, negatives = self.problem(sampled)
        one = Targets(targets.vectors_SD[:1], targets.ids_S[:1], targets.state_S[:1], targets.weights_S[:1])
        hit = negatives.ids_N == targets.ids_S[0]
        moved = negatives.vectors_ND + 100.0 * hit[:, None]
        loss = self.build()
        before = loss(states_QD[:1], one, negatives)
        torch.testing.assert_close(before, loss(states_QD[:1], one, replace(negatives, vectors_ND=moved)))

    def test_no_targets_give_zero(self) -> None:
        """A loss of 0 that still has a (zero) gradient, so that all ranks take the same steps."""
        states_QD, targets, negatives = self.problem(sampled=False)
        none = Targets(targets.vectors_SD[:0], targets.ids_S[:0], targets.state_S[:0], targets.weights_S[:0])
        states = states_QD.requires_grad_()
        loss = self.build()(states, none, negatives)
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert states.grad is not None
        assert not states.grad.any()

    def test_weights_are_relative(self) -> None:
        """The loss is a weighted mean: scaling all weights changes nothing."""
        states_QD, targets, negatives = self.problem(sampled=True)
        scaled = replace(targets, weights_S=3.0 * targets.weights_S)
        loss = self.build()
        torch.testing.assert_close(loss(states_QD, targets, negatives), loss(states_QD, scaled, negatives))
