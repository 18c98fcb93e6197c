"""Equality on 1, 2 and 4 ranks, checkpoints from any to any, kills and bad input: `make check-scale`.

Runs the tests of these subjects, the slow ones too, prints one line for each and writes
benchmarks/results/check-scale.json; a test's value is its seconds. Ends with 1 if one fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import ROOT

TESTS = tuple(
    f"test_{name}.py" for name in ("equality", "positions", "restarts", "refusals", "partitions", "processes")
)
LIMIT_SECONDS = 15 * 60


def passed(case: ElementTree.Element) -> bool:
    """Return whether a test of the report neither failed nor broke."""
    return case.find("failure") is None and case.find("error") is None


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "Anything else is handed to pytest, for example: -k kill"
    _, asked = parser.parse_known_args()
    files = [str(path) for name in TESTS if (path := ROOT / "tests" / "training" / name).exists()]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "slow or not slow", "-q", "--show-capture=no", f"--junitxml={report}", *asked]
        done = subprocess.run([sys.executable, "-m", "pytest", *options, *files], check=False, cwd=ROOT)
        if not report.exists():
            raise SystemExit(f"pytest ended with {done.returncode} and without a report: there is no verdict")
        cases = ElementTree.parse(report).iter("testcase")
        claims = [
            harness.claim(str(case.get("name")), round(float(case.get("time", 0)), 1), None, passed(case))
            for case in cases
        ]
    seconds = round(time.perf_counter() - started, 1)
    figures = {"tests": len(claims), "seconds": seconds}
    claims.append(harness.at_most("all within a quarter of an hour", seconds, LIMIT_SECONDS))
    for claim in claims:
        print(f"{'holds ' if claim['holds'] else 'MISSED'} {claim['value']:>7} s  {claim['name']}")
    harness.write("check-scale", figures, claims, command="make check-scale")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
