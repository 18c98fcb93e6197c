import json
import math
import shutil
from contextlib import closing
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from bseq_plugin import (
    BseqError,
    Events,
    InterestModel,
    Recipe,
    RecipeError,
    Run,
    RunError,
    SchemaError,
    UsageError,
    ranking_metrics,
    top_k_items,
    train,
)
from bseq_plugin.data.prepare import prepare
from bseq_plugin.data.splits import evaluation_set
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.distributed import world
from bseq_plugin.encoders.causal import CausalEncoder
from bseq_plugin.encoders.packed.block import FeedForward
from bseq_plugin.losses.softmax import SoftmaxLoss
from bseq_plugin.training.log import RunLog
from bseq_plugin.training.pipeline import EpochPipeline
from bseq_plugin.training.sharding import shard
from bseq_plugin.training.trainer import Trainer, build_task


@pytest.fixture
def events(tiny_frame):
    return Events.from_frame(tiny_frame)


def quietly(*args, **kwargs):
    return train(*args, progress=False, **kwargs)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else None


def test_a_cycle_is_learned(cyclic, tmp_path, read_lines):
    """The next item is a function of the last one, so the right answer is known: Recall@1 = 1 on the held-out items."""
    recipe = Recipe(
        encoder={"max_length": 8, "dropout": 0.0},
        vectors={"dim": 16},
        split={"kind": "leave_one_out", "patience": 25, "mask_seen": False, "metric": "recall@1"},
        training={"epochs": 25, "batch": {"users": 20}, "dense": {"rate": 3e-3}},
    )
    run = quietly(cyclic, recipe, tmp_path / "run")
    lines = read_lines(run.path)
    losses = [line["loss"] for line in lines]
    # six items: a model that knows nothing loses log(6); the first epoch's mean begins there and learning lowers it
    assert 0.5 * math.log(6) < losses[0] < math.log(6) + 0.2
    assert losses[-1] < 0.1 * losses[0]
    assert run.info["status"] == "complete"
    assert run.info["validation"]["recall@1"] == 1.0
    model = InterestModel.from_run(run.path)
    test = evaluation_set(run.sequences(), run.recipe.split, "test")
    top = top_k_items(model.encode(test.histories), model.item_vectors_VD, 1)
    assert ranking_metrics(top, test.target_offsets, test.target_items, [1])["recall@1"].mean() == 1.0


def test_another_items_table_is_refused(events, tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace(items={"attributes": ("kind",)}, training={"epochs": 1})
    items = pd.DataFrame({"item_id": sorted(events.frame.item_id.unique())})
    quietly(events, recipe, tmp_path / "run", items=items.assign(kind=items.item_id % 3))
    with pytest.raises(RunError, match="another items table"):
        quietly(events, recipe, tmp_path / "run", items=items.assign(kind=(items.item_id + 1) % 3), resume=True)


@pytest.mark.parametrize(
    "sections",
    [{}, {"negatives": {"kind": "popularity", "n": 20}}, {"loss": "bce"}, {"vectors": {"similarity": "cosine"}}],
)
def test_the_loss_goes_down(events, tiny_recipe, tmp_path, read_lines, sections):
    chosen = tiny_recipe.replace(split={"patience": 6}, training={"epochs": 6, "dense": {"rate": 5e-3}}, **sections)
    losses = [line["loss"] for line in read_lines(quietly(events, chosen, tmp_path / "run").path)]
    assert losses[-1] < losses[0]
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"items": {"attributes": ()}},
        {"negatives": {"kind": "uniform", "n": 10}},
        {
            "encoder": {"name": "mean", "feed_forward": 8},
            "objective": {"kind": "window", "days": 14, "popularity_days": (7.0,)},
        },
    ],
)
def test_the_pipeline_pipelines_the_tables(events, tiny_recipe, tmp_path, sections):
    """Its look-ups start one batch ahead; a batch rebuilt in ``forward`` would lose that without a word."""
    log = prepare(events, tiny_recipe.replace(**sections))
    losses = {}
    with world() as here:
        data = TrainingData(log.training, log.vocabulary, log.recipe, here.rank, here.size)
        for kind, size in ((TrainPipelineBase, 1), (TrainPipelineSparseDist, 2)):
            torch.manual_seed(0)
            pipeline = EpochPipeline(
                shard(build_task(log, "meta"), log.recipe.training, "auto", here), replace(here, size=size)
            )
            assert type(pipeline.torchrec) is kind
            pipeline.model.train()
            losses[kind] = []
            for epoch in range(2):
                for outputs, n_events in pipeline.outputs(data.batches(epoch)):
                    losses[kind].append((float(outputs["loss"]), n_events))
                    assert kind is TrainPipelineBase or len(pipeline.torchrec._pipelined_modules) == 1
    # one process alone does not look ahead, and learns the same
    assert losses[TrainPipelineBase] == losses[TrainPipelineSparseDist]
    assert len(losses[TrainPipelineBase]) == 2 * data.steps_per_epoch
    assert all(math.isfinite(loss) for loss, _ in losses[TrainPipelineBase])


