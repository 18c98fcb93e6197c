"""Every benchmark still fits the package: a name that has gone would be found by nobody until it is run."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EXTRAS = {"optuna", "sklearn"}  # of benchmarks alone; what needs them is not imported without
IMPORT_ALL = f"""
import importlib, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {EXTRAS!r}:
            raise
    print(name)
"""


def test_all_benchmarks_can_be_imported():
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        env={"PYTHONPATH": ":".join(paths), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names
