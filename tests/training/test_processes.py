"""``torchrun`` with gloo: the same command on two processes gives what one process gives.

A two-rank job on a loaded CPU machine may abort at exit, after all its work (torch 2.13): the files it wrote are judged.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from bseq_plugin.data.events import Events
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.schema.recipe import Recipe
from bseq_plugin.training.run import Run
from bseq_plugin.training.train import Trainer, train

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COMMAND = ("-m", "bseq_plugin.cli.main", "train")

pytestmark = pytest.mark.timeout(300)


def settings(recipe):
    """A recipe as ``--set`` options, every key."""
    def toml(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
        return json.dumps(value)

    values = {k: v for k, v in recipe.model_dump().items() if v is not None}
    return [word for k, v in values.items() for word in ("--set", f"{k}={toml(v)}")]


def two_ranks(python, source, recipe, out, *more):
    return python(*TORCHRUN, *COMMAND, source, "--out", out, *settings(recipe), *more, timeout=240)


def finished(out, done):
    assert (out / "run.json").is_file(), done.stderr[-3000:]
    assert json.loads((out / "run.json").read_text())["status"] == "complete", done.stderr[-3000:]
    return Run(out)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_learn_the_cycle(python, cyclic, tmp_path):
    """The answer is known, so there is no noise to allow for: both reach Recall@1 = 1."""
    source = tmp_path / "log.txt"
    users = cyclic.frame.groupby("user_id").item_id.agg(list)
    source.write_text("".join(f"{user} {' '.join(map(str, items))}\n" for user, items in users.items()))
    recipe = Recipe(
        dim=16, epochs=25, patience=25, dropout=0.1, batch_users=20, max_length=8, mask_seen=False,
        validation_metric="recall@1", learning_rate=3e-3,
    )  # fmt: skip
    run = finished(tmp_path / "run", two_ranks(python, source, recipe, tmp_path / "run"))
    assert run.info["world_size"] == 2
    assert run.info["validation"]["recall@1"] == 1.0
    assert len({(line["epoch"]) for line in lines(run.path)}) == len(lines(run.path)) == run.info["epochs"]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("values", [{}, {"targets": "window", "window_days": 14, "score": "cosine", "sharding": "row_wise"}])  # fmt: skip
def test_from_the_same_weights_two_ranks_walk_the_same_path(
    python, tiny_frame, tiny_source, tiny_recipe, tmp_path, monkeypatch, values
):
    """One process trains an epoch; from its checkpoint one goes on alone and two go on together, resharded.

    Without dropout they see the same global batches and the same weights; what is left is the order of float32 sums
    (relative 1e-6 a step), which Adam's division lets grow a little over the twelve steps: 1e-4 is far above that,
    and a wrong scale of loss or gradient, or a user missed, is far above 1e-4.
    """
    recipe = tiny_recipe.replace(epochs=4, patience=4, dropout=0.0, **values)
    events = Events.from_frame(tiny_frame)
    steps = Trainer._steps

    def breaks(self, epoch, report):
        if epoch == 1:
            raise Stopped
        return steps(self, epoch, report)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_steps", breaks)
        with pytest.raises(Stopped):
            train(events, recipe, tmp_path / "one", progress=False)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train(events, recipe, tmp_path / "one", resume=True, progress=False)
    done = two_ranks(python, tiny_source, recipe, tmp_path / "two", "--resume")
    two, one = finished(tmp_path / "two", done), Run(tmp_path / "one")
    assert (one.info["world_size"], two.info["world_size"]) == (1, 2)
    for alone, together in zip(lines(one.path), lines(two.path), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-4)
        # metrics are ranks: they are equal but for items whose scores are equal to the last digits
        for name in ("recall@10", "ndcg@10", "mrr@10"):
            assert together[name] == pytest.approx(alone[name], abs=0.02)
    if one.info["best_epoch"] == two.info["best_epoch"]:
        models = [InterestModel.from_run(run.path) for run in (one, two)]
        torch.testing.assert_close(models[1].item_vectors_VD, models[0].item_vectors_VD, rtol=1e-3, atol=1e-3)


DIFFERENT_PLUGINS = """
import os, sys, types
from pathlib import Path
import pandas as pd
from bseq_plugin import Events, Recipe, hookimpl, train
from bseq_plugin.errors import PluginError
from bseq_plugin.plugins import plugin_manager

rank, folder = os.environ["RANK"], Path(sys.argv[2])
if rank == "1":
    extra = types.SimpleNamespace()
    def bseq_encoders():
        return [type("Extra", (), {"name": "extra"})]
    extra.bseq_encoders = hookimpl(bseq_encoders)
    plugin_manager().register(extra, "extra")
try:
    train(Events.from_frame(pd.read_parquet(sys.argv[1])), Recipe(), folder / "run", progress=False)
except PluginError as error:
    (folder / f"rank-{rank}").write_text(str(error))
"""


def test_ranks_with_different_plugins_are_refused_on_both(python, tiny_source, tmp_path):
    (tmp_path / "script.py").write_text(DIFFERENT_PLUGINS)
    done = python(*TORCHRUN, tmp_path / "script.py", tiny_source, tmp_path, timeout=120)
    for rank in (0, 1):
        assert (tmp_path / f"rank-{rank}").is_file(), done.stderr[-3000:]
        assert "ranks have different plugins" in (tmp_path / f"rank-{rank}").read_text()
    assert not (tmp_path / "run").exists()


def test_an_error_on_the_first_rank_is_one_on_both(python, tiny_source, tiny_recipe, tmp_path):
    """--out exists: rank 0 sees it, and the other one does not wait for a run that never comes."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    done = two_ranks(python, tiny_source, tiny_recipe, tmp_path / "run")
    assert done.returncode != 0
    assert "is not empty and not a run" in done.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_batch_smaller_than_the_world_trains(python, tiny_source, tiny_recipe, tmp_path):
    """59 or 60 users in batches of 59: the last batch has one user for two ranks."""
    recipe = tiny_recipe.replace(batch_users=59, epochs=1, split="none")
    run = finished(tmp_path / "run", two_ranks(python, tiny_source, recipe, tmp_path / "run"))
    assert np.isfinite(lines(run.path)[0]["loss"])
    assert InterestModel.from_run(run.path).item_vectors_VD.isfinite().all()