@pytest.mark.parametrize("size", [1, 2])
def test_a_pipeline_that_is_left_early_leaves_a_plain_model(events, tiny_recipe, monkeypatch, size):
    log, told = prepare(events, tiny_recipe), []
    with world() as here:
        data = TrainingData(log.training, log.vocabulary, log.recipe, here.rank, here.size)
        batch = next(data.batches(0))
        pipeline = EpochPipeline(
            shard(build_task(log, "meta"), log.recipe.training, "auto", here), replace(here, size=size)
        )
        progress = pipeline.torchrec.progress
        monkeypatch.setattr(pipeline.torchrec, "progress", lambda read: told.append("step") or progress(read))
        pipeline.model.train()
        outputs = pipeline.outputs(data.batches(0), told.append)
        next(outputs)
        next(outputs)
        assert told == [0, "step", 1, "step"]
        outputs.close()
        pipeline.model.eval()
        alone = float(pipeline.model(batch)[1]["loss"])  # it looks up for itself
        (found,) = [float(found["loss"]) for found, _ in pipeline.outputs(iter([batch]))]
        assert found == alone

        def broken():
            yield batch
            raise OSError("the log is gone")

        with pytest.raises(OSError, match="the log is gone"):
            list(pipeline.outputs(broken()))


def test_an_encoder_without_parameters_trains_its_tables(events, tiny_recipe, tmp_path, weights, monkeypatch):
    """``mean`` as it comes has nothing dense to learn; it trains, is checkpointed and resumes like any other."""
    chosen = tiny_recipe.replace(encoder={"name": "mean"}, training={"epochs": 3})
    whole = quietly(events, chosen, tmp_path / "whole")
    assert whole.info["status"] == "complete"
    stopped_after(events, chosen, tmp_path / "parts", monkeypatch, 1)
    parts = quietly(events, chosen, tmp_path / "parts", resume=True)
    assert weights(parts.path) == weights(whole.path)


class Stopped(Exception):
    pass


def stopped_after(events, recipe, out, monkeypatch, epoch, **options):
    """Train, and break off in the epoch after ``epoch``."""
    steps = Trainer._steps

    def breaks(self, number, report):
        if number == epoch:
            steps(self, number, report)  # everything of the epoch happened but its checkpoint
            raise Stopped
        return steps(self, number, report)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_steps", breaks)
        with pytest.raises(Stopped):
            quietly(events, recipe, out, **options)


RESUMED = [
    ({"encoder": {"dropout": 0.3}}, "auto"),
    (
        {
            "encoder": {"dropout": 0.2},
            "negatives": {"kind": "uniform", "n": 7},
            "training": {"schedule": "cosine", "dense": {"weight_decay": 0.1}},
        },
        "auto",
    ),
    ({"training": {"table": {"name": "adagrad"}}}, "table_wise"),
    ({"vectors": {"similarity": "cosine"}, "training": {"table": {"name": "sgd"}, "seed": 3}}, "auto"),
    (
        {
            "encoder": {"dropout": 0.3},
            "objective": {"kind": "window", "days": 14, "popularity_days": (7.0,)},
            "split": {"kind": "time", "horizon_days": 14},
        },
        "auto",
    ),
    ({"split": "none"}, "auto"),
]


