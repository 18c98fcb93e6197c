"""SIGKILL at any moment, then ``--resume``: as if nothing had happened.

The first test kills at the n-th change that training makes to its folder, as Python sees them: before a folder is made
or something is renamed or removed, and when a file has been opened and emptied; forks of one process make that quick.
The last one kills the real command at moments that nobody chose.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

DRIVER = """
import json, os, signal, sys, traceback
from pathlib import Path
import pandas as pd, torch
torch.set_num_threads(1)
import bseq_plugin
from bseq_plugin import Events, Recipe, plugin_manager, train

source, folder, recipe, share = sys.argv[1], Path(sys.argv[2]), Recipe(**json.loads(sys.argv[3])), float(sys.argv[4])
plugin_manager().infos()

def hook(out, limit, counted):
    def see(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            changes = isinstance(path, str) and path.startswith(out) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if changes:
            counted[0] += 1
            if counted[0] == limit:
                if event == "open" and flags & os.O_TRUNC:  # the worst moment is after the opening: nothing is in it
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
                os.kill(os.getpid(), signal.SIGKILL)
    return see

def run(out, limit=None, count_to=None):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        events, counted = Events.from_frame(pd.read_parquet(source)), [0]
        if limit or count_to:
            sys.addaudithook(hook(str(out), limit, counted))
        # float32: what "auto" is gets measured, and two runs may come to different ends
        train(events, recipe, out, resume=True, progress=False, matmul="float32")
        if count_to:
            count_to.write_text(str(counted[0]))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

def state(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k not in ("seconds", "events_per_second")} for line in lines]
    info = {k: v for k, v in json.loads((out / "run.json").read_text()).items() if k != "train_seconds"}
    weights = [(out / "model" / name).read_bytes().hex() for name in ("encoder.safetensors", "items.safetensors")]
    return lines, info, weights

assert run(folder / "whole", count_to=folder / "count") == 0
total, expected = int((folder / "count").read_text()), state(folder / "whole")
n_points = max(2, int(total * share))
problems, killed = [], 0
for number in range(n_points):
    limit = 1 + number * (total - 1) // (n_points - 1)
    out = folder / f"run-{limit}"
    codes = [run(out, limit), run(out, 1 + limit * 7 % total), run(out)]
    killed += codes.count(-signal.SIGKILL)
    if codes[0] not in (0, -signal.SIGKILL) or codes[1] not in (0, -signal.SIGKILL) or codes[2] != 0:
        problems.append([limit, codes])
    elif state(out) != expected:
        problems.append([limit, "differs", state(out)[:2]])
print(json.dumps({"total": total, "points": n_points, "killed": killed, "problems": problems}))
"""


def kill_everywhere(python, source, folder, recipe, share, timeout):
    recipe = recipe.replace(encoder={"dropout": 0.2}, split={"patience": 3}, training={"epochs": 3})
    given = json.dumps(recipe.as_dict())
    done = python("-c", DRIVER, source, folder, given, share, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == [], (found, done.stderr[-3000:])
    assert found["killed"] > found["points"]
    return found


def test_killed_before_any_of_its_steps_a_run_resumes(python, tiny_source, tiny_recipe, tmp_path):
    found = kill_everywhere(python, tiny_source, tmp_path, tiny_recipe, 0.25, 240)
    assert found["total"] > 40


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_before_each_of_its_steps_a_run_resumes(python, tiny_source, tiny_recipe, tmp_path):
    kill_everywhere(python, tiny_source, tmp_path, tiny_recipe, 1.0, 1100)


@pytest.mark.timeout(400)
def test_the_command_killed_at_random_moments_resumes(
    tiny_source, tiny_settings, tmp_path, read_lines, weights, python
):
    """The same run is killed six times; each attempt goes on after the one before it."""
    command = [
        "-m",
        "bseq_plugin.cli.main",
        "train",
        tiny_source,
        *tiny_settings,
        "--set",
        "training.epochs=40",
        "--set",
        "split.patience=40",
        "--matmul",
        "float32",
    ]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert python(*command, "--out", whole).returncode == 0
    moments = random.Random(5)
    killed = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, *map(str, command), "--out", str(out), "--resume"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        # starting takes seconds and an epoch a tenth: wait until it is at work, then a moment of the next few epochs
        before = len(read_lines(out)) if (out / "metrics.jsonl").exists() else 0
        waited = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < waited:
            if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") > before:
                break
            time.sleep(0.01)
        time.sleep(moments.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 4  # a quick machine may have finished before the last ones
    assert json.loads((out / "run.json").read_text())["status"] in ("training", "complete")
    done = python(*command, "--out", out, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_lines(out) == read_lines(whole)
    assert weights(out) == weights(whole)
