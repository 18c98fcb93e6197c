"""Training on partitions that are read as they are trained on."""

import errno
import itertools
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from bseq_plugin import Events, InterestModel, RecipeError, Run, UsageError, train
from bseq_plugin.data.interest_files import InterestFiles, TableStream
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.prepare import count_partitions, prepare, prepare_partitions, resolved
from bseq_plugin.data.splits import training_histories
from bseq_plugin.data.streams import StreamedData
from bseq_plugin.readers.build_sequences import build_sequences


@pytest.fixture(scope="module")
def built(tiny_source, tmp_path_factory):
    """A function that gives the tiny log in so many partitions."""
    made = {}

    def build(n):
        if n not in made:
            made[n] = build_sequences(str(tiny_source), tmp_path_factory.mktemp("parts") / "parts", partitions=n)
        return made[n]

    return build


def streamed(log, recipe, rank=0, world_size=1, gather=lambda value: [value]):
    recipe = resolved(log, recipe)
    prepared = prepare_partitions(log, recipe, *count_partitions(log, recipe, list(range(len(log.partitions)))))
    training = partial(training_histories, split=recipe.split)
    return StreamedData(log, prepared.vocabulary, recipe, training, gather, rank, world_size), prepared


def users_of(batch):
    """The histories of a batch, empty ones left out."""
    items = [tuple(row.tolist()) for row in batch.features["event"].to_dense()]
    return sorted(item for item in items if item)


@pytest.mark.parametrize(
    "sections", [{}, {"split": {"kind": "time", "horizon_days": 14}}, {"split": "none", "items": {"min_count": 3}}]
)
def test_it_is_prepared_as_in_memory(built, tiny_frame, tiny_recipe, sections):
    """Vocabulary, counts, resolved recipe and validation are those of the road in memory, whatever the partitions."""
    expected = prepare(Events.from_frame(tiny_frame), tiny_recipe.replace(**sections))
    for n in (2, 8):
        _, found = streamed(built(n), tiny_recipe.replace(**sections))
        assert found.recipe == expected.recipe
        assert found.vocabulary.item_ids.tolist() == expected.vocabulary.item_ids.tolist()
        assert found.vocabulary.item_counts.tolist() == expected.vocabulary.item_counts.tolist()
        assert found.vocabulary.event_types == expected.vocabulary.event_types
        assert found.trained_until_us == expected.trained_until_us
        if expected.validation is not None:  # 60 users: all of them are in the sample
            assert found.validation.n_users == expected.validation.n_users
            assert sorted(found.validation.target_items) == sorted(expected.validation.target_items)