@pytest.mark.parametrize(("sections", "sharding"), RESUMED)
def test_resumed_is_uninterrupted(events, tiny_recipe, tmp_path, monkeypatch, read_lines, weights, sections, sharding):
    """Bit by bit: metrics of every epoch and the exported weights."""
    chosen = tiny_recipe.replace(split={"patience": 4}, training={"epochs": 4}).replace(**sections)
    whole = quietly(events, chosen, tmp_path / "whole", sharding=sharding)
    stopped_after(events, chosen, tmp_path / "parts", monkeypatch, 2, sharding=sharding)
    assert Run(tmp_path / "parts").info["status"] == "training"
    torch.manual_seed(12345)  # the state of the caller's generator must not matter
    parts = quietly(events, chosen, tmp_path / "parts", resume=True, sharding=sharding)
    assert read_lines(parts.path) == read_lines(whole.path)
    assert weights(parts.path) == weights(whole.path)
    same = ("status", "best_epoch", "epochs", "validation", "world_size")
    assert [parts.info[k] for k in same] == [whole.info[k] for k in same]


def test_what_is_measured_is_measured_once(events, tiny_recipe, tmp_path, monkeypatch):
    """A resumed run multiplies as it was begun, whatever the machine would say now."""
    parts = {"encoder": CausalEncoder, "loss": SoftmaxLoss}
    for part in parts.values():
        monkeypatch.setattr(part, "machine_choices", lambda self, dim: {"matmul": "bfloat16"})
    stopped_after(events, tiny_recipe, tmp_path / "run", monkeypatch, 1)
    for part in parts.values():
        monkeypatch.setattr(part, "machine_choices", lambda self, dim: {"matmul": "float32"})
    used = set()

    def noting(forward):
        return lambda self, *a: (self.training and used.add((type(self), matmul_of(self))), forward(self, *a))[1]

    def matmul_of(part):
        return part.matmul

    with monkeypatch.context() as patch:
        for part in (SoftmaxLoss, FeedForward):
            patch.setattr(part, "forward", noting(part.forward))
        run = quietly(events, tiny_recipe, tmp_path / "run", resume=True)
    assert used == {(SoftmaxLoss, "bfloat16"), (FeedForward, "bfloat16")}
    assert run.info["machine_choices"] == {name: {"matmul": "bfloat16"} for name in parts}


def test_the_type_of_products_that_is_asked_for_is_kept_in_the_run(events, tiny_recipe, tmp_path):
    run = train(events, tiny_recipe.replace(training={"epochs": 1}), tmp_path / "run", progress=False, matmul="float32")
    assert run.info["machine_choices"] == {"encoder": {"matmul": "float32"}, "loss": {"matmul": "float32"}}
    with pytest.raises(UsageError, match="matmul = 'float16'; use one of auto, float32, bfloat16"):
        train(events, tiny_recipe, tmp_path / "other", progress=False, matmul="float16")
    assert not (tmp_path / "other").exists()


def test_a_finished_run_is_not_trained_again(events, tiny_recipe, tmp_path, weights):
    run = quietly(events, tiny_recipe, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}
    again = quietly(events, tiny_recipe, tmp_path / "run", resume=True)
    assert again.info == run.info
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()} == before


def test_resume_of_nothing_starts_at_the_beginning(events, tiny_recipe, tmp_path, read_lines):
    run = quietly(events, tiny_recipe, tmp_path / "run", resume=True)
    assert len(read_lines(run.path)) == tiny_recipe.training.epochs


def test_a_run_that_was_killed_while_it_was_begun_can_be_resumed(events, tiny_recipe, tmp_path, tiny_run, weights):
    """``run.json`` comes last: before it there may be any of the other files."""
    out = tmp_path / "run"
    for present in (
        [],
        ["recipe.json"],
        ["recipe.json", "vocabulary.parquet"],
        [".tmp-run.json-12", "recipe.json", "sequences.parquet"],
    ):
        out.mkdir()
        for name in present:
            (out / name).write_text("torn")
        run = quietly(events, tiny_recipe, out, resume=True)
        assert weights(run.path) == weights(tiny_run)
        out.rename(tmp_path / f"done-{len(present)}")


