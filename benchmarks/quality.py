"""What the recipe `auto` reaches, leave one out, beside the baselines, and what is claimed of it on Beauty.

    python benchmarks/quality.py sequences.txt --seeds 0,1,2      # `user item item ...` lines, oldest first

Runs `bseq benchmark --recipe auto --blend`. On the standard Beauty file (22,363 users, 12,101 items) figures are held
against the aims of docs/results.md. Writes benchmarks/results/quality.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from speed import commit

RESULTS = Path(__file__).parent / "results" / "quality.json"
BEAUTY = {"users": 22_363, "items": 12_101}
MINUTES = 10.0


def claims(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, value, target, and whether it holds."""
    slowest = max(row["train_seconds"] for row in document["seeds"]) / 60
    values = [
        ("NDCG@10, mean", document["mean"]["ndcg@10"], 0.0600, True),
        ("Recall@10, mean", document["mean"]["recall@10"], 0.098, True),
        ("NDCG@10 of the blend, mean", document["blend_mean"]["ndcg@10"], 0.064, True),
        ("minutes of the longest training", slowest, MINUTES, False),
    ]
    return [
        {"name": name, "value": value, "target": target, "holds": value >= target if more else value <= target}
        for name, value, target, more in values
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipe", default="auto")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = ["benchmark", str(chosen.sequences), "--recipe", chosen.recipe, "--seeds", chosen.seeds, "--blend"]
        subprocess.run([sys.executable, "-m", "bseq_plugin.cli.main", *command, "--json", str(found)], check=True)
        document = json.loads(found.read_text(encoding="utf-8"))
    ndcg = [row["ndcg@10"] for row in document["seeds"]]
    spread = statistics.stdev(ndcg) if len(ndcg) > 1 else 0.0
    print(f"NDCG@10 {statistics.mean(ndcg):.4f} ± {spread:.4f} (sd of {len(ndcg)} seeds)")
    held = claims(document) if BEAUTY.items() <= document["dataset"].items() else []
    for claim in held:
        verdict = "holds" if claim["holds"] else "MISSED"
        print(f"{claim['name']:<40} {claim['value']:8.4f}  aim {claim['target']:.4f}  {verdict}")
    RESULTS.parent.mkdir(exist_ok=True)
    result = {
        "command": shlex.join(["python", "benchmarks/quality.py", *(Path(a).name for a in sys.argv[1:])]),
        "commit": commit(),
        "machine": platform.machine(),
        "figures": document,
        "claims": held,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
