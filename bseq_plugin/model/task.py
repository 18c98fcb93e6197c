"""The training model: ``Batch -> (loss, outputs)``, TorchRec's convention for train pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from bseq_plugin.data.batches import NEGATIVE, TARGET, Batch
from bseq_plugin.data.items import ItemAttributes, ItemVectors
from bseq_plugin.errors import RecipeError, UsageError
from bseq_plugin.model.anchored import merged_softmax
from bseq_plugin.model.encoder import NO_POPULARITY, SequenceInterestEncoder
from bseq_plugin.model.ensemble import ensemble_loss
from bseq_plugin.model.interests import label_aware
from bseq_plugin.model.items import score_vectors
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.schema.losses import Negatives, SequenceLoss, Targets
from bseq_plugin.schema.options import parse_options
from bseq_plugin.schema.part import MachineChoices


class SequenceInterestTask(nn.Module):
    """A ``SequenceInterestEncoder`` with the recipe's loss, for the same arguments."""

    def __init__(
        self,
        recipe: Recipe,
        n_items: int,
        n_event_types: int = 0,
        *,
        attributes: ItemAttributes | None = None,
        item_vectors: ItemVectors | int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.interest_encoder = SequenceInterestEncoder(
            recipe,
            n_items,
            n_event_types,
            attributes=attributes,
            item_vectors=item_vectors,
            item_keys=(TARGET, NEGATIVE),
            device=device,
        )
        self.masked = recipe.objective.kind == "masked"
        part = self.interest_encoder.sequence_encoder.part
        if self.masked and not part.predicts_masked:
            raise RecipeError(
                f"objective.kind = 'masked' needs an encoder that predicts hidden events, and {part.name!r} does not; "
                "use encoder.name = 'masked', or another objective"
            )
        self.objective = Objective(
            build_loss_part(recipe),
            recipe.vectors.cosine,
            recipe.interests_per_user,
            recipe.vectors.ensemble,
            anchored=recipe.interests.kind == "several" and recipe.interests.anchored,
        )

    def machine_choices(self) -> dict[str, dict[str, Any]]:
        """What is best on this machine, by part; see ``MachineChoices``. Some of it is measured now."""
        return {name: part.machine_choices(self.recipe.vectors.dim) for name, part in self._choosing.items()}

    def settle(self, choices: Mapping[str, Mapping[str, Any]]) -> None:
        """Take ``choices`` over, as ``machine_choices`` gave them here, on another rank, or when a run was begun."""
        for name, part in self._choosing.items():
            part.settle(choices[name])

    @property
    def _choosing(self) -> dict[str, MachineChoices]:
        return {"encoder": self.interest_encoder.sequence_encoder.part, "loss": self.objective.loss}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return ``(loss, {"loss", "n_targets"})``; the loss is scaled so that its mean over ranks is the global
        batch's.

        ``n_targets`` float32, each target counted with its weight.
        """
        if not isinstance(batch, Batch | Proxy):  # the proxy of a trace
            given = type(batch).__name__
            raise UsageError(f"the task takes a bseq.Batch, not a {given}; make one: bseq.Batch.of(features)")
        encoder = self.interest_encoder
        events, rows = encoder.look_up(batch.features)
        if self.masked:
            states_QD = encoder.sequence_encoder(events, batch.state_rows_Q, False, True)
            interests_ND = encoder.noted(encoder.interest_head(states_QD))
        else:
            interests_ND = encoder.interests(events, batch.state_rows_Q)
        result: tuple[Tensor, dict[str, Tensor]] = self.objective(interests_ND, rows[0], rows[1], batch)
        return result


class Objective(nn.Module):
    """A module that brings interests, targets and negatives together; a leaf of the trace."""

    def __init__(
        self, loss: SequenceLoss, cosine: bool, n_interests: int = 1, n_members: int = 1, *, anchored: bool = False
    ) -> None:
        super().__init__()
        self.loss = loss
        self.cosine = cosine
        self.n_interests = n_interests
        self.n_members = n_members
        self.anchored = anchored

    def forward(
        self, interests_ND: Tensor, target_SD: Tensor, negative_ND: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its figures; see ``SequenceInterestTask.forward``.

        Raises UsageError for a batch without the popularity columns that the recipe asks for.
        """
        negative_ND = score_vectors(negative_ND, batch.negative_priors_NP, self.cosine)
        places_S = batch.target_places_S
        if places_S is None:
            target_SD = score_vectors(target_SD, batch.target_priors_SP, self.cosine)
        else:  # targets are not looked up a second time
            target_SD = negative_ND.index_select(0, places_S)
        if {negative_ND.shape[1], target_SD.shape[1]} != {interests_ND.shape[1]}:
            raise UsageError(f"the batch has no popularity columns: {NO_POPULARITY}")
        targets = Targets(target_SD, batch.target_ids_S, batch.target_state_S, batch.target_weights_S, places_S)
        negatives = Negatives(negative_ND, batch.negative_ids_N, batch.log_expected_count_N)
        interests_QKD = interests_ND.view(-1, self.n_interests, interests_ND.shape[1])
        if self.anchored:
            loss = self.loss(interests_QKD[:, 0].contiguous(), targets, negatives)
            loss = loss + merged_softmax(interests_QKD, targets, negatives)
        elif self.n_interests > 1:
            loss = self.loss(interests_ND, label_aware(interests_QKD, targets), negatives)
        elif self.n_members > 1:
            loss = ensemble_loss(self.loss, self.n_members, interests_ND, targets, negatives)
        else:
            loss = self.loss(interests_ND, targets, negatives)
        n_targets = batch.target_weights_S.sum()
        return loss * batch.loss_scale, {"loss": loss.detach(), "n_targets": n_targets}


def build_loss_part(recipe: Recipe) -> SequenceLoss:
    """The loss named in the recipe. Raises UsageError (unknown name) or RecipeError (bad options)."""
    part = plugin_manager().part("loss", recipe.loss.name)
    loss: SequenceLoss = part(parse_options(part.Options, recipe.loss.options, f"options of loss {recipe.loss.name!r}"))
    return loss
