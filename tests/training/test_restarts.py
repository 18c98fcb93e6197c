"""``torchrun --max-restarts``: every start of a job meets its own processes, not the dead of the start before."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

COMMAND = ("-m", "bseq_plugin", "train")
PAIR = ("--nproc-per-node", "2")


def test_ranks_meet_those_of_their_own_start(ranks):
    """Five starts by one store, each killed: in two of them one rank came alone."""
    met = ranks([{"name": "starts", "do": "restarted"}], timeout=120)["starts"]
    assert len(met) == 3
    for start in met:
        assert start[0] is not None
        assert start[0] == start[1]
    assert len({process for start in met for process in start[0]}) == 6  # nobody was met in two starts


class Job:
    """``torchrun`` in a process of its own, and its workers."""

    def __init__(self, arguments, out):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
        self.log = out.with_suffix(".log").open("w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)
        self.metrics = out / "metrics.jsonl"

    def epochs(self):
        return self.metrics.read_text().count("\n") if self.metrics.exists() else 0

    def workers(self):
        children = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        return [int(line.split()[0]) for line in children if "bseq_plugin" in line]

    def wait_for(self, n_epochs):
        deadline = time.monotonic() + 60
        while self.epochs() < n_epochs:
            assert self.process.poll() is None, "it ended too early"
            assert time.monotonic() < deadline, f"no new epoch in a minute after {self.epochs()}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def command(tiny_source, tiny_settings):
    more = ("training.epochs=40", "split.patience=40")
    settings = [word for setting in more for word in ("--set", setting)]
    return (
        *COMMAND,
        tiny_source,
        *tiny_settings,
        *settings,
        "--sharding",
        "row_wise",
        "--matmul",
        "float32",
        "--checkpoint-steps",
        "3",
        "--resume",
    )


@pytest.fixture(scope="module")
def whole(python, command, tmp_path_factory):
    """The same run on two ranks, left alone."""
    out = tmp_path_factory.mktemp("alone") / "whole"
    done = python("-m", "torch.distributed.run", "--standalone", *PAIR, *command, "--out", out, timeout=200)
    assert (out / "model").is_dir(), done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("rendezvous", [(), ("--standalone",)], ids=["static", "standalone"])
def test_torchrun_restarts_a_job_whose_ranks_are_killed(command, whole, tmp_path, read_lines, weights, rendezvous):
    """Three kills of a rank at work, three restarts; then the curve and the model of a job left alone."""
    arguments = (*rendezvous, *PAIR, "--max-restarts", "3", *command, "--out", tmp_path / "run")
    job, chance = Job(arguments, tmp_path / "run"), random.Random(7)
    try:
        for _ in range(3):
            job.wait_for(job.epochs() + 1)
            time.sleep(chance.random() * 0.2)
            workers = job.workers()
            assert len(workers) == 2
            os.kill(chance.choice(workers), signal.SIGKILL)
        job.process.wait(timeout=180)
    finally:
        for pid in [*job.workers(), job.process.pid]:
            if job.process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        job.process.wait(timeout=10)
        job.log.close()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"
    assert read_lines(tmp_path / "run") == read_lines(whole)
    assert weights(tmp_path / "run") == weights(whole)
