"""Every example runs as a user would run it."""

import os
import re
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from bseq_plugin import Vocabulary
from bseq_plugin.data.partitions import PartitionedSequences

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(python, tmp_path):
    def run(name, processes=1):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        done = python(*(torchrun if processes > 1 else []), EXAMPLES / name, cwd=tmp_path, timeout=240)
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


@pytest.mark.parametrize("processes", [1, 2])
def test_host_to_store(run, processes):
    """The rule's next item comes back from the store, on one process and on two."""
    told = run("host_to_store.py", processes)
    assert int(re.search(r"next item of (\d+)% of 300 users", told)[1]) >= 97
    assert "pipelined modules: 1" in told


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


@pytest.fixture(scope="module")
def ray_python(tmp_path_factory):
    """An environment with Ray: that of BSEQ_RAY_PYTHON, or one that pip makes now (some 100 MB)."""
    if "BSEQ_RAY_PYTHON" in os.environ:
        return os.environ["BSEQ_RAY_PYTHON"]
    folder = tmp_path_factory.mktemp("ray")
    venv.create(folder, with_pip=True)
    packages = ["ray[data]", "pandas", "pyarrow"]
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *packages], check=True, timeout=900)
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sequences_with_ray(ray_python, make_frame, python, tmp_path):
    """Two files with equal times in them: Ray's parts hold the histories that DuckDB's hold, and are trained on."""
    frame = make_frame(n_users=120)[["user_id", "item_id", "timestamp"]]
    frame["timestamp"] = frame["timestamp"].dt.floor("20D")  # many equal times: the order of the log decides
    (tmp_path / "log").mkdir()
    for number, rows in enumerate((frame[:700], frame[700:])):
        rows.to_parquet(tmp_path / "log" / f"{number}.parquet", row_group_size=100)
    log, parts = str(tmp_path / "log" / "*.parquet"), tmp_path / "parts"
    command = [ray_python, EXAMPLES / "sequences_with_ray.py", log, parts, "--partitions", "4", "--cpus", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{len(frame):,} events of 120 users in 4 partitions" in done.stdout
    bseq = ("-m", "bseq_plugin")
    assert python(*bseq, "sequences", parts, "--seal").returncode == 0
    assert python(*bseq, "sequences", log, "--out", tmp_path / "duckdb", "--partitions", "4").returncode == 0
    logs = [PartitionedSequences.open(path) for path in (parts, tmp_path / "duckdb")]
    vocabulary = Vocabulary(np.sort(frame.item_id.unique()), np.ones(frame.item_id.nunique(), np.int64))
    histories = [sequences.read_all(vocabulary) for sequences in logs]
    ours, theirs = (histories.take(np.argsort(histories.user_ids)) for histories in histories)
    for name in ("user_ids", "offsets", "items", "timestamps"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    trained = python(
        *bseq,
        "train",
        parts,
        "--out",
        tmp_path / "run",
        "--set",
        "training.epochs=1",
        "--set",
        "vectors.dim=8",
        timeout=240,
    )
    assert trained.returncode == 0, trained.stderr[-2000:]
