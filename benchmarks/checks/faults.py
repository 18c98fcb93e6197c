"""Run every test that docs/faults.md names, the slow ones included, and say for each fault whether it is met.

    make check-faults                           # all rows; several minutes
    make check-faults ARGS="--rows 27,32"       # some of them
    make check-faults ARGS=--quick              # without the tests marked slow

Tests marked `gpu` need a GPU and are left out. Writes benchmarks/results/faults.json; ends with 1 if a row fails.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter

import pytest

from benchmarks import harness
from benchmarks.harness import ROOT

ROW = re.compile(r"^\| (\d+) \| (.*?) \| .* \| (.+) \|$", re.M)
TEST = re.compile(r"`((?:tests|integrations)/[^`]+)`")


class Named:
    """Keeps the tests that are named, and what came of each."""

    def __init__(self, rows: dict[int, tuple[str, list[str]]]) -> None:
        self.rows_of = {
            test: [n for n, (_, tests) in rows.items() if test in tests] for _, ts in rows.values() for test in ts
        }
        self.rows: dict[str, set[int]] = {}
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect whatever no row names."""
        for item in items:
            path, name = item.path.relative_to(ROOT).as_posix(), getattr(item, "originalname", item.name)
            for test, numbers in self.rows_of.items():
                place, _, wanted = test.partition("::")
                if name == wanted and (path == place or path.startswith(f"{place}/")):
                    self.rows.setdefault(item.nodeid, set()).update(numbers)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self.rows])
        items[:] = [item for item in items if item.nodeid in self.rows]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst of set-up, call and tear-down."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome

    def verdicts(self) -> dict[int, Counter[str]]:
        """Outcomes of each row's tests."""
        found: dict[int, Counter[str]] = {}
        for nodeid, outcome in self.outcomes.items():
            for number in self.rows[nodeid]:
                found.setdefault(number, Counter())[outcome] += 1
        return found


def rows_of(text: str) -> dict[int, tuple[str, list[str]]]:
    """Number -> (fault, tests) of the tables in docs/faults.md."""
    return {int(n): (fault, TEST.findall(cell)) for n, fault, cell in ROW.findall(text)}


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="numbers with commas; default: all")
    parser.add_argument("--quick", action="store_true", help="leave out the tests marked slow")
    chosen = parser.parse_args()
    rows = rows_of((ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))
    if chosen.rows:
        rows = {int(number): rows[int(number)] for number in chosen.rows.split(",")}
    named, started = Named(rows), time.perf_counter()
    places = sorted({test.partition("::")[0] for _, tests in rows.values() for test in tests})
    marks = "not gpu and not slow" if chosen.quick else "not gpu"
    pytest.main(["-q", "--rootdir", str(ROOT), "-m", marks, *(str(ROOT / place) for place in places)], plugins=[named])
    verdicts, claims = named.verdicts(), []
    for number, (fault, _) in rows.items():
        counts = verdicts.get(number, Counter())
        holds = counts["passed"] > 0 and counts.total() == counts["passed"]
        claims.append(harness.claim(f"{number} {fault}", counts["passed"], counts.total(), holds))
        print(
            f"{'met   ' if holds else 'NOT MET'} {number:>3} {fault:<78} {counts['passed']} of {counts.total()} tests"
        )
    figures = {"tests": len(named.outcomes), "seconds": round(time.perf_counter() - started, 1)}
    harness.write("faults", figures, claims)
    return 0 if all(claim["holds"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
