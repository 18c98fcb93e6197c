"""The command line, run inside this process: starting a new one for each of a hundred commands would take minutes."""

import sys

import pytest


@pytest.fixture
def bseq(monkeypatch, capsys):
    """A function that runs ``bseq ARGS`` and gives (exit code, standard output, standard error)."""
    from bseq_plugin.cli.main import main

    # set, then deleted, so that what --debug leaves behind is undone
    monkeypatch.setenv("BSEQ_DEBUG", "")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["bseq", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return (code, *capsys.readouterr())

    return run
