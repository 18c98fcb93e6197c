"""Commands of plugins beside those of ``bseq``; plugins are asked only for the help or for a name that bseq lacks."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from bseq_plugin.console import note
from bseq_plugin.errors import BseqError
from bseq_plugin.plugins import DENY_ENV, PluginInfo, plugin_manager

HOOK = "bseq_commands"


class CommandGroup(TyperGroup):
    """The commands of ``bseq``, and those that plugins bring by the hook ``bseq_commands``.

    A plugin whose commands can't be had is reported on stderr, and everything else works.
    """

    asked = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands: those of bseq, then those of each plugin."""
        self._ask_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, or None."""
        if cmd_name not in self.commands:
            self._ask_plugins()
        return super().get_command(ctx, cmd_name)

    def _ask_plugins(self) -> None:
        if self.asked:
            return
        self.asked = True
        try:
            plugins = plugin_manager().implementations(HOOK)
        except BseqError as error:  # a plugin with a misspelt hook, say
            _report(f"there are no commands of plugins: {error}")
            return
        for plugin, hook in plugins:
            try:
                self._add(plugin, hook)
            except Exception as error:  # a third party's import can fail in any way, and must not stop the others
                told = str(error) if isinstance(error, BseqError) else f"{type(error).__name__}: {error}"
                _report(
                    f"plugin {plugin.name!r} ({plugin.distribution}) can't add its commands: {told}; "
                    f"{DENY_ENV}={plugin.name} leaves it out"
                )

    def _add(self, plugin: PluginInfo, hook: Any) -> None:
        """Add all commands of a plugin, or none. Raises BseqError if one has a name that is taken."""
        app = typer.Typer(rich_markup_mode=self.rich_markup_mode, add_completion=False)
        hook(app)
        commands = get_group(app).commands
        if taken := sorted(commands.keys() & self.commands.keys()):
            raise BseqError(f"there is a command {taken[0]!r} already")
        for command in commands.values():
            command.rich_help_panel = command.rich_help_panel or plugin.distribution  # type: ignore[attr-defined]
        self.commands.update(commands)


def _report(message: str) -> None:
    note.print(f"note: {message}")
