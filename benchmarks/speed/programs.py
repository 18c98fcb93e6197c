"""Commands in processes of their own: how long they take, how much memory they need, which figures they print."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from typing import Any


def run(command: list[str]) -> tuple[str, float, float]:
    """Return (stdout, seconds, peak MB of the process) of a command that must succeed."""
    measured = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
        "sys.exit(done.returncode)\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", measured, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    text, _, peak = done.stdout.rpartition("PEAK")
    return text, time.perf_counter() - started, float(peak)


def peer(program: dict[str, str]) -> dict[str, float]:
    """Return the figures named in peers.toml, from the JSON object that the program prints last."""
    text, seconds, peak = run(shlex.split(program["command"]))
    document = json.loads(text[text.rindex("\n{") :] if "\n{\n" in text else text[text.index("{") :])

    def figure(path: str) -> float:
        value: Any = document
        for key in path.split("."):
            value = value[key]
        return float(value)

    figures = {name: figure(path) for name, path in program.items() if name != "command"}
    return {"peak_mb": peak, "command_seconds": seconds, **figures}