def test_an_existing_folder_is_not_touched(events, tiny_recipe, tiny_run, tmp_path):
    before = files(tiny_run)
    with pytest.raises(RunError, match="already holds a run; give another --out, or go on with it"):
        quietly(events, tiny_recipe, tiny_run)
    assert files(tiny_run) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("precious")
    for resume in (False, True):
        with pytest.raises(RunError, match="is not empty and not a run"):
            quietly(events, tiny_recipe, tmp_path / "notes", resume=resume)
    assert files(tmp_path / "notes") == ["mine.txt"]
    (tmp_path / "file").write_text("precious")
    with pytest.raises(BseqError, match="file"):
        quietly(events, tiny_recipe, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_resume_refuses_another_recipe_or_log(events, tiny_recipe, tmp_path, monkeypatch, make_frame):
    stopped_after(events, tiny_recipe, tmp_path / "run", monkeypatch, 1)
    other = tiny_recipe.replace(encoder={"dropout": 0.1}, training={"seed": 9})
    with pytest.raises(RunError, match=r"another recipe \(different: encoder.dropout, training.seed\)") as caught:
        quietly(events, other, tmp_path / "run", resume=True)
    assert "dim" not in str(caught.value)
    with pytest.raises(RunError, match="another log"):
        quietly(Events.from_frame(make_frame(n_items=25)), tiny_recipe, tmp_path / "run", resume=True)
    assert quietly(events, tiny_recipe, tmp_path / "run", resume=True).info["status"] == "complete"


def test_resume_refuses_a_log_with_other_events_of_the_same_items(
    events, tiny_recipe, tmp_path, monkeypatch, make_frame
):
    stopped_after(events, tiny_recipe, tmp_path / "run", monkeypatch, 1)
    other = Events.from_frame(make_frame(seed=1))
    assert set(other.frame.item_id) == set(events.frame.item_id)
    with pytest.raises(RunError, match="another log"):
        quietly(other, tiny_recipe, tmp_path / "run", resume=True)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    events, tiny_recipe, tmp_path, monkeypatch, weights
):
    chosen = tiny_recipe.replace(training={"epochs": 3})
    whole = quietly(events, chosen, tmp_path / "whole")
    forward, calls = SoftmaxLoss.forward, []

    def poisoned(self, *args):
        calls.append(1)
        return forward(self, *args) * (float("nan") if len(calls) == 7 else 1.0)  # 4 steps an epoch: epoch 2, step 3

    with monkeypatch.context() as patch:
        patch.setattr(SoftmaxLoss, "forward", poisoned)
        with pytest.raises(
            BseqError, match=r"the loss is nan in epoch 2, step 3; lower training.dense.rate.*checkpoints"
        ):
            quietly(events, chosen, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["epoch-0001"]
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(RunError, match="not a finished run"):
        InterestModel.from_run(tmp_path / "run")
    assert weights(quietly(events, chosen, tmp_path / "run", resume=True).path) == weights(whole.path)


@pytest.mark.parametrize("damage", ["half", "gone", "metadata"])
def test_a_damaged_checkpoint_is_told_in_one_line(events, tiny_recipe, tmp_path, monkeypatch, damage):
    """And with it removed, training goes on from what is left."""
    stopped_after(events, tiny_recipe, tmp_path / "run", monkeypatch, 1)
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch-0001"
    file = checkpoint / ".metadata" if damage == "metadata" else next(checkpoint.glob("*.distcp"))
    data = file.read_bytes()
    file.unlink() if damage == "gone" else file.write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="epoch-0001 is damaged; remove it") as caught:
        quietly(events, tiny_recipe, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    shutil.rmtree(checkpoint)
    assert quietly(events, tiny_recipe, tmp_path / "run", resume=True).info["status"] == "complete"


def test_a_disk_that_fails_in_a_checkpoint_leaves_the_one_before(events, tiny_recipe, tmp_path, monkeypatch, weights):
    """The second checkpoint can't be written: one line, the first one is still there, and the run can be resumed."""
    whole = quietly(events, tiny_recipe, tmp_path / "whole")
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    write = FileSystemWriter.write_data

    def fails(self, *args, **kwargs):
        if "epoch-0002" in str(self.path):
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", fails)
        with pytest.raises(RunError, match=r"epoch 2 can't be written.*No space left on device") as caught:
            quietly(events, tiny_recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "epoch-0001" in [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert weights(quietly(events, tiny_recipe, tmp_path / "run", resume=True).path) == weights(whole.path)


def test_training_stops_early_and_exports_the_best_epoch(events, tiny_recipe, tmp_path, monkeypatch, read_lines):
    """Validation scores are scripted: the second epoch is the best, and two more bring nothing."""
    scores = iter([0.2, 0.5, 0.5, 0.4, 0.9])
    monkeypatch.setattr("bseq_plugin.training.trainer.validate", lambda *a: {"ndcg@10": next(scores)})
    run = quietly(events, tiny_recipe.replace(split={"patience": 2}, training={"epochs": 9}), tmp_path / "run")
    assert (run.info["epochs"], run.info["best_epoch"], run.info["validation"]) == (4, 2, {"ndcg@10": 0.5})
    assert len(read_lines(run.path)) == 4
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["epoch-0002", "epoch-0004"]
    two = quietly(events, tiny_recipe.replace(split="none", training={"epochs": 9, "stop_after": 2}), tmp_path / "two")
    assert (two.info["epochs"], two.info["best_epoch"], two.info["validation"]) == (2, 2, None)


def test_validation_may_come_every_few_epochs(events, tiny_recipe, tmp_path, monkeypatch, read_lines):
    """Of seven epochs the third, the sixth and the last are looked at; the sixth is the best."""
    scores = iter([0.2, 0.5, 0.4])
    monkeypatch.setattr("bseq_plugin.training.trainer.validate", lambda *a: {"ndcg@10": next(scores)})
    seven = tiny_recipe.replace(split={"patience": 7, "every": 3}, training={"epochs": 7})
    run = quietly(events, seven, tmp_path / "run")
    assert (run.info["epochs"], run.info["best_epoch"], run.info["validation"]) == (7, 6, {"ndcg@10": 0.5})
    assert [line["epoch"] for line in read_lines(run.path) if "ndcg@10" in line] == [3, 6, 7]
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["epoch-0006", "epoch-0007"]
    # no epoch is trained and not looked at: patience ends with a look, here after two epochs, and again after two more
    scores = iter([0.2, 0.5, 0.4, 0.3])
    impatient = tiny_recipe.replace(split={"patience": 2, "every": 3}, training={"epochs": 20})
    few = quietly(events, impatient, tmp_path / "few")
    assert [line["epoch"] for line in read_lines(few.path) if "ndcg@10" in line] == [2, 3, 5]
    assert (few.info["epochs"], few.info["best_epoch"]) == (5, 3)


def test_the_exported_model_is_that_of_the_best_epoch(events, tiny_recipe, tmp_path, monkeypatch, weights):
    scores = iter([0.5, 0.4, 0.3])
    monkeypatch.setattr("bseq_plugin.training.trainer.validate", lambda *a: {"ndcg@10": next(scores, 0.0)})
    three = quietly(events, tiny_recipe.replace(training={"epochs": 3}), tmp_path / "three")
    scores = iter([0.5])
    one = quietly(events, tiny_recipe.replace(training={"epochs": 3, "stop_after": 1}), tmp_path / "one")
    assert weights(three.path) == weights(one.path)


def test_validation_is_evaluation_of_the_exported_model(tiny_run):
    """The sharded model's metrics are those of the plain model, over the whole catalogue, seen items masked."""
    run = Run(tiny_run)
    model = InterestModel.from_run(tiny_run)
    held_out = evaluation_set(run.sequences(), run.recipe.split, "validation")
    seen = (held_out.histories.offsets, held_out.histories.items)
    top = top_k_items(model.encode(held_out.histories), model.item_vectors_VD, 10, seen)
    metrics = ranking_metrics(top, held_out.target_offsets, held_out.target_items, [10])
    for name, value in run.info["validation"].items():
        assert value == pytest.approx(metrics[name].mean(), abs=1e-9)


BAD = [
    ({"encoder": "gru4rec"}, UsageError, "unknown encoder 'gru4rec'; there are:"),
    ({"loss": "triplet"}, UsageError, "unknown loss 'triplet'; there are:"),
    ({"encoder": {"n_head": 2}}, RecipeError, "options of encoder 'causal': unknown key 'n_head'; the keys are:"),
    ({"encoder": {"n_blocks": "two"}}, RecipeError, "options of encoder 'causal': n_blocks = 'two'"),
    ({"loss": {"margin": 1}}, RecipeError, "options of loss 'softmax': unknown key 'margin'; the keys are:"),
    ({"training": {"table": {"name": "adam"}}}, RecipeError, "use training.table.name = 'rowwise_adagrad'"),
    ({"vectors": {"dim": 9}}, RecipeError, "dim = 9 is not a multiple of encoder.n_heads = 2"),
    ({"items": {"attributes": ("shelf",)}}, SchemaError, "give the items table"),
    ({"items": {"min_count": 10_000}}, SchemaError, "lower it"),
    ({"objective": {"kind": "window", "days": 999.0}}, SchemaError, "longer than the training log"),
    ({"split": {"kind": "time", "horizon_days": 999.0}}, SchemaError, "no event lies before split.validation_at"),
]


@pytest.mark.parametrize(
    ("sections", "kind", "message"), BAD, ids=[str(list(v)[-1]) + str(n) for n, (v, _, _) in enumerate(BAD)]
)
def test_what_can_not_work_is_refused_before_anything_is_written(
    events, tiny_recipe, tmp_path, sections, kind, message
):
    recipe = tiny_recipe.replace(**sections)
    for resume in (False, True):
        with pytest.raises(kind, match=message):
            quietly(events, recipe, tmp_path / "run", resume=resume)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encodr": "mean"}, "unknown key 'encodr'; the keys are: .*encoder"),
        ({"vectors": {"dim": 0}}, "vectors.dim = 0"),
        ({"encoder": {"dropout": 1.0}}, "encoder.dropout = 1.0"),
        (
            {"objective": {"kind": "next", "popularity_days": [7.0]}},
            "unknown key 'objective.popularity_days' with kind = 'next'.*with objective.kind = 'window'",
        ),
        ({"split": {"metric": "auc"}}, "split.metric = 'auc'"),
        ({"sharding": "row_wise"}, "unknown key 'sharding'; the keys are: "),
        ({"negatives": {"kind": "uniform", "n": 0}}, "negatives.n = 0"),
        ({"negatives": {"kind": "uniform", "n": -5}}, "negatives.n = -5"),
        ({"objective": {"kind": "window", "popularity_days": [0.0]}}, "objective.popularity_days"),
        ({"objective": {"kind": "window", "popularity_days": [-7.0]}}, "objective.popularity_days"),
        ({"objective": {"kind": "window", "days": float("inf")}}, "objective.days = inf"),
        ({"training": {"dense": {"rate": float("nan")}}}, "training.dense.rate = nan"),
        ({"events": {"features": ["time_gap", "time_gap"]}}, "events.features: features names one twice"),
    ],
)
def test_recipes_are_checked(values, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(values)


def test_lines_are_struck_from_the_log_all_at_once(tmp_path, monkeypatch):
    """A resumed run strikes what lies beyond its checkpoint; killed meanwhile, it has not lost the lines before."""
    lines = [f'{{"epoch": {n}}}\n' for n in (1, 2, 3)] + ['{"epo']  # the last one was cut off by a kill
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(lines))

    def killed(*args):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(Stopped):
            RunLog(tmp_path, enabled=True, progress=False, epochs=3, resumed_after=2)
    assert file.read_text() == "".join(lines)
    with closing(RunLog(tmp_path, enabled=True, progress=False, epochs=3, resumed_after=2)):
        assert file.read_text() == "".join(lines[:2])


def test_tensorboard_and_the_log_agree(tiny_run, read_lines):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(tiny_run / "tensorboard"))
    accumulator.Reload()
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "ndcg@10"):
        written = {event.step: event.value for event in accumulator.Scalars(name)}
        assert written == pytest.approx({line["epoch"]: line[name] for line in lines}, rel=1e-6)
