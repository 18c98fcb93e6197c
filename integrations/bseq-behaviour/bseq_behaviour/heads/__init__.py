"""The heads of this package, which come in by the hook as anybody's do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bseq_behaviour.contract.hookspecs import hookimpl

if TYPE_CHECKING:
    from bseq_behaviour.contract.heads import BehaviourHead


@hookimpl
def bseq_heads() -> list[type[BehaviourHead]]:
    """Binary ``mlp`` and ``mmoe``, catalogue ``own_layer`` and ``interests``, count ``log_linear`` and ``kept_share``,
    sequence ``transformer``.
    """
    from bseq_behaviour.heads.catalogue import InterestsHead, OwnLayerHead
    from bseq_behaviour.heads.counts import KeptShareHead, LogLinearHead
    from bseq_behaviour.heads.mlp import MlpHead
    from bseq_behaviour.heads.mmoe import MmoeHead
    from bseq_behaviour.heads.transformer import TransformerHead

    return [MlpHead, MmoeHead, OwnLayerHead, InterestsHead, LogLinearHead, KeptShareHead, TransformerHead]
