"""A trained sequence head as a file: name, settings and weights; item vectors are those of the model it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import bseq_plugin as bseq
from bseq_behaviour.contract.choice import HeadChoice, load_weights, sequence_head
from bseq_behaviour.contract.heads import SequenceHead


def save_decoder(decoder: SequenceHead, path: Path, model: bseq.InterestModel) -> None:
    """Write one safetensors file, whole or not at all. ``model``: the one whose states the decoder reads.

    Raises UsageError for another model: the decoder has the item vectors of its own.
    """
    if not torch.equal(decoder.item_vectors_VD, model.item_vectors_VD):
        raise bseq.UsageError(
            f"the decoder scores other item vectors than those of model {model.digest[:12]}; give the model that it "
            "was trained with"
        )
    told = {
        "head": decoder.name, "options": decoder.options.model_dump(mode="json"), "state_dim": decoder.state_dim,
        "n_event_types": decoder.n_event_types, "n_steps": decoder.n_steps, "model_digest": model.digest,
    }  # fmt: skip
    bseq.save_sealed(path, decoder.state_dict(), {"decoder": json.dumps(told)})


def load_decoder(path: Path, model: bseq.InterestModel) -> SequenceHead:
    """Read what ``save_decoder`` wrote.

    Raises RunError if it is missing, damaged, something else, or reads another model; UsageError, RecipeError or
    PluginError if the plugin that gave the head is gone, has other options now, or can't make it.
    """
    tensors, metadata = bseq.load_sealed(path, "save_decoder")
    if "decoder" not in metadata:
        raise bseq.RunError(f"{str(path)!r} is not a file that save_decoder wrote; give another")
    told = json.loads(metadata["decoder"])
    if told["model_digest"] != model.digest:
        raise bseq.RunError(
            f"the decoder in {str(path)!r} reads model {told['model_digest'][:12]}, this is model "
            f"{model.digest[:12]}: train it again"
        )
    choice = HeadChoice(told["head"], told["options"])
    decoder = sequence_head(choice, told["state_dim"], model.item_vectors_VD, told["n_event_types"], told["n_steps"])
    load_weights(decoder, tensors)
    return decoder.eval()
