"""A pytest fixture that runs commands in the test's own process. In ``conftest.py``:

import my_plugin
from bseq_plugin.testing.commands import command_of

command = command_of(my_plugin, "mine")

and in a test ``code, out, err = command("my-command", "--option", 3)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from bseq_plugin.plugins import PluginManager

Command = Callable[..., tuple[int, str, str]]


def command_of(plugin: object | None = None, name: str = "") -> Any:
    """Return a fixture: a function that runs ``bseq ARGS`` and returns (exit code, standard output, standard error).

    Args:
        plugin: whose commands are there too, installed or not.
        name: of its entry point.
    """

    @pytest.fixture
    def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
        from bseq_plugin.cli import main, plugin_commands

        # set, then deleted, so that what --debug leaves behind is undone
        monkeypatch.setenv("BSEQ_DEBUG", "")
        monkeypatch.setenv("COLUMNS", "200")
        if plugin is not None:
            monkeypatch.setattr(plugin_commands, "plugin_manager", lambda: _manager_with(plugin, name))

        def run(*args: object) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["bseq", *map(str, args)])
            capsys.readouterr()
            code = 0
            try:
                main.main()
            except SystemExit as end:
                code = int(end.code or 0)
            return (code, *capsys.readouterr())

        return run

    return command


def _manager_with(plugin: object, name: str) -> PluginManager:
    manager = PluginManager()
    manager.load_entry_points()
    if name not in {info.name for info in manager.infos()}:
        manager.register(plugin, name)
    return manager
