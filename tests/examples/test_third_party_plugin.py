"""The plugin of examples/bseq-window-mean, built and installed by pip into an environment of its own."""

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "bseq-window-mean"
INTEGRATIONS = {"dlrm": "bseq-dlrm", "two_tower": "bseq-two-tower"}

BROKEN = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "bseq-broken"
version = "9.8.7"

[project.entry-points.bseq]
broken = "bseq_broken"

[tool.setuptools]
py-modules = ["bseq_broken"]
"""


class Environment:
    """An environment that has what this one has, and more."""

    def __init__(self, folder):
        self.folder = folder
        venv.create(folder / "env", symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        here = subprocess.run(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        # addsitedir, not a plain path: an editable install is a .pth file there
        parents = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        lines = "".join(f"import site; site.addsitedir({parent!r})\n" for parent in parents)
        (Path(here) / "parent.pth").write_text(lines, encoding="utf-8")

    def run(self, *command, code=0):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("BSEQ_", "PYTHONPATH"))}
        done = subprocess.run(
            [self.python, *command], cwd=self.folder, env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def bseq(self, *command, code=0):
        return self.run("-m", "bseq_plugin.cli.main", *command, code=code)

    def install(self, source):
        # without isolation and dependencies nothing is fetched
        command = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", source]
        self.run(*command)


def installed_here():
    """Names in this environment that the plugins could have put there."""
    return sorted(path.name for path in Path(sysconfig.get_path("purelib")).glob("bseq_*"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    made = Environment(folder)
    made.parent_before = installed_here()
    # copied, because a build leaves its products in the source
    products = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(EXAMPLE, folder / "window", ignore=products)
    for name in INTEGRATIONS.values():
        shutil.copytree(ROOT / "integrations" / name, folder / name, ignore=products)
        made.install(folder / name)
    broken = folder / "broken"
    broken.mkdir()
    (broken / "pyproject.toml").write_text(BROKEN, encoding="utf-8")
    (broken / "bseq_broken.py").write_text("import a_module_that_is_not_there\n", encoding="utf-8")
    made.install(folder / "window")
    made.install(broken)
    made.parent_after = installed_here()
    return made


@pytest.fixture(scope="module")
def listed(environment):
    return {info["name"]: info for info in json.loads(environment.bseq("plugins", "--json").stdout)}


def test_the_environment_of_the_tests_stays_as_it_was(environment):
    assert environment.parent_after == environment.parent_before


def test_is_listed_with_its_distribution_and_parts(listed):
    info = listed["window_mean"]
    assert (info["distribution"], info["version"]) == ("bseq-window-mean", "0.1.0")
    assert info["parts"]["encoder"] == ["window_mean"]
    assert info["error"] is None


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_an_integration_comes_in_by_its_entry_point(listed, name):
    info = listed[name]
    assert (info["distribution"], info["hooks"], info["error"]) == (INTEGRATIONS[name], ["bseq_attach"], None)


def test_a_broken_plugin_is_listed_with_its_cause_and_the_rest_works(listed):
    info = listed["broken"]
    assert (info["distribution"], info["version"]) == ("bseq-broken", "9.8.7")
    assert "a_module_that_is_not_there" in info["error"]
    assert {"causal", "mean"} <= set(listed["builtin"]["parts"]["encoder"])


def test_trains_by_name(environment):
    rows = [f"{user},{(user + step) % 9},{1_700_000_000 + step}" for user in range(20) for step in range(5)]
    (environment.folder / "tiny.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows), encoding="utf-8")
    settings = ("encoder=window_mean", "encoder.window=2", "vectors.dim=8", "training.epochs=1")
    command = ["train", "tiny.csv", "--out", "run", "--timestamp-unit", "s"]
    for setting in settings:
        command += ["--set", setting]
    environment.bseq(*command)
    recipe = json.loads((environment.folder / "run" / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["encoder"]["name"] == "window_mean"
    assert json.loads((environment.folder / "run" / "run.json").read_text(encoding="utf-8"))["status"] == "complete"


def test_an_unknown_encoder_names_what_there_is_and_what_failed(environment):
    command = ["train", "tiny.csv", "--out", "other", "--timestamp-unit", "s", "--set", "encoder=from_broken"]
    told = environment.bseq(*command, code=2).stderr
    assert "from_broken" in told
    for name in ("causal", "mean", "window_mean", "bseq-broken", "a_module_that_is_not_there"):
        assert name in told
    assert not (environment.folder / "other").exists()


def test_passes_its_own_tests(environment):
    done = environment.run("-m", "pytest", "-q", "window/tests")
    assert " passed" in done.stdout
