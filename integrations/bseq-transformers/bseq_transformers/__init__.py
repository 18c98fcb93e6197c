"""Text of items and of behaviour, read by pretrained Transformers: the bseq plugin ``transformers``."""

from __future__ import annotations

import bseq_plugin as bseq


@bseq.hookimpl
def bseq_item_encoders() -> list[type[bseq.ItemEncoder]]:
    """``text``."""
    from bseq_transformers.text import TextItemEncoder

    return [TextItemEncoder]
