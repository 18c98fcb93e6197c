"""``torchrun`` with gloo: the same command on two processes gives what one process gives.

A two-rank job on a loaded machine may abort at exit, after all its work (torch 2.13): the files it wrote are judged.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from toml_text import options

from bseq_plugin import Events, InterestModel, Recipe, Run, train
from bseq_plugin.distributed import World
from bseq_plugin.training.train import _prepared_on_all
from bseq_plugin.training.trainer import Trainer

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
MATMUL = {"matmul": "float32"}  # what "auto" is gets measured: two runs may come to different ends
COMMAND = ("-m", "bseq_plugin.cli.main", "train")

pytestmark = pytest.mark.timeout(300)


def finished(out, done):
    assert (out / "run.json").is_file(), done.stderr[-3000:]
    assert json.loads((out / "run.json").read_text())["status"] == "complete", done.stderr[-3000:]
    return Run(out)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class Stopped(Exception):
    pass


def begun(events, recipe, out, monkeypatch, items=None):
    """A run that was broken off after its first epoch."""
    steps = Trainer._steps

    def breaks(self, epoch, report):
        if epoch == 1:
            raise Stopped
        return steps(self, epoch, report)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_steps", breaks)
        with pytest.raises(Stopped):
            train(events, recipe, out, items=items, progress=False)


def same_path(one, two):
    """Without dropout they see the same global batches, from the same weights; what is left is the order of float32
    sums (relative 1e-6 a step), which Adam's division lets grow a little over the twelve steps. 1e-4 is far above
    that, and a wrong scale of loss or gradient, or a user missed, is far above 1e-4.
    """
    assert (one.info["world_size"], two.info["world_size"]) == (1, 2)
    for alone, together in zip(lines(one.path), lines(two.path), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-4)
        # metrics are ranks: equal but for items whose scores are equal to the last digits
        for name in ("recall@10", "ndcg@10", "mrr@10"):
            assert together[name] == pytest.approx(alone[name], abs=0.02)
    if one.info["best_epoch"] == two.info["best_epoch"]:
        models = [InterestModel.from_run(run.path) for run in (one, two)]
        torch.testing.assert_close(models[1].item_vectors_VD, models[0].item_vectors_VD, rtol=1e-3, atol=1e-3)


def test_the_command_on_two_ranks_goes_on_as_one_process_does(
    python, tiny_frame, tiny_source, tiny_recipe, tmp_path, monkeypatch
):
    """One process trains an epoch; from its checkpoint one goes on alone and two go on together, resharded."""
    recipe = tiny_recipe.replace(encoder={"dropout": 0.0}, split={"patience": 4}, training={"epochs": 4})
    events = Events.from_frame(tiny_frame)
    begun(events, recipe, tmp_path / "one", monkeypatch)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one = train(events, recipe, tmp_path / "one", resume=True, progress=False, **MATMUL)
    done = python(
        *TORCHRUN,
        *COMMAND,
        tiny_source,
        "--out",
        tmp_path / "two",
        *options(recipe.as_dict()),
        "--resume",
        "--matmul",
        "float32",
        timeout=240,
    )
    same_path(one, finished(tmp_path / "two", done))


def one_more_epoch(events, recipe, path, items):
    """The loss of the epoch after the last one, trained by this process from the checkpoint in ``path``."""
    recipe = recipe.replace(split={"patience": 99}, training={"epochs": recipe.training.epochs + 1})
    longer = Run(path).recipe.replace(split={"patience": 99}, training={"epochs": recipe.training.epochs})
    (path / "recipe.json").write_text(json.dumps(longer.as_dict()))
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "status": "training"}))
    train(events, recipe, path, items=items, resume=True, progress=False, **MATMUL)
    assert lines(path)[-1]["epoch"] == recipe.training.epochs
    return lines(path)[-1]["loss"]


# Several jobs in one pair of processes, whose group is the caller's own: starting a pair takes longer than the jobs.
SCRIPT = """
import json, os, sys, traceback, types
from pathlib import Path
import pandas as pd
from torch import distributed as dist
from bseq_plugin import Recipe, hookimpl, read_events, train
from bseq_plugin import plugin_manager

jobs, rank = json.loads(Path(sys.argv[1]).read_text()), os.environ["RANK"]
dist.init_process_group("gloo")
for job in jobs:
    extra = types.SimpleNamespace()
    def bseq_encoders():
        return [type("Extra", (), {"name": "extra"})]
    extra.bseq_encoders = hookimpl(bseq_encoders)
    if job["name"] == "plugins" and rank == "1":
        plugin_manager().register(extra, "extra")
    out = Path(job["out"])
    try:
        items = pd.read_csv(job["items"]) if job["items"] else None
        events = read_events(job["source"])
        more = {"items": items, "resume": job["resume"], "sharding": job["sharding"], "matmul": "float32"}
        train(events, Recipe(**job["recipe"]), out, progress=False, **more)
        result = "fine"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    if job["name"] == "plugins":
        plugin_manager.cache_clear()  # a fresh manager, without the extra plugin
    Path(f"{out}-rank-{rank}").write_text(result)
