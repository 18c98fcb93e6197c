"""The training model: ``Batch -> (loss, outputs)``, TorchRec's convention for train pipelines."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor

from bseq_plugin.data.batches import NEGATIVE, TARGET, Batch
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.schema.options import parse_options
from bseq_plugin.schema.parts import Candidates, SequenceLoss, Targets
from bseq_plugin.schema.recipe import Recipe


class SequenceInterestTask(nn.Module):
    """A ``SequenceInterestEncoder`` with the recipe's loss. Arguments as there."""

    def __init__(
        self, recipe: Recipe, n_items: int, n_event_types: int = 0, *, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.interest_encoder = SequenceInterestEncoder(
            recipe, n_items, n_event_types, candidate_keys=True, device=device
        )
        self.objective = Objective(build_loss_part(recipe))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``(loss, {"loss", "n_targets"})``; the loss is scaled so that its mean over ranks is the global batch's."""
        looked_up = self.interest_encoder.embedding_collection(batch.features)
        events = self.interest_encoder.event_embedder(looked_up, batch.features)
        states_TD = self.interest_encoder.sequence_encoder(events)
        result: tuple[Tensor, dict[str, Tensor]] = self.objective(states_TD, looked_up, batch)
        return result


class Objective(nn.Module):
    """Brings states, targets and candidates together; a leaf of the trace."""

    def __init__(self, loss: SequenceLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, states_TD: Tensor, looked_up: dict[str, JaggedTensor], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``SequenceInterestTask.forward``."""
        targets = Targets(
            looked_up[TARGET].values(), batch.target_ids_S, batch.target_state_S, batch.target_weights_S
        )
        candidates = Candidates(looked_up[NEGATIVE].values(), batch.candidate_ids_N, batch.log_expected_count_N)
        loss = self.loss(states_TD[batch.state_rows_Q], targets, candidates)
        n_targets = torch.tensor(batch.target_ids_S.shape[0])
        return loss * batch.loss_scale, {"loss": loss.detach(), "n_targets": n_targets}


def build_loss_part(recipe: Recipe) -> SequenceLoss:
    """The loss named in the recipe. Raises UsageError (unknown name) or RecipeError (bad options)."""
    part = plugin_manager().part("loss", recipe.loss)
    loss: SequenceLoss = part(parse_options(part.Options, recipe.loss_options, f"loss_options of {recipe.loss!r}"))
    return loss
