"""Parts of benchmarks/ranking_worth.py; bseq-dlrm is taken from the checkout, installed or not."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "integrations" / "bseq-dlrm"))
