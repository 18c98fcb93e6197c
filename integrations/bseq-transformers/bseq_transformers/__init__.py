"""Hugging Face Transformers for bseq: texts of items and of behaviour, and an encoder: the plugin ``transformers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bseq_plugin as bseq

if TYPE_CHECKING:
    import typer

# Imports stand inside the hooks: the help of the command line must not import torch.


@bseq.hookimpl
def bseq_encoders() -> list[type[bseq.SequenceEncoder]]:
    """``transformers``."""
    from bseq_transformers.encoder import TransformersEncoder

    return [TransformersEncoder]


@bseq.hookimpl
def bseq_item_encoders() -> list[type[bseq.ItemEncoder]]:
    """``text``."""
    from bseq_transformers.text import TextItemEncoder

    return [TextItemEncoder]


@bseq.hookimpl
def bseq_commands(app: typer.Typer) -> None:
    """``tune-text``."""
    from bseq_transformers.commands import tune_text

    app.command(rich_help_panel="Texts")(tune_text)
