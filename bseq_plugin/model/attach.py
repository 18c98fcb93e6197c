"""Wire an encoder into a host model: the host does it itself, or a plugin that knows the host (``bseq_attach``)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.plugins import PluginManager, plugin_manager
from bseq_plugin.schema.encoders import HistoryEncoder


@runtime_checkable
class TakesInterest(Protocol):
    """A host that wires an encoder in by itself; a module that has the method is one, it need not inherit."""

    def attach_interest(self, interest: HistoryEncoder, frozen: bool) -> nn.Module:
        """Return a model that reads a history beside what this one reads."""
        ...


def attach(
    host: nn.Module, interest: HistoryEncoder, *, frozen: bool = False, manager: PluginManager | None = None
) -> nn.Module:
    """Return a model that reads a history beside what ``host`` reads; ``host`` itself keeps its weights.

    Args:
        host: a model with a method ``attach_interest(interest, frozen) -> nn.Module``, which is asked first; or one
            that an installed plugin knows: TorchRec's DLRM with bseq-dlrm, a two-tower with bseq-two-tower.
        interest: its tables may be on the meta device, to be sharded with the host's.
        frozen: leave the encoder as it is; gradients and dropout stop before it.

    Raises:
        UsageError: the host has no such method and no plugin knows it, or its method gave something else than a module.
        PluginError: a plugin gave something else than a module.
    """
    if isinstance(host, TakesInterest):
        attached = host.attach_interest(interest, frozen)
        if not isinstance(attached, nn.Module):
            raise UsageError(f"{type(host).__name__}.attach_interest gave a {type(attached).__name__}, not a module")
        return attached
    manager = manager or plugin_manager()
    attached = manager.hook.bseq_attach(host=host, interest=interest, frozen=frozen)
    if attached is None:
        known = sorted(info.name for info in manager.infos() if "bseq_attach" in info.hooks)
        raise UsageError(
            f"no plugin attaches an encoder to a {type(host).__name__}; those that attach: {known or 'none'}. "
            "bseq-dlrm knows TorchRec's DLRM, bseq-two-tower a two-tower model; a model of your own needs a method "
            "attach_interest(interest, frozen) -> nn.Module"
        )
    if not isinstance(attached, nn.Module):
        raise PluginError(f"bseq_attach gave a {type(attached).__name__} for {type(host).__name__}, not a module")
    return attached
