"""Every example runs as a user would run it."""

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(python, tmp_path):
    def run(name):
        done = python(EXAMPLES / name, cwd=tmp_path, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_script_has_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f'"{script.name}"' in source


def test_embed_in_torchrec(run):
    told = run("embed_in_torchrec.py")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", told)]
    assert losses[-1] < 0.2 * losses[0]
    assert "pipelined modules: 2" in told


def test_retrieve_from_pandas(run):
    told = run("retrieve_from_pandas.py")
    assert re.search(r"published v00000001-[0-9a-f]{8}", told)
    new, anonymous, features = told.split("\n\n")[1:]
    # user 0 walked along shelf 0 (items 0..11), and so on
    best = {
        int(user): int(item) for user, item, rank in re.findall(r"^ +(\d+) +(\d+) +(\d) ", new, re.M) if rank == "1"
    }
    assert {user: item // 100 for user, item in best.items()} == {0: 0, 1: 1, 2: 2}
    assert re.search(r"^ +0 +304 +1 ", anonymous, re.M)
    assert "hist_sim_mean" in features


def test_write_an_encoder(run):
    told = run("write_an_encoder.py")
    assert float(re.search(r"'ndcg@10': ([\d.]+)", told)[1]) > 0.9
