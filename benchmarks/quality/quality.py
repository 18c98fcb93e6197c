"""What the recipe `auto` reaches, leave one out, beside the baselines, and what is claimed of it on Beauty.

    make bench-quality ARGS="sequences.txt --seeds 0,1,2"      # `user item item ...` lines, oldest first

Runs `bseq benchmark --recipe auto --blend`. On the standard Beauty file (22,363 users, 12,101 items) figures are held
against the aims of docs/results.md. Writes benchmarks/results/quality.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness

BEAUTY = {"users": 22_363, "items": 12_101}
MINUTES = 10.0


def claims(document: dict[str, Any]) -> list[harness.Claim]:
    """Return what is aimed at on Beauty, from the document of `bseq benchmark`."""
    slowest = max(row["train_seconds"] for row in document["seeds"]) / 60
    return [
        harness.at_least("NDCG@10, mean", document["mean"]["ndcg@10"], 0.0600),
        harness.at_least("Recall@10, mean", document["mean"]["recall@10"], 0.098),
        harness.at_least("NDCG@10 of the blend, mean", document["blend_mean"]["ndcg@10"], 0.064),
        harness.at_most("minutes of the longest training", slowest, MINUTES),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipe", default="auto")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = ["benchmark", str(chosen.sequences), "--recipe", chosen.recipe, "--seeds", chosen.seeds, "--blend"]
        subprocess.run([sys.executable, "-m", "bseq_plugin.cli.main", *command, "--json", str(figures)], check=True)
        document = json.loads(figures.read_text(encoding="utf-8"))
    ndcg = [row["ndcg@10"] for row in document["seeds"]]
    spread = statistics.stdev(ndcg) if len(ndcg) > 1 else 0.0
    print(f"NDCG@10 {statistics.mean(ndcg):.4f} ± {spread:.4f} (sd of {len(ndcg)} seeds)")
    held = claims(document) if BEAUTY.items() <= document["dataset"].items() else []
    harness.show(held, 40, "8.4f", ".4f")
    harness.write("quality", document, held)


if __name__ == "__main__":
    main()