assert dist.is_initialized(), "train closed a group that is not its own"
dist.destroy_process_group()
"""


def test_two_ranks_under_all_conditions(python, cyclic, tiny_frame, tiny_source, tiny_recipe, tmp_path, monkeypatch):
    text = tmp_path / "cycle.txt"
    users = cyclic.frame.groupby("user_id").item_id.agg(list)
    text.write_text("".join(f"{user} {' '.join(map(str, items))}\n" for user, items in users.items()))
    cycle = Recipe(
        encoder={"dropout": 0.1, "max_length": 8},
        vectors={"dim": 16},
        split={"patience": 25, "mask_seen": False, "metric": "recall@1"},
        training={"epochs": 25, "batch": {"users": 20}, "dense": {"rate": 3e-3}},
    )
    window = tiny_recipe.replace(
        encoder={"dropout": 0.0},
        vectors={"similarity": "cosine"},
        items={"attributes": ("kind",), "encoders": [{"name": "columns", "numbers": ("size",)}]},
        objective={"kind": "window", "days": 14, "popularity_days": (7.0, 365.0)},
        split={"patience": 4},
        training={"epochs": 4},
    )
    items = pd.DataFrame({"item_id": sorted(tiny_frame.item_id.unique())})
    items["kind"] = items.item_id % 3
    items["size"] = items.item_id % 7 + 1
    items.to_csv(tmp_path / "items.csv", index=False)
    begun(Events.from_frame(tiny_frame), window, tmp_path / "alone", monkeypatch, items)
    shutil.copytree(tmp_path / "alone", tmp_path / "window")
    alone = train(
        Events.from_frame(tiny_frame), window, tmp_path / "alone", items=items, resume=True, progress=False, **MATMUL
    )
    untrained = tiny_recipe.replace(training={"epochs": 1, "table": {"rate": 1e-9}})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    jobs = [
        ("plugins", tiny_source, tiny_recipe),
        ("taken", tiny_source, tiny_recipe),
        ("window", tiny_source, window),
        ("cycle", text, cycle),
        ("small", tiny_source, tiny_recipe.replace(split="none", training={"batch": {"users": 59}, "epochs": 1})),
        ("untrained", tiny_source, untrained),
        ("mean", tiny_source, tiny_recipe.replace(encoder={"name": "mean"})),
    ]
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "jobs.json").write_text(
        json.dumps(
            [
                {
                    "name": n,
                    "source": str(s),
                    "recipe": r.as_dict(),
                    "sharding": "row_wise" if n in ("window", "untrained") else "auto",
                    "out": str(tmp_path / n),
                    "resume": n == "window",
                    "items": str(tmp_path / "items.csv") if n == "window" else None,
                }
                for n, s, r in jobs
            ]
        )
    )
    done = python(*TORCHRUN, tmp_path / "script.py", tmp_path / "jobs.json", timeout=240)
    said = {p.name: p.read_text() for p in tmp_path.glob("*-rank-*")}
    assert len(said) == 2 * len(jobs), done.stderr[-3000:]
    for rank in (0, 1):
        # a difference would show as a hang, or as silently different gradients
        assert said[f"plugins-rank-{rank}"].startswith("PluginError: ranks have different plugins")
        # rank 0 alone looks at the folder; the other one must not wait for a run that never comes
        assert said[f"taken-rank-{rank}"].endswith("taken is not empty and not a run; give another --out")
        assert {said[f"{n}-rank-{rank}"] for n in ("window", "cycle", "small", "untrained", "mean")} == {"fine"}, said
    assert not (tmp_path / "plugins").exists()
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]
    same_path(alone, finished(tmp_path / "window", done))
    # and back: what two ranks saved goes on in one process
    events, runs = Events.from_frame(tiny_frame), (alone.path, tmp_path / "window")
    longer = [one_more_epoch(events, window, run, items) for run in runs]
    assert longer[1] == pytest.approx(longer[0], abs=1e-4)
    # ranks begin with different rows: no two items of the two shards are one vector
    table = InterestModel.from_run(finished(tmp_path / "untrained", done).path).item_vectors_VD
    assert len(torch.unique(table, dim=0)) == len(table)
    # the answer is known, so there is no noise to allow for: two ranks reach Recall@1 = 1 as one does
    learned = finished(tmp_path / "cycle", done)
    assert learned.info["validation"]["recall@1"] == 1.0
    assert [line["epoch"] for line in lines(learned.path)] == list(range(1, learned.info["epochs"] + 1))
    # 60 users in batches of 59: the last batch has one user for two ranks
    assert np.isfinite(lines(finished(tmp_path / "small", done).path)[0]["loss"])
    assert finished(tmp_path / "mean", done).info["world_size"] == 2


class OneOfTwo(World):
    """One of two ranks that do not wait for each other."""

    def on_first(self, work):
        self.order.append("first")
        return work() if self.is_first else None

    def on_all(self, work):
        self.order.append("all")
        return work()

    @property
    def order(self):
        return self.__dict__.setdefault("_order", [])


@pytest.mark.parametrize("encoders", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_log_is_prepared_once_a_rank(tiny_recipe, rank, encoders):
    """With item encoders rank 0 has filled their caches before the others ask."""
    here, done = OneOfTwo(rank, 2, torch.device("cpu")), []
    recipe = tiny_recipe.replace(items={"encoders": ["columns"] if encoders else []})
    assert _prepared_on_all(here, recipe, lambda: done.append(list(here.order)) or "the log") == "the log"
    assert done == [["first"] if encoders and rank == 0 else ["first", "all"] if encoders else ["all"]]
