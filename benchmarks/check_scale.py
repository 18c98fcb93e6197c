"""Equality on 1, 2 and 4 ranks, checkpoints from any to any, kills and bad input: `make check-scale`.

Runs the tests of these subjects, the slow ones too, prints one line for each and writes
benchmarks/results/check-scale.json. Ends with 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "check-scale.json"
TESTS = tuple(
    f"test_{name}.py" for name in ("equality", "positions", "restarts", "refusals", "partitions", "processes")
)
LIMIT_SECONDS = 15 * 60


def commit() -> str:
    """The commit of the checkout."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout.strip() or "unknown"


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
        found = [
            {"name": case.get("name"), "value": round(float(case.get("time", 0)), 1), "unit": "seconds",
             "holds": case.find("failure") is None and case.find("error") is None}
            for case in cases
        ]  # fmt: skip
    seconds = time.perf_counter() - started
    claims = [*found, {"name": "all within a quarter of an hour", "value": round(seconds, 1), "target": LIMIT_SECONDS,
                       "unit": "seconds", "holds": seconds < LIMIT_SECONDS}]  # fmt: skip
    for claim in claims:
        print(f"{'holds ' if claim['holds'] else 'MISSED'} {claim['value']:>7} s  {claim['name']}")
    RESULTS.parent.mkdir(exist_ok=True)
    document = {
        "command": "make check-scale",
        "commit": commit(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "figures": {"tests": len(found), "seconds": seconds},
        "claims": claims,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
