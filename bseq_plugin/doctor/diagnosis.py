"""The checks of ``bseq doctor``."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.version import Version

from bseq_plugin.errors import BseqError

OPENMP = re.compile(r"^lib(g|i)?omp[-.\d]*")
SMOKE_SECONDS = 180


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``bad`` means that something will not work."""

    state: Literal["ok", "note", "bad"]
    what: str
    found: str
    remedy: str = ""


def diagnose(store: Path | None = None, *, smoke: bool = True) -> list[Finding]:
    """All checks, with those of a store if one is given; none of them changes anything.

    ``smoke``: also let two processes train a step, which takes longest.
    """
    checks = [_python, _torch_pair, _torchrec, _fbgemm_wheels, _faiss, _openmp]
    with contextlib.suppress(ImportError):  # told of by the check of the pair
        import torch  # noqa: F401

        checks += [_devices, _backends, _threads]
    checks.append(_plugins)
    if smoke:
        checks.append(_two_processes)
    findings = [finding for check in checks for finding in check()]
    return findings if store is None else [*findings, *_store(store)]


def version_of(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.machine()}")


def _torch_pair() -> Iterator[Finding]:
    """fbgemm 1.X is built against torch 2.(X + 5); any other pair fails in ways that do not name the cause."""
    torch = version_of("torch")
    fbgemm = version_of("fbgemm-gpu-cpu") or version_of("fbgemm-gpu")
    if torch is None:
        yield Finding("bad", "torch", "not installed", "pip install torch==2.13.0")
        return
    yield Finding("ok", "torch", torch)
    if fbgemm is None:
        remedy = "CPU: pip install --no-deps -r requirements/cpu.txt; GPU: pip install 'bseq-plugin[gpu]'"
        yield Finding("bad", "fbgemm", "not installed", remedy)
        return
    expected = f"2.{Version(fbgemm).minor + 5}"
    if f"{Version(torch).major}.{Version(torch).minor}" == expected:
        yield Finding("ok", "fbgemm", f"{fbgemm}, built for torch {expected}")
    else:
        remedy = f"install torch {expected}.*, or fbgemm 1.{Version(torch).minor - 5}"
        yield Finding("bad", "fbgemm", f"{fbgemm} is built for torch {expected}, here is {torch}", remedy)


def _torchrec() -> Iterator[Finding]:
    version = version_of("torchrec")
    if version is None:
        yield Finding("bad", "torchrec", "not installed", "pip install --no-deps torchrec==1.8.0")
        return
    done = subprocess.run([sys.executable, "-c", "import torchrec"], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("bad", "torchrec", f"{version} does not import: {last}", "see the lines on torch and fbgemm")
    else:
        yield Finding("ok", "torchrec", version)


def _fbgemm_wheels() -> Iterator[Finding]:
    both = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if version_of(name)]
    if len(both) > 1:
        remedy = "pip uninstall both, then install the one for this machine: they overwrite each other's files"
        yield Finding("bad", "fbgemm wheels", " and ".join(both), remedy)


def _faiss() -> Iterator[Finding]:
    wheels = [name for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12") if version_of(name)]
    if not wheels:
        yield Finding("note", "faiss", "not installed; the exact index works without it", "pip install faiss-cpu")
    elif len(wheels) > 1:
        remedy = "pip uninstall all of them, then install one: they share the module name faiss"
        yield Finding("bad", "faiss wheels", " and ".join(wheels), remedy)
    else:
        yield Finding("ok", "faiss", f"{wheels[0]} {version_of(wheels[0])}")


LOADED = """
import sys
for name in ("torch", "faiss"):
    try: __import__(name)
    except ImportError: pass
print("\\n".join(sorted({line.split()[-1] for line in open("/proc/self/maps") if line.count("/") })))
"""


def _openmp() -> Iterator[Finding]:
    """torch and FAISS may each bring an OpenMP of their own; each then has its own threads, and forks can hang."""
    if not os.path.exists("/proc/self/maps"):
        return
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=False)
    yield openmp_finding(done.stdout.split("\n"))


