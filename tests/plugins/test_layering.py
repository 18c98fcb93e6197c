"""Imports point downwards, nothing goes round in a circle, and every room says what it is for.

A room is a folder of the package, or a file beside them. `python tests/plugins/test_layering.py` prints the table that
docs/concepts.md shows.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import bseq_plugin

ROOT = Path(bseq_plugin.__file__).parent
CONCEPTS = ROOT.parent / "docs" / "concepts.md"

# From top to bottom. A room may import rooms that stand further down, and itself: those of one level are siblings.
LEVELS = {
    "for plugin authors": ["commands", "testing"],
    "commands": ["cli"],
    "doors: names on demand, and our own parts": ["__init__", "builtin"],
    "faces": ["demo", "doctor"],
    "stages that build on a stage": ["evaluation", "publishing"],
    "stages: one verb each": ["training", "serving", "ranking"],
    "the modules": ["model"],
    "parts, found through hooks": ["encoders", "losses", "item_encoders", "indexes", "candidate_sources", "readers"],
    "events and batches, and processes": ["data", "distributed"],
    "the registry, and versions on a disk": ["plugins", "store"],
    "the contract": ["hookspecs"],
    "the settings of a run": ["recipe"],
    "the contract in types": ["schema"],
    "a log": ["events"],
    "what everybody may use": ["console", "files", "layers", "matmul", "metrics"],
    "errors": ["errors"],
}
DEPTH = {room: depth for depth, rooms in enumerate(LEVELS.values()) for room in rooms}


@dataclass(frozen=True)
class Arrow:
    """One import of a file of ours by another; ``kind`` is "run" (when it is imported), "lazy" or "type"."""

    source: str
    target: str
    line: int
    kind: str

    def __str__(self):
        return f"{self.source}:{self.line} imports {self.target} ({self.kind})"


def modules(root):
    """Dotted name -> file, of a package and all that is in it, or of the scripts in a folder that is no package."""
    package = (root.name,) if (root / "__init__.py").exists() else ()
    names = {path: ".".join((*package, *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def room(module):
    """The room of a module; the package itself is ``__init__``, and `python -m` is a command."""
    name = module.split(".")[1] if "." in module else "__init__"
    return "cli" if name == "__main__" else name


def arrows(root):
    """Every import of one file below ``root`` by another, whenever it happens."""
    files = modules(root)
    own = assigned(files[root.name]) if root.name in files else set()
    return [
        Arrow(source, target, line, kind)
        for source, path in sorted(files.items())
        for name, line, kind in imports(ast.parse(path.read_text(encoding="utf-8")), "run")
        if name not in {f"{root.name}.{constant}" for constant in own}
        for target in [name if name in files else name.rpartition(".")[0]]
        if target in files and target != source
    ]


def assigned(path):
    """Names that a module assigns itself: whoever reads them reads no other file."""
    nodes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
    return {target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)}


def imports(node, kind):
    """(dotted name, line, kind) of all that is imported below a node."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno, kind) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno} imports relatively; write the whole name"
        yield from ((f"{node.module}.{alias.name}", node.lineno, kind) for alias in node.names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from imports(child, "type")
        for child in node.orelse:
            yield from imports(child, kind)
    else:
        if kind == "run" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "lazy"
        for child in ast.iter_child_nodes(node):
            yield from imports(child, kind)


def upward(found, depth):
    """Arrows between rooms that do not point downwards."""
    return [
        str(arrow)
        for arrow in found
        if room(arrow.source) != room(arrow.target) and depth[room(arrow.source)] >= depth[room(arrow.target)]
    ]


def circle(found):
    """The modules of a circle in their order, or an empty list; however and whenever they are imported."""
    targets = {}
    for arrow in found:
        targets.setdefault(arrow.source, []).append(arrow.target)
    done = set()

    def below(module, path):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for target in targets.get(module, []):
            if round_trip := below(target, [*path, module]):
                return round_trip
        done.add(module)
        return []

    return next((round_trip for module in sorted(targets) if (round_trip := below(module, []))), [])


def purpose(path):
    """The first line of a module's docstring; empty without one."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def is_sentence(text):
    """As far as a test can tell."""
    return text[:1].isupper() and text.endswith(".") and not text.endswith("..") and len(text.split()) >= 5


def table():
    """The levels with their rooms and what each is for: the block under "Layers" in docs/concepts.md."""
    files = modules(ROOT)
    lines = []
    for level, rooms in LEVELS.items():
        lines.append(level)
        for name in rooms:
            path = files[ROOT.name if name == "__init__" else f"{ROOT.name}.{name}"]
            lines.append(f"  {name:<18} {purpose(path).replace('``', '`')}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def ours():
    return arrows(ROOT)


def test_every_room_has_its_place():
    assert {room(module) for module in modules(ROOT)} == set(DEPTH)


def test_imports_point_downwards_those_for_types_too(ours):
    assert not upward(ours, DEPTH)


def test_no_files_import_each_other_in_a_circle(ours):
    assert not circle(ours)


def test_no_benchmarks_import_each_other_in_a_circle():
    found = arrows(ROOT.parent / "benchmarks")
    assert len(found) > 20
    assert not circle(found)


@pytest.mark.parametrize("folder", sorted({path.parent for path in ROOT.rglob("*.py")} - {ROOT}), ids=lambda p: p.name)
def test_every_folder_says_in_a_sentence_what_it_is_for(folder):
    assert is_sentence(purpose(folder / "__init__.py")), f"{folder.name}: {purpose(folder / '__init__.py')!r}"


def test_the_table_in_the_docs_is_this_one():
    section = CONCEPTS.read_text(encoding="utf-8").partition("\n## Layers\n")[2].partition("\n## ")[0]
    shown = section.partition("```\n")[2].partition("```")[0]
    assert shown == table(), f"docs/concepts.md, Layers: paste what `python {Path(__file__).name}` prints"


def test_the_files_of_the_reading_order_are_there():
    named = re.findall(
        r"`([\w/]+\.py|[\w/]+/)`", CONCEPTS.read_text(encoding="utf-8").partition("in reading order\n")[2]
    )
    assert len(named) > 50
    assert not [name for name in named if not (ROOT / name).exists()]


# The tests above are worth something only if they would notice.


@pytest.fixture
def bad(tmp_path):
    """Writes a package ``bad`` of the given files and gives its arrows."""

    def made(files):
        root = tmp_path / "bad"
        for name, text in {"__init__.py": "__version__ = '1'\n", **files}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        return arrows(root)

    return made


FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bad.{} import x\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("from bad.top.a import x\n", "run"),
        ("import bad.top.a\n", "run"),
        ("from bad.top import a\n", "run"),
        ("def f():\n    from bad.top.a import x\n", "lazy"),
        ("class A:\n    def f(self):\n        if self:\n            import bad.top.a\n", "lazy"),
        (FOR_TYPES.format("top.a"), "type"),
    ],
)
def test_an_arrow_upwards_is_seen_however_it_is_written(bad, text, kind):
    found = bad({"top/a.py": "", "low/b.py": text})
    assert [(arrow.source, arrow.target, arrow.kind) for arrow in found] == [("bad.low.b", "bad.top.a", kind)]
    assert len(upward(found, {"top": 0, "low": 1})) == 1
    assert not upward(found, {"top": 1, "low": 0})


def test_an_arrow_sideways_is_seen_and_one_within_a_room_is_none(bad):
    assert len(upward(bad({"one/a.py": "", "two/b.py": "import bad.one.a\n"}), {"one": 0, "two": 0})) == 1
    assert not upward(bad({"two/b.py": "", "one/a.py": "import bad.one.c\n", "one/c.py": ""}), {"one": 0, "two": 0})


def test_a_circle_inside_a_room_is_seen_by_run_time_lazy_and_type_imports_together(bad):
    found = bad(
        {
            "room/a.py": "from bad.room.b import x\n",
            "room/b.py": "def f():\n    from bad.room.c import x\n",
            "room/c.py": FOR_TYPES.format("room.a"),
        }
    )
    assert circle(found) == ["bad.room.a", "bad.room.b", "bad.room.c"]
    assert not upward(found, {"room": 0})
    assert not circle([arrow for arrow in found if arrow.kind != "type"])


def test_what_the_package_assigns_itself_is_no_arrow_and_what_it_imports_is(bad):
    assert not bad({"a.py": "from bad import __version__\n"})
    assert [str(arrow) for arrow in bad({"a.py": "from bad import a_name\n"})] == ["bad.a:1 imports bad (run)"]


@pytest.mark.parametrize(
    "text", ["", "Heads.", "built-in heads of all kinds that come along.", "All that is left of it"]
)
def test_what_is_no_sentence_is_noticed(text):
    assert not is_sentence(text)


if __name__ == "__main__":
    print(table(), end="")
