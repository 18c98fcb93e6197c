"""docs/faults.md: every row names tests, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (\d+) \|.*\| (.+) \|$", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"), re.M)
NAMED = [(int(number), test) for number, cell in ROWS for test in re.findall(r"`((?:tests|integrations)/[^`]+)`", cell)]
SUITES = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bseq_plugin" / "testing").glob("*.py"))


def test_every_fault_has_a_row_and_every_row_a_test():
    assert [int(number) for number, _ in ROWS] == list(range(1, 56))
    assert {number for number, _ in NAMED} == set(range(1, 56))


@pytest.mark.parametrize(("number", "test"), NAMED)
def test_every_test_that_is_named_is_there(number, test):
    path, _, name = test.partition("::")
    place = ROOT / path
    assert place.exists()
    if place.is_file():
        assert f"def {name}(" in place.read_text(encoding="utf-8")
    else:  # a test of a conformance suite, run by the subclasses below the folder
        assert f"def {name}(" in SUITES
        assert any("Tests)" in file.read_text(encoding="utf-8") for file in place.glob("test_*.py"))
