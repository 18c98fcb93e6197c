"""Commands that plugins bring: shown, run, and never in the way of the others when they break."""

import types

import pytest

from bseq_plugin import PluginError, PluginManager, RunError, UsageError, hookimpl
from bseq_plugin.cli import plugin_commands


def plugin(*commands, panel=None, before=lambda: None):
    """A plugin with these functions as commands; ``before`` is what its hook does first."""

    def bseq_commands(app):
        for command in commands:
            app.command(rich_help_panel=panel)(command)
        before()

    return types.SimpleNamespace(bseq_commands=hookimpl(bseq_commands))


def greet(name: str = "world"):
    """Say hello. Example: `bseq greet`."""
    print(f"hello {name}")


def wave_back():
    """Say hello again."""


def train():
    """There is one already."""


def broken():
    raise ImportError("libfoo.so is not there")


@pytest.fixture
def plugins(monkeypatch):
    """A function: these are the plugins there are."""

    def set_plugins(**given):
        manager = PluginManager()
        for name, one in given.items():
            manager.register(one, name, distribution=f"dist-{name}")
        monkeypatch.setattr(plugin_commands, "plugin_manager", lambda: manager)

    return set_plugins


def panels(shown):
    """Title of a panel of the help -> what stands in it."""
    parts = shown.split("╭─ ")[1:]
    return {part.split(" ─")[0]: part for part in parts}


def test_a_command_of_a_plugin_stands_in_the_help_and_runs(bseq, plugins):
    plugins(one=plugin(greet, wave_back, panel="Greetings"), two=plugin(lambda: None))
    code, out, err = bseq("--help")
    assert (code, err) == (0, "")
    shown = panels(out)
    assert "greet" in shown["Greetings"]
    assert "wave-back" in shown["Greetings"]
    assert "greet" not in shown["Commands"]
    assert "train" in shown["Commands"]
    assert "dist-two" in shown  # who names no panel has one of their own
    assert bseq("greet", "--name", "you") == (0, "hello you\n", "")
    assert "Example: bseq greet" in bseq("greet", "--help")[1]


def test_a_broken_plugin_is_reported_and_the_rest_goes_on(bseq, plugins):
    plugins(bad=plugin(greet, before=broken), good=plugin(wave_back))
    code, out, err = bseq("--help")
    assert code == 0
    assert "wave-back" in out
    assert "greet" not in out  # all of a plugin's commands or none
    assert err == (
        "note: plugin 'bad' (dist-bad) can't add its commands: ImportError: libfoo.so is not there; "
        "BSEQ_DISABLE_PLUGINS=bad leaves it out\n"
    )
    code, _, err = bseq("greet")
    assert (code, "libfoo.so" in err, "No such command 'greet'" in err) == (2, True, True)
    assert bseq("recipes", "reference")[::2] == (0, "")  # nobody asked for a plugin


def test_a_name_that_is_taken_is_refused(bseq, plugins):
    plugins(first=plugin(greet), second=plugin(greet, wave_back), third=plugin(train))
    code, out, err = bseq("--help")
    assert code == 0
    assert "'second' (dist-second) can't add its commands: there is a command 'greet' already" in err
    assert "'third' (dist-third) can't add its commands: there is a command 'train' already" in err
    assert "wave-back" not in out
    assert bseq("greet")[1] == "hello world\n"


def test_without_a_plugin_manager_the_help_is_there(bseq, monkeypatch):
    def fails():
        raise PluginError("plugin 'typo' has a hook bseq_encodrs")

    monkeypatch.setattr(plugin_commands, "plugin_manager", fails)
    code, out, err = bseq("--help")
    assert (code, "train" in out) == (0, True)
    assert err == "note: there are no commands of plugins: plugin 'typo' has a hook bseq_encodrs\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        # rich would take square brackets for markup, and fail
        (UsageError("the [/items] table"), 2, "error: the [/items] table"),
        (RunError("no [run]"), 1, "error: no [run]"),
        (KeyError("[/a]"), 1, "failed: KeyError: '[/a]' (bseq --debug COMMAND shows where)"),
    ],
)
def test_an_error_of_a_command_is_a_line_and_an_exit_code(bseq, plugins, error, code, said):
    def fails():
        raise error

    plugins(one=plugin(fails))
    assert bseq("fails") == (code, "", said + "\n")
