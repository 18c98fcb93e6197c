"""Imports between the folders of the package point downwards, and none of its modules is part of a circle."""

import ast
from pathlib import Path

import bseq_behaviour
import pytest

ROOT = Path(bseq_behaviour.__file__).parent
# a room may import rooms of an earlier line, and itself
LINES = [
    {"columns"},
    {"contract"},
    {"heads", "fitting", "testing", "categories"},
    {"propensity"},
    {"returns", "demand", "next_k", "insight"},
    {"multitask", "pictures"},
    {"commands"},
    {"__init__"},
]
LINE = {room: line for line, rooms in enumerate(LINES) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    """Modules of the package that a file imports, type imports too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree)
    return [n.module for n in nodes if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("bseq_behaviour.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = room_of(path)
    for module in imported(path):
        other = module.split(".")[1]
        assert other == own or LINE[other] < LINE[own], f"{own} imports {module}"


def test_no_file_is_part_of_a_circle():
    edges = {}
    for path in FILES:
        name = ".".join(("bseq_behaviour", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        edges[name] = set(imported(path)) - {name}
    free = set()
    while ready := {name for name, others in edges.items() if name not in free and others <= free}:
        free |= ready
    assert set(edges) - free == set()