def test_an_epoch_has_every_user_once_in_an_order_of_its_own(built, tiny_frame, tiny_recipe):
    log = prepare(Events.from_frame(tiny_frame), tiny_recipe)
    data, _ = streamed(built(8), tiny_recipe)
    epochs = [[users_of(batch) for batch in data.batches(epoch)] for epoch in (0, 1)]
    assert len(epochs[0]) == data.steps_per_epoch == -(-60 // tiny_recipe.training.batch.users)
    training = log.training.latest(tiny_recipe.encoder.max_length + 1)
    histories = [
        tuple(training.items[a : b - 1].tolist())
        for a, b in zip(training.offsets[:-1], training.offsets[1:], strict=True)
    ]
    expected = sorted(history for history in histories if history)
    assert [sorted(itertools.chain.from_iterable(epoch)) for epoch in epochs] == [expected, expected]
    assert epochs[0] != epochs[1]


def test_any_number_of_ranks_walks_through_the_same_global_batches(built, tiny_recipe):
    alone = list(streamed(built(8), tiny_recipe)[0].batches(0))
    for world_size in (2, 4, 8):
        ranks = [streamed(built(8), tiny_recipe, rank, world_size)[0] for rank in range(world_size)]
        steps = list(zip(*(rank.batches(0) for rank in ranks), strict=True))
        assert [sorted(itertools.chain.from_iterable(map(users_of, step))) for step in steps] == [
            users_of(batch) for batch in alone
        ]


def test_an_epoch_is_taken_up_in_its_middle(built, tiny_recipe):
    recipe = tiny_recipe.replace(negatives={"kind": "uniform", "n": 5}, training={"batch": {"users": 7}})
    data, _ = streamed(built(8), recipe)
    whole = [(users_of(b), b.negative_ids_N.tolist()) for b in data.batches(3)]
    for start in (1, 4, data.steps_per_epoch):
        assert [(users_of(b), b.negative_ids_N.tolist()) for b in data.batches(3, start)] == whole[start:]


def test_what_streams_can_not_do(built, tiny_recipe):
    with pytest.raises(UsageError, match=r"8 partitions can't be dealt out to 3 processes; use 1, 2, 4, 8 of them"):
        streamed(built(8), tiny_recipe, 0, 3)
    with pytest.raises(RecipeError, match="objective.kind = 'window' needs the log in memory"):
        streamed(built(8), tiny_recipe.replace(objective="window"))


def test_ranks_without_users_take_part(built, tiny_recipe):
    """64 partitions for 60 users: on 64 ranks, some have nobody at all."""
    log = built(64)
    assert min(partition.users for partition in log.partitions) == 0
    empty = next(n for n in range(64) if log.partitions[n].users == 0)
    data, _ = streamed(log, tiny_recipe, empty, 64)
    for batch in data.batches(0):
        assert users_of(batch) == []
        assert (len(batch.target_ids_S), float(batch.loss_scale)) == (0, 0.0)


def assert_interests_are_those_of_the_model(run, log):
    """Every rank wrote its users, through the sharded tables; the oracle is the plain model in this process."""
    model, files = InterestModel.from_run(run), InterestFiles(run / "interests")
    assert files.fits(run / "model", log.digest)
    for number, partition in enumerate(log.partitions):
        if partition.users == 0:
            continue
        known = files.open(partition.file)
        for group in range(len(log.row_group_users(number))):
            histories = log.read(number, [group], model.vocabulary)
            found = known.read(group, histories, model.recipe)
            torch.testing.assert_close(found, model.encode(histories), rtol=1e-5, atol=1e-6)


@pytest.mark.timeout(300)
def test_ranks_train_on_partitions_and_fail_together(ranks, built, tiny_recipe, tmp_path, python):
    recipe = tiny_recipe.replace(
        encoder={"dropout": 0.0},
        negatives={"kind": "mixed", "n": 8},
        split={"patience": 3},
        training={"epochs": 3, "table": {"name": "sgd", "rate": 0.5}},
    )

    def job(name, world_size, source, **more):
        base = {"do": "run", "source": str(source), "recipe": recipe.as_dict(), "checkpoint_steps": 2}
        return {**base, "name": name, "world_size": world_size, "out": str(tmp_path / name), **more}

    broken = {name: tmp_path / f"parts-{name}" for name in ("missing", "torn")}
    for folder in broken.values():
        shutil.copytree(built(8).folder, folder)
    torn = broken["torn"] / "part-00005.parquet"
    torn.write_bytes(b"\0" * torn.stat().st_size)  # of the right size: found when it is read
    found = ranks(
        [
            job("one", 1, built(8).folder),
            job("four", 4, built(8).folder),
            job("empty", 4, built(64).folder),
            job("divide", 3, built(8).folder),
            job("missing", 2, broken["missing"], broken="partition missing", broken_rank=0),
            job("torn", 2, broken["torn"]),
        ]
    )
    for name in ("one", "four", "empty"):
        assert all(part.get("result") == "fine" for part in found[name]), found[name]
    for name, told in (("divide", "can't be dealt out to 3"), ("missing", "part-00001"), ("torn", "part-00005")):
        assert all(told in part.get("error", "") and part["seconds"] < 60 for part in found[name]), found[name]
        assert not (tmp_path / name).exists()
    losses = {}
    for name in ("one", "four"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines]
    # initial rows differ between one rank and four: it is the first epoch's order of magnitude that must agree
    assert losses["four"] == pytest.approx(losses["one"], rel=0.15)
    assert all(np.diff(losses[name])[0] < 0 for name in losses)
    assert Run(tmp_path / "four").info["partitions"] == str(built(8).folder.resolve())
    for name, log in (("one", built(8)), ("four", built(8)), ("empty", built(64))):
        assert_interests_are_those_of_the_model(tmp_path / name, log)
    done = python("-m", "bseq_plugin.cli.main", "evaluate", tmp_path / "four", "--split", "validation")
    assert done.returncode == 0, done.stderr


def test_a_run_on_partitions_resumes_and_refuses_another_log(built, tiny_recipe, tmp_path, monkeypatch, weights):
    from bseq_plugin import RunError
    from bseq_plugin.training.trainer import Trainer

    recipe, log = tiny_recipe.replace(split={"patience": 2}, training={"epochs": 2}), built(4)
    whole = train(log, recipe, tmp_path / "whole", progress=False, checkpoint_steps=2)
    save = Trainer._save

    def stops(self):
        save(self)
        if (self.state.epoch, self.state.step) == (1, 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stops)
        with pytest.raises(KeyboardInterrupt):
            train(log, recipe, tmp_path / "parts", progress=False, checkpoint_steps=2)
    with pytest.raises(RunError, match="begun on another log; resume with the same partitions"):
        train(built(8), recipe, tmp_path / "parts", resume=True, progress=False)
    log = PartitionedSequences.open(log.folder)
    resumed = train(log, recipe, tmp_path / "parts", resume=True, progress=False, checkpoint_steps=2)
    assert weights(resumed.path) == weights(whole.path)


def test_a_disk_that_fills_under_the_interests_leaves_a_run_that_resumes(built, tiny_recipe, tmp_path, monkeypatch):
    """Told as an error of ours; the run is not complete, and no interests are taken for whole."""
    from bseq_plugin import RunError

    recipe, log, run = tiny_recipe.replace(training={"epochs": 1}), built(4), Run(tmp_path / "run")
    files, writes = InterestFiles(run.path / "interests"), []

    def fills(self, table):
        writes.append(len(table))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TableStream, "write", fills)
        with pytest.raises(RunError, match="No space left on device"):
            train(log, recipe, run.path, progress=False)
    assert writes
    assert run.info["status"] == "training"
    assert not files.fits(run.path / "model", log.digest)
    train(log, recipe, run.path, resume=True, progress=False)
    assert run.info["status"] == "complete"
    assert_interests_are_those_of_the_model(run.path, log)
