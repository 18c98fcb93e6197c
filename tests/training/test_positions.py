"""Checkpoints within an epoch: the same steps, dropout and figures as without the break."""

import json
from pathlib import Path

import pytest

from bseq_plugin import Events, UsageError, train
from bseq_plugin.training.checkpoint import Checkpoints, Position
from bseq_plugin.training.trainer import Trainer


class Stopped(Exception):
    pass


@pytest.fixture
def stop_at(monkeypatch):
    """A function that breaks the next training off right after its checkpoint at a position."""

    def arrange(position):
        save = Trainer._save

        def stops(self):
            save(self)
            if self.state.position == position:
                monkeypatch.setattr(Trainer, "_save", save)
                raise Stopped

        monkeypatch.setattr(Trainer, "_save", stops)

    return arrange


@pytest.mark.parametrize(
    "sections",
    [
        {"encoder": {"dropout": 0.3}},
        {"negatives": {"kind": "uniform", "n": 7}, "training": {"schedule": "cosine", "batch": {"events": 90}}},
    ],
)
def test_resumed_within_an_epoch_is_uninterrupted(
    tiny_frame, tiny_recipe, tmp_path, stop_at, read_lines, weights, sections
):
    events = Events.from_frame(tiny_frame)
    recipe = tiny_recipe.replace(split={"patience": 3}, training={"epochs": 3}).replace(**sections)
    whole = train(events, recipe, tmp_path / "whole", progress=False, checkpoint_steps=2)
    parts = tmp_path / "parts"
    for position in (Position(0, 2), Position(1, 2), Position(2)):
        stop_at(position)
        with pytest.raises(Stopped):
            train(events, recipe, parts, resume=True, progress=False, checkpoint_steps=2)
        assert Checkpoints(parts).positions()[-1] == position
    train(events, recipe, parts, resume=True, progress=False, checkpoint_steps=2)
    assert read_lines(parts) == read_lines(whole.path)
    assert weights(parts) == weights(whole.path)
    # and checkpoints change nothing that is learned
    without = train(events, recipe, tmp_path / "without", progress=False)
    assert weights(without.path) == weights(whole.path)
    assert all(position.step == 0 for position in Checkpoints(parts).positions())


def test_positions_are_ordered_and_what_is_unfinished_is_not_seen(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in ("epoch-0002", "epoch-0001-step-00000030", "epoch-0001", ".epoch-0003", "epoch-x", "notes"):
        (folder / name).mkdir(parents=True)
    assert Checkpoints(tmp_path).positions() == [Position(1), Position(1, 30), Position(2)]
    assert [Checkpoints(tmp_path).path(at).name for at in Checkpoints(tmp_path).positions()][1].endswith("00000030")


def test_nonsense_is_refused(tiny_frame, tiny_recipe, tmp_path):
    with pytest.raises(UsageError, match="checkpoint_steps = 0"):
        train(Events.from_frame(tiny_frame), tiny_recipe, tmp_path / "run", progress=False, checkpoint_steps=0)
    assert not (tmp_path / "run").exists()


def killed_and_resumed(ranks, read_lines, weights, source, recipe, folder, kills, kills_a_run):
    """The loss curve and the model of a pair of ranks killed again and again are those of a pair left alone."""
    run = {
        "do": "run", "world_size": 2, "source": str(source), "recipe": recipe.as_dict(), "sharding": "row_wise",
        "resume": True, "checkpoint_steps": 2,
    }  # fmt: skip
    jobs = [
        {**run, "name": "whole", "out": str(folder / "whole")},
        {
            "name": "killed", "do": "killed", "run": run, "out": str(folder / "run"), "kills": kills,
            "kills_a_run": kills_a_run, "seed": 3, "like": "whole",
        },
    ]  # fmt: skip
    found = ranks(jobs, timeout=800)
    assert [part.get("result") for part in found["whole"]] == ["fine", "fine"], found["whole"]
    killed = found["killed"]
    assert killed["hits"] == kills
    for end in killed["ends"]:
        assert [part.get("result") for part in end] == ["fine", "fine"], end
    for out in killed["outs"]:
        assert read_lines(Path(out)) == read_lines(folder / "whole")
        assert weights(Path(out)) == weights(folder / "whole")
    for survivor in killed["survivors"]:  # it was told, or had finished already
        assert survivor.get("result") == "fine" or "lost another process" in survivor.get("error", ""), survivor
        assert survivor["seconds"] < 60
    return killed


@pytest.mark.timeout(300)
def test_a_pair_of_ranks_killed_at_random_moments_resumes(
    ranks, read_lines, weights, tiny_source, tiny_recipe, tmp_path
):
    recipe = tiny_recipe.replace(split={"patience": 6}, training={"epochs": 6})
    killed_and_resumed(ranks, read_lines, weights, tiny_source, recipe, tmp_path, 4, 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pair_of_ranks_killed_fifty_times_resumes(ranks, read_lines, weights, tiny_source, tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace(split={"patience": 12}, training={"epochs": 12})
    killed = killed_and_resumed(ranks, read_lines, weights, tiny_source, recipe, tmp_path, 50, 10)
    assert len(killed["survivors"]) > 5  # often one rank alone was killed
    told = [s for s in killed["survivors"] if "error" in s]
    print(json.dumps({"kills": 50, "told": len(told)}))
