"""Every example runs as a user would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, folder):
    # one thread: two of them on a busy machine wait for each other longer than they compute
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_has_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f'"{script.name}"' in source


def test_embed_in_torchrec(tmp_path):
    told = run("embed_in_torchrec.py", tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", told)]
    assert losses[-1] < 0.2 * losses[0]
    assert "pipelined modules: 2" in told


def test_retrieve_from_pandas(tmp_path):
    told = run("retrieve_from_pandas.py", tmp_path)
    assert re.search(r"published v00000001-[0-9a-f]{8}", told)
    new, anonymous, features = told.split("\n\n")[1:]
    # user 0 walked along shelf 0 (items 0..11), and so on
    best = {
        int(user): int(item) for user, item, rank in re.findall(r"^ +(\d+) +(\d+) +(\d) ", new, re.M) if rank == "1"
    }
    assert {user: item // 100 for user, item in best.items()} == {0: 0, 1: 1, 2: 2}
    assert re.search(r"^ +0 +304 +1 ", anonymous, re.M)
    assert "hist_sim_mean" in features


def test_write_an_encoder(tmp_path):
    told = run("write_an_encoder.py", tmp_path)
    assert float(re.search(r"'ndcg@10': ([\d.]+)", told)[1]) > 0.9
