"""Any causal backbone of Hugging Face's ``transformers``, made from its configuration."""

from __future__ import annotations

import logging
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

import bseq_plugin as bseq

UNUSED_WORDS = 4  # events are embedded already; some configurations name a padding token all the same


class TransformersOptions(bseq.PartOptions):
    """Options of the ``transformers`` encoder."""

    model_type: str = Field("gpt2", description="a causal architecture of transformers: gpt2, llama, qwen2, ...")
    n_blocks: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    config: dict[str, Any] = Field(default_factory=dict, description="further fields of the model's configuration")


class TransformersEncoder(bseq.SequenceEncoder[TransformersOptions]):
    """A backbone of the package ``transformers`` with weights of its own, fed with embedded events.

    Its width is ``dim`` unless ``config`` has another ``hidden_size``: then a linear layer stands on each side. Every
    dropout of the configuration that ``config`` does not name is the recipe's. These models want padded batches:
    histories are padded to the longest of a batch here, unlike in the other encoders. Positions count from the oldest
    event that is read.

    Raises MissingDependencyError without the package, RecipeError for an unknown or unusable configuration, or for an
    architecture in which an event sees later ones.
    """

    name = "transformers"

    def __init__(self, dim: int, max_length: int, dropout: float, options: TransformersOptions | None = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        self.backbone = self._build()
        width = int(self.backbone.config.hidden_size)
        self.into = nn.Linear(dim, width) if width != dim else nn.Identity()
        self.out = nn.Linear(width, dim) if width != dim else nn.Identity()
        self._refuse_foresight(width)
        for name, module in self.backbone.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.reset_parameters = _Reset(self, name)

    def forward(self, events: bseq.PackedEvents) -> Tensor:
        """Return ``states_TD``; see ``SequenceEncoder.forward``."""
        if events.x_TD.shape[0] == 0:
            return events.x_TD
        ends_B = events.offsets_B1[1:][events.lengths_B > 0]  # a line without events would attend to nothing
        own = bseq.PackedEvents(self.into(events.x_TD), nn.functional.pad(ends_B, (1, 0)))
        x_BLD, mask_BL = own.padded()
        output = self.backbone(inputs_embeds=x_BLD, attention_mask=mask_BL.long(), use_cache=False)
        states: Tensor = self.out(own.packed(output.last_hidden_state))
        return states

    def _build(self) -> Any:
        """Build a model with fresh weights and without word embeddings; in memory, even while other modules are on the
        meta device.
        """
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError:
            raise bseq.MissingDependencyError(
                "encoder 'transformers' needs the package: pip install transformers"
            ) from None
        logging.getLogger("transformers").setLevel(logging.ERROR)  # it tells of tokens that no event is
        chosen = self.options
        try:
            defaults = AutoConfig.for_model(chosen.model_type)
            config = AutoConfig.for_model(chosen.model_type, **{**self._values(defaults), **chosen.config})
            with torch.device("cpu"):
                model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError) as error:
            told = next(iter(str(error).splitlines()), type(error).__name__)[:300]
            raise bseq.RecipeError(f"encoder: no model {chosen.model_type!r} with these settings: {told}") from None
        model.set_input_embeddings(nn.Identity())
        return model

    def _values(self, defaults: Any) -> dict[str, Any]:
        """Return the fields that follow from the recipe, as far as the architecture has them."""
        chosen = self.options
        values = {
            "hidden_size": self.dim,
            "num_hidden_layers": chosen.n_blocks,
            "num_attention_heads": chosen.n_heads,
            "num_key_value_heads": chosen.n_heads,
            "head_dim": max(1, self.dim // chosen.n_heads),
            "max_position_embeddings": self.max_length,
            "intermediate_size": 4 * self.dim,
            "ffn_dim": 4 * self.dim,
            "word_embed_proj_dim": self.dim,
            "vocab_size": UNUSED_WORDS,
        }
        values = {name: value for name, value in values.items() if hasattr(defaults, name)}
        fields = defaults.to_dict()
        share = {name for name in fields if "drop" in name and isinstance(fields[name], float)}
        tokens = {name for name in fields if name.endswith("_token_id")}
        return {**values, **dict.fromkeys(share, self.dropout), **dict.fromkeys(tokens, None)}

    @torch.no_grad()
    def _refuse_foresight(self, width: int) -> None:
        """Raise RecipeError unless the state of an event is the same whatever comes after it."""
        generator = torch.Generator("cpu").manual_seed(0)
        x_BLD = torch.randn(2, min(2, self.max_length), width, generator=generator, device="cpu")
        x_BLD[1, 0] = x_BLD[0, 0]
        training = self.backbone.training
        try:
            states_BLD = self.backbone.eval()(inputs_embeds=x_BLD, use_cache=False).last_hidden_state
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            told = next(iter(str(error).splitlines()), type(error).__name__)[:300]
            raise bseq.RecipeError(
                f"encoder.model_type = {self.options.model_type!r} can't be fed with events: {told}; use a "
                "decoder such as 'gpt2'"
            ) from None
        self.backbone.train(training)
        if not torch.allclose(states_BLD[0, 0], states_BLD[1, 0], atol=1e-5):
            raise bseq.RecipeError(
                f"encoder.model_type = {self.options.model_type!r} lets an event see later ones; use a decoder "
                "such as 'gpt2' or 'llama'"
            )


class _Reset:
    """The ``reset_parameters`` of one module of a backbone: it copies the values of a fresh model, and all buffers."""

    def __init__(self, encoder: TransformersEncoder, name: str) -> None:
        self.encoder, self.name = encoder, name

    @torch.no_grad()
    def __call__(self) -> None:
        fresh, old = self.encoder._build(), self.encoder.backbone
        given = dict(fresh.get_submodule(self.name).named_parameters(recurse=False))
        for name, value in old.get_submodule(self.name).named_parameters(recurse=False):
            value.copy_(given[name])
        buffers = dict(fresh.named_buffers())
        for name, value in old.named_buffers():
            value.copy_(buffers[name])
