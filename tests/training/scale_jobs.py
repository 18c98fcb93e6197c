"""Groups of gloo ranks, forked from one process that has imported everything: `python scale_jobs.py JOBS.json`.

Starting a pair of interpreters takes longer than most of these jobs. JOBS.json: {"folder", "jobs": [{"name", "do",
"world_size", ...}]}; a job's result is NAME.json in the folder: one value a rank, or the error it ended with.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from bseq_plugin import BseqError, Events, Recipe, train
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.prepare import prepare
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.distributed import world
from bseq_plugin.training import plan
from bseq_plugin.training.checkpoint import Checkpoints, Position, identity
from bseq_plugin.training.row_update import pooled_row_update
from bseq_plugin.training.sharding import shard
from bseq_plugin.training.trainer import build_task
from bseq_plugin.training.validation import item_chunks


class Sharded:
    """A task on this rank among the others, and its batches."""

    def __init__(self, job, here):
        self.here = here
        self.log = prepare(Events.from_frame(pd.read_parquet(job["source"])), Recipe(**job["recipe"]))
        self.data = TrainingData(self.log.training, self.log.vocabulary, self.log.recipe, here.rank, here.size)
        self.task = shard(build_task(self.log, "meta"), self.log.recipe.training, job["sharding"], here)
        self.pipeline = TrainPipelineSparseDist(self.task.model, self.task.optimizer, here.device)
        self.identity = identity(self.log.recipe, self.log.vocabulary)

    def start_from(self, folder):
        """The weights of a plain model."""
        values = {"model": self.task.model.state_dict()}
        dcp.load(values, checkpoint_id=folder)
        self.task.model.load_state_dict(values["model"])

    def losses(self, start, steps):
        """Of the global batches ``start``... of epoch 0."""
        found = []
        batches = self.data.batches(0, start)
        self.pipeline.attach(self.task.model)
        self.task.model.train()
        for _ in range(steps):
            out = self.pipeline.progress(batches)
            total = self.here.sum([float(out["loss"]) * int(out["n_targets"]), int(out["n_targets"])])
            found.append(total[0] / total[1])
        self.pipeline.detach()
        return found

    def vectors(self):
        self.task.model.eval()
        encoder, log = self.task.task.interest_encoder, self.log
        chunks = item_chunks(encoder, log.vocabulary.n_items, log.recipe, log.sequences, self.here)
        return torch.cat([rows for _, rows in chunks]).detach().numpy()

    def shards(self):
        """Rows x columns of the item table that this rank holds."""
        state = self.task.model.state_dict()["interest_encoder.embedding_collection.embeddings.item.weight"]
        return [list(s.tensor.shape) for s in state.local_shards()]


def learn(job, here):
    """Some steps from given weights; a checkpoint, losses and item vectors after them."""
    sharded = Sharded(job, here)
    sharded.start_from(job["start"])
    with pooled_row_update():  # as in training
        losses = sharded.losses(0, job["steps"])
    vectors = sharded.vectors()
    if job.get("save"):
        Checkpoints(Path(job["save"]), sharded.identity).save(sharded.task, {}, Position(1), set(), here)
    if here.is_first:
        np.save(job["vectors"], vectors)
    return {"losses": losses, "shards": sharded.shards()}


def load(job, here):
    """From each of several checkpoints: the loss of the next step, and the item vectors after it."""
    found = {}
    for name, folder in job["checkpoints"].items():
        sharded = Sharded(job, here)
        torch.manual_seed(99)
        Checkpoints(Path(folder), sharded.identity).load(sharded.task, Position(1), here)
        found[name] = {"loss": sharded.losses(job["steps"], 1)[0], "sum": float(np.abs(sharded.vectors()).sum())}
    return found


class BrokenPlanner:
    def __init__(self, **settings):
        pass

    def plan(self, module, sharders):
        raise RuntimeError("no plan\nand a page of details")


def run(job, here):
    """The whole of ``train``; settings of ``broken`` make one rank fail in a chosen place."""
    broken = job.get("broken") if here.rank == job.get("broken_rank", 1) else None
    if broken == "dies in planning":
        plan.check_memory = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    if broken == "raises in planning":
        plan.EmbeddingShardingPlanner = BrokenPlanner
    if broken == "dies in a step":
        TrainPipelineSparseDist.progress = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    if broken == "disk full":
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        def fails(*args, **kwargs):
            raise OSError(28, "No space left on device")

        FileSystemWriter.write_data = fails
    source = Path(job["source"])
    events = PartitionedSequences.open(source) if source.is_dir() else Events.from_frame(pd.read_parquet(source))
    dist.barrier()  # every rank has found all partitions there
    if broken == "partition missing":
        (source / "part-00001.parquet").unlink()
    train(
        events,
        Recipe(**job["recipe"]),
        job["out"],
        resume=job.get("resume", False),
        progress=False,
        checkpoint_steps=job.get("checkpoint_steps"),
        warm_start=job.get("warm_start"),
        sharding=job.get("sharding", "auto"),
        matmul="float32",  # what "auto" is gets measured: two runs may come to different ends
    )
    return "fine"


def one_rank(job, rank, store):
    started = time.monotonic()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=job["world_size"])
    try:
        with world() as here:
            result = {"result": globals()[job["do"]](job, here)}
    except BseqError as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        result = {"unexpected": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {**result, "seconds": time.monotonic() - started}


def start(job, folder):
    """Process ids of the job's ranks, each of which writes NAME.RANK."""
    store = folder / f"{job['name']}.store"
    store.unlink(missing_ok=True)
    pids = []
    for rank in range(job["world_size"]):
        pid = os.fork()
        if pid == 0:
            sys.stdout = sys.stderr
            part = folder / f"{job['name']}.{rank}"
            part.with_suffix(".tmp" + str(rank)).write_text(json.dumps(one_rank(job, rank, store)))
            part.with_suffix(".tmp" + str(rank)).rename(part)
            os._exit(0)
        pids.append(pid)
    return pids


