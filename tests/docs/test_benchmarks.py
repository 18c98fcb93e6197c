"""Every benchmark still fits the package: nobody would notice that a name has gone until the benchmark is run."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
EXTRAS = {"optuna", "sklearn"}  # of benchmarks alone; what needs them is not imported without
IMPORT_ALL = f"""
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {EXTRAS!r}:
            raise
    print(name)
"""
RUNNABLE = {
    path.stem: path for path in BENCHMARKS.glob("*/*.py") if "\nif __name__ ==" in path.read_text(encoding="utf-8")
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.harness")


def test_all_benchmarks_can_be_imported():
    names = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in BENCHMARKS.rglob("*.py"))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        env={"PYTHONPATH": ":".join([str(ROOT), *filter(None, sys.path)]), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names


def test_make_lists_what_can_be_run_and_nothing_else():
    listed = subprocess.run(["make", "bench"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert sorted(re.findall(r"^make bench-(\w+) +\S", listed, re.M)) == sorted(RUNNABLE)
    assert all((path.parent / "__init__.py").is_file() for path in RUNNABLE.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_benchmark_that_a_page_names_can_be_run(page):
    named = re.findall(r"make bench-(\w+)", page.read_text(encoding="utf-8"))
    assert [name for name in named if name not in {*RUNNABLE, "NAME"}] == []


def test_a_claim_holds_on_the_right_side_of_its_target(harness):
    for value in (0.9, 1.0, 1.1):
        assert harness.at_most("x", value, 1.0)["holds"] == (value <= 1.0)
        assert harness.at_least("x", value, 1.0)["holds"] == (value >= 1.0)
    assert harness.at_most("x", 1e9, None) == {"name": "x", "value": 1e9, "target": None, "holds": True}


def test_claims_are_shown_with_their_aims_and_verdicts(harness, capsys):
    claims = [
        harness.at_most("seconds", 2.0, 1.0),
        harness.at_least("share", 0.5, 0.5),
        harness.at_most("n", 3.0, None),
    ]
    harness.show(claims, 8, "6.2f", ".1f")
    told = "seconds    2.00  aim 1.0  MISSED\nshare      0.50  aim 0.5  holds\nn          3.00  aim None\n"
    assert capsys.readouterr().out == told


def test_a_document_says_how_it_was_made(harness, tmp_path, monkeypatch):
    data = tmp_path / "sequences.txt"
    data.write_text("1 2 3\n", encoding="utf-8")
    words = [str(data), "--rows", "one interest; routing"]
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "speed" / "speed.py"), *words])
    path = harness.write(
        "speed", {"ms": 1.0}, [harness.at_most("ms", 1.0, 2.0)], threads=3, path=tmp_path / "a" / "b.json"
    )
    document = json.loads(path.read_text(encoding="utf-8"))
    assert sorted(document) == ["claims", "command", "commit", "figures", "machine"]
    assert document["figures"] == {"ms": 1.0}
    assert document["claims"] == [{"name": "ms", "value": 1.0, "target": 2.0, "holds": True}]
    assert "3 threads" in document["machine"]
    make, target, arguments = shlex.split(document["command"])
    assert (make, target) == ("make", "bench-speed")
    assert shlex.split(arguments.removeprefix("ARGS=")) == ["sequences.txt", *words[1:]]


def test_what_was_written_last_is_read_again(harness, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert harness.last("tasks") == {"figures": {}}
    harness.write("tasks", {"churn": 0.8}, commit="1234567")
    assert harness.last("tasks")["figures"] == {"churn": 0.8}
    assert harness.last("tasks")["commit"] == "1234567"


def test_the_log_is_newest_first_and_its_links_lead_somewhere():
    log = (BENCHMARKS / "LOG.md").read_text(encoding="utf-8")
    days = re.findall(r"^## (\d{4}-\d\d-\d\d)$", log, re.M)
    assert days == sorted(days, reverse=True)
    assert len(days) == len(set(days)) == log.count("\n## ")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", log):
        assert (BENCHMARKS / target).exists(), target