def openmp_finding(paths: list[str]) -> Finding:
    """From the files that a process with torch and FAISS has mapped."""
    runtimes = sorted(path for path in paths if OPENMP.search(path.rpartition("/")[2]))
    if len(runtimes) <= 1:
        return Finding("ok", "OpenMP", runtimes[0] if runtimes else "none is loaded")
    remedy = (
        "harmless on Linux as long as torch is imported before FAISS (bseq does) and nobody searches after a fork; "
        "set OMP_NUM_THREADS, which both obey"
    )
    return Finding("note", "OpenMP", f"{len(runtimes)} in one process: {', '.join(runtimes)}", remedy)


def _store(path: Path) -> Iterator[Finding]:
    from bseq_plugin.store.store import Store

    try:
        version = Store(path).current()
    except BseqError as error:
        yield Finding("bad", "store", str(error), "bseq store verify STORE; bseq store rollback STORE; bseq publish")
        return
    yield Finding("ok", "store", f"{version.name} is intact")
    if not os.access(path, os.W_OK):
        yield Finding("note", "store", f"{str(path)!r} can't be written to: it can be served, not published to")


def _devices() -> Iterator[Finding]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}" if device == "cuda" else "CPU"
    yield Finding("ok", "device", name)
    try:
        from bseq_plugin.doctor.capabilities import shardings, table_optimizers
    except ImportError:  # told of by the checks of torchrec and fbgemm
        return
    offered, missing = shardings(device)
    yield Finding("ok", "sharding", ", ".join(offered))
    for kind, reason in missing.items():
        yield Finding("note", f"sharding {kind}", f"not offered: {reason}", "use --sharding row_wise")
    works, fails = table_optimizers(device)
    if works:
        yield Finding("ok", "table optimizers", ", ".join(works))
    else:
        yield Finding("bad", "table optimizers", "fbgemm has none here", "see the lines on torch and fbgemm")
    for kind, reason in fails.items():
        yield Finding("note", f"optimizer {kind}", reason, "use training.table.name = 'rowwise_adagrad'")


def _backends() -> Iterator[Finding]:
    import torch
    from torch import distributed as dist

    there = [name for name, has in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if has]
    needed = "nccl" if torch.cuda.is_available() else "gloo"
    if needed in there:
        yield Finding("ok", "backends", ", ".join(there))
    else:
        told = f"{needed} is missing; there are: {', '.join(there) or '(none)'}"
        yield Finding("bad", "backends", told, "install a build of torch with it: pip install --force-reinstall torch")


def _two_processes() -> Iterator[Finding]:
    if version_of("torch") is None or version_of("torchrec") is None:
        return
    command = [sys.executable, "-m", "bseq_plugin.doctor.smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    remedy = "the host's name has to resolve: add it to the hosts file, or set GLOO_SOCKET_IFNAME=lo; see also above"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=SMOKE_SECONDS
        )
    except subprocess.TimeoutExpired:
        yield Finding("bad", "two processes", f"did not train a step within {SMOKE_SECONDS} s", remedy)
        return
    if done.returncode or done.stdout.strip() != "fine":
        told = [line for line in done.stderr.splitlines() if line.startswith("rank ")]
        last = (told or done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("bad", "two processes", f"can't train together (gloo): {last[:300]}", remedy)
    else:
        yield Finding("ok", "two processes", "shard a table and train a step together (gloo)")


def _threads() -> Iterator[Finding]:
    import torch

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    if threads > available:
        remedy = f"set OMP_NUM_THREADS={available}"
        yield Finding("note", "threads", f"torch uses {threads} threads on {available} cores", remedy)
    else:
        yield Finding("ok", "threads", f"{threads} of {available} cores")


def _plugins() -> Iterator[Finding]:
    from bseq_plugin.plugins import plugin_manager

    try:
        infos = plugin_manager().infos()
    except BseqError as error:
        yield Finding("bad", "plugins", str(error), "")
        return
    for info in infos:
        if info.error:
            remedy = f"repair or uninstall {info.distribution}, or set BSEQ_DISABLE_PLUGINS={info.name}"
            yield Finding("bad", f"plugin {info.name}", info.error, remedy)
        else:
            yield Finding("ok", f"plugin {info.name}", f"{info.distribution} {info.version}")