def finish(job, folder, pids):
    for pid in pids:
        os.waitpid(pid, 0)
    parts = [folder / f"{job['name']}.{rank}" for rank in range(job["world_size"])]
    found = [json.loads(part.read_text()) if part.exists() else None for part in parts]
    (folder / f"{job['name']}.json").write_text(json.dumps(found))


def killed(job, folder):
    """SIGKILL for one rank, or all of them, at random moments until ``job["kills"]`` have hit; then to the end.

    The moments spread over what a run took that was left alone (job ``job["like"]``): a fixed wait would come
    after the end on a fast machine. A run that ended before its kill, or was hit often enough, gives way to a new one.
    """
    alone = max(part["seconds"] for part in json.loads((folder / f"{job['like']}.json").read_text()))
    chance, hits, told, outs = random.Random(job["seed"]), [0], [], []
    for number in range(10 * job["kills"]):
        attempt = {**job["run"], "name": f"{job['name']}-{number}", "out": f"{job['out']}-{len(hits)}"}
        pids = start(attempt, folder)
        time.sleep(alone * chance.uniform(0.1, 0.9))
        victims = pids if chance.random() < 0.5 else [chance.choice(pids)]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        codes = {pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids}
        for rank, pid in enumerate(pids):
            part = folder / f"{attempt['name']}.{rank}"
            if pid not in victims and part.exists():
                told.append(json.loads(part.read_text()))
        hits[-1] += all(codes[pid] == -signal.SIGKILL for pid in victims)
        outs = sorted({*outs, attempt["out"]})
        if sum(hits) >= job["kills"]:
            break
        if not any(codes.values()) or hits[-1] == job["kills_a_run"]:
            hits.append(0)
    for number, out in enumerate(outs):
        attempt = {**job["run"], "name": f"{job['name']}-last-{number}", "out": out}
        finish(attempt, folder, start(attempt, folder))
    ends = [json.loads((folder / f"{job['name']}-last-{n}.json").read_text()) for n in range(len(outs))]
    (folder / f"{job['name']}.json").write_text(
        json.dumps({"hits": sum(hits), "survivors": told, "outs": outs, "ends": ends})
    )


def restarted(job, folder):
    """Pairs that join one after another by one store, as under ``torchrun --max-restarts``.

    Each is killed: after both have met, or one alone before the other comes. Each writes NAME-NUMBER.RANK.
    """
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agents = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    ends = []
    for number, alone in enumerate([None, 1, None, 0, None]):
        marks = [folder / f"{job['name']}-{number}.{rank}" for rank in range(2)]
        pids = [join(rank, {**agents, "RANK": str(rank)}, marks[rank]) for rank in range(2) if alone in (None, rank)]
        waited = time.monotonic() + 20
        while alone is None and not all(mark.exists() for mark in marks) and time.monotonic() < waited:
            time.sleep(0.01)
        time.sleep(0.3 if alone is not None else 0)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if alone is None:
            ends.append([json.loads(mark.read_text()) if mark.exists() else None for mark in marks])
    (folder / f"{job['name']}.json").write_text(json.dumps(ends))


def join(rank, agents, mark):
    """Fork a rank that joins, tells whom it has met, and stays until it is killed."""
    pid = os.fork()
    if pid == 0:
        os.environ.update(agents)
        try:
            with world() as here:
                met = here.gather(os.getpid())
                mark.with_suffix(f".tmp{rank}").write_text(json.dumps(met))
                mark.with_suffix(f".tmp{rank}").rename(mark)
                time.sleep(60)
        finally:
            os._exit(1)
    return pid


def main():
    given = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(given["folder"])
    for job in given["jobs"]:
        if job["do"] in ("killed", "restarted"):
            globals()[job["do"]](job, folder)
            continue
        finish(job, folder, start(job, folder))


if __name__ == "__main__":
    main()
