"""Benchmarks, one folder a question. ``make bench`` lists them, ``make bench-NAME ARGS="..."`` runs one.

``harness`` has what all of them share. The integrations are imported from this checkout, installed or not.
"""

import sys
from pathlib import Path

sys.path[:0] = sorted(map(str, (Path(__file__).parents[1] / "integrations").glob("bseq-*")))
