"""``transformers``: the conformance suite, and the package's own models on one history at a time."""

import copy
import sys
from typing import ClassVar

import pytest
import torch
from bseq_transformers.encoder import TransformersEncoder

from bseq_plugin import MissingDependencyError, RecipeError
from bseq_plugin.testing.encoders import DIM, MAX_LENGTH, EncoderTests


class TestGpt2(EncoderTests):
    encoder = TransformersEncoder


class TestLlamaOfAnotherWidth(EncoderTests):
    encoder = TransformersEncoder
    options: ClassVar = {"model_type": "llama", "n_blocks": 1, "config": {"hidden_size": 12, "head_dim": 6}}


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "mistral", "gpt_neox", "opt"])
def test_states_are_those_of_the_model_on_one_history(model_type):
    """The oracle is the package itself, without padding, in float64."""
    torch.manual_seed(0)
    options = TransformersEncoder.Options(model_type=model_type)
    encoder = TransformersEncoder(DIM, MAX_LENGTH, 0.3, options).double().eval()
    events = EncoderTests.events((3, 0, 1, 12, 5))
    events = events.with_x(events.x_TD.double())
    with torch.no_grad():
        found = encoder(events)
        for user in range(5):
            rows = slice(int(events.offsets_B1[user]), int(events.offsets_B1[user + 1]))
            if rows.stop > rows.start:
                alone = encoder.backbone(inputs_embeds=events.x_TD[None, rows]).last_hidden_state[0]
                torch.testing.assert_close(found[rows], alone, rtol=1e-6, atol=1e-8)
    names = {name: getattr(encoder.backbone.config, name) for name in encoder.backbone.config.to_dict()}
    assert all(value == 0.3 for name, value in names.items() if "drop" in name and isinstance(value, float))
    assert sum(p.numel() for p in encoder.parameters()) < 5_000  # no table of words


def test_a_copy_and_a_fresh_start_work():
    """Serving copies modules; DistributedModelParallel resets them one by one."""
    encoder = TransformersEncoder(DIM, MAX_LENGTH, 0.0).eval()
    events = EncoderTests.events((4, 2))
    before = encoder(events)
    assert torch.equal(copy.deepcopy(encoder)(events), before)
    for module in encoder.backbone.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.reset_parameters()
    assert not torch.allclose(encoder(events), before)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model_type": "gpt17"}, "no model 'gpt17'"),
        ({"model_type": "bert"}, "'bert' lets an event see later ones; use a decoder"),
        ({"n_heads": 3}, "with these settings"),
        ({"model_type": "vit"}, "'vit'"),
    ],
)
def test_what_can_not_be_used_is_refused(options, told):
    with pytest.raises(RecipeError, match=told):
        TransformersEncoder(DIM, MAX_LENGTH, 0.0, TransformersEncoder.Options(**options))


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install transformers"):
        TransformersEncoder(DIM, MAX_LENGTH, 0.0)
