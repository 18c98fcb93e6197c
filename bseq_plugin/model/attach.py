"""Wire an encoder into a host model: a plugin that knows the host does it (``bseq_attach``)."""

from __future__ import annotations

from torch import nn

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.plugins import PluginManager, plugin_manager
from bseq_plugin.schema.encoders import HistoryEncoder


def attach(
    host: nn.Module, interest: HistoryEncoder, *, frozen: bool = False, manager: PluginManager | None = None
) -> nn.Module:
    """Return a model that reads a history beside what ``host`` reads; ``host`` itself keeps its weights.

    Args:
        host: a model that an installed plugin knows: TorchRec's DLRM with bseq-dlrm, a two-tower with bseq-two-tower.
        interest: its tables may be on the meta device, to be sharded with the host's.
        frozen: leave the encoder as it is; gradients and dropout stop before it.

    Raises:
        UsageError: no plugin knows this host.
        PluginError: a plugin gave something else than a module.
    """
    manager = manager or plugin_manager()
    attached = manager.hook.bseq_attach(host=host, interest=interest, frozen=frozen)
    if attached is None:
        known = sorted(info.name for info in manager.infos() if "bseq_attach" in info.hooks)
        raise UsageError(
            f"no plugin attaches an encoder to a {type(host).__name__}; those that attach: {known or 'none'}. "
            "bseq-dlrm knows TorchRec's DLRM, bseq-two-tower a two-tower model"
        )
    if not isinstance(attached, nn.Module):
        raise PluginError(f"bseq_attach gave a {type(attached).__name__} for {type(host).__name__}, not a module")
    return attached
