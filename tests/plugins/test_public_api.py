"""Integrations stand on the public API alone: ``import bseq_plugin as bseq``, the suites, and the kit for commands."""

import ast
from pathlib import Path

import pytest

import bseq_plugin

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "integrations").rglob("*.py") if "build" not in path.parts)
PUBLIC = ("bseq_plugin.commands", "bseq_plugin.testing")


def is_public(module):
    return any(module == public or module.startswith(f"{public}.") for public in PUBLIC)


def private_uses(text):
    """What a module reads of bseq that is not public, one line each."""
    tree = ast.parse(text)
    names, wrong = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "bseq_plugin":
                    names.add(alias.asname or alias.name)
                elif alias.name.startswith("bseq_plugin.") and not is_public(alias.name):
                    wrong.append(f"{node.lineno}: import {alias.name}")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bseq_plugin":
            for alias in node.names:
                known = alias.name in bseq_plugin.__all__ or is_public(f"bseq_plugin.{alias.name}")
                if not (known if node.module == "bseq_plugin" else is_public(node.module)):
                    wrong.append(f"{node.lineno}: from {node.module} import {alias.name}")
    for node in ast.walk(tree):
        of_bseq = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        if of_bseq and node.attr not in bseq_plugin.__all__:
            wrong.append(f"{node.lineno}: {node.value.id}.{node.attr}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "integrations")))
def test_an_integration_uses_the_public_api_alone(path):
    assert private_uses(path.read_text(encoding="utf-8")) == []


def test_every_integration_is_looked_at():
    folders = {path.relative_to(ROOT / "integrations").parts[0] for path in FILES}
    assert {"bseq-transformers", "bseq-dlrm", "bseq-two-tower"} <= folders


def test_a_private_use_is_seen():
    """The test above is worth something only if it would notice."""
    text = """
import bseq_plugin as bseq
import bseq_plugin.events.events
from bseq_plugin import UsageError, plugins
from bseq_plugin.testing.encoders import EncoderTests
from bseq_plugin.commands import note
def f():
    from bseq_plugin.cli.main import main
    return bseq.Events, bseq.indexes.exact
"""
    assert private_uses(text) == [
        "3: import bseq_plugin.events.events",
        "4: from bseq_plugin import plugins",
        "8: from bseq_plugin.cli.main import main",
        "9: bseq.indexes",
    ]
