"""What every benchmark does beside measuring: it states claims, shows them, and writes one JSON file.

The file is ``benchmarks/results/NAME.json``: ``{"command", "commit", "machine", "figures", "claims"}``. Each claim is
``{"name", "value", "target", "holds"}`` and was computed from the figures of that run.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class Claim(TypedDict):
    """A figure that is held against an aim; a figure that is only shown has the target None."""

    name: str
    value: float
    target: Any
    holds: bool


def claim(name: str, value: float, target: Any, holds: bool) -> Claim:
    """Return a claim whose verdict the caller has reached."""
    return {"name": name, "value": value, "target": target, "holds": bool(holds)}


def at_most(name: str, value: float, target: float | None) -> Claim:
    """Return a claim that holds if the value does not exceed the target, or if there is no target."""
    return claim(name, value, target, target is None or value <= target)


def at_least(name: str, value: float, target: float | None) -> Claim:
    """Return a claim that holds if the value reaches the target, or if there is no target."""
    return claim(name, value, target, target is None or value >= target)


def verdict(one: Claim) -> str:
    """Return ``holds`` or ``MISSED``, and nothing for a figure without a target."""
    if one["target"] is None:
        return ""
    return "holds" if one["holds"] else "MISSED"


def show(claims: Sequence[Claim], width: int, value: str = ".3f", target: str = "") -> None:
    """Print a line for each claim, with the name padded to ``width`` and format specifications for both numbers."""
    for one in claims:
        aim = one["target"] if one["target"] is None else format(one["target"], target)
        print(f"{one['name']:<{width}} {one['value']:{value}}  aim {aim}  {verdict(one)}".rstrip())


def commit() -> str:
    """Return the short hash of the commit that is checked out."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
    return answer.stdout.strip() or "unknown"


def command() -> str:
    """Return the make command that runs this process again; of paths the last part is enough."""
    name = Path(sys.argv[0]).stem
    arguments = shlex.join(Path(word).name if Path(word).exists() else word for word in sys.argv[1:])
    if not arguments:
        return f"make bench-{name}"
    quoted = shlex.quote(arguments) if set(arguments) & set('"$`\\') else f'"{arguments}"'
    return f"make bench-{name} ARGS={quoted}"


def machine(threads: int | None = None) -> str:
    """Return processor, threads (default: torch's) and version of torch."""
    import torch

    return f"{platform.machine()}, {threads or torch.get_num_threads()} threads, torch {torch.__version__}"


def made(threads: int | None = None) -> dict[str, str]:
    """Return how the figures of this process were made."""
    return {"command": command(), "commit": commit(), "machine": machine(threads)}


def last(name: str) -> dict[str, Any]:
    """Return the document of the last run, or one without figures."""
    path = RESULTS / f"{name}.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"figures": {}}
    return document


def write(
    name: str,
    figures: dict[str, Any],
    claims: Sequence[Claim] = (),
    *,
    threads: int | None = None,
    path: Path | None = None,
    **more: Any,
) -> Path:
    """Write the document to ``path``, by default ``benchmarks/results/NAME.json``, and return where it lies.

    ``more`` is added to the document, or replaces what ``made`` says.
    """
    path = path or RESULTS / f"{name}.json"
    document = {**made(threads), **more, "figures": figures, "claims": list(claims)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
