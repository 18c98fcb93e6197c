"""What can't work on several ranks: a clear error on every rank, within a minute, and nothing lost."""

import json
import shutil

import pytest
import torch

from bseq_plugin import Events, RecipeError, train
from bseq_plugin.distributed import World
from bseq_plugin.recipe.training import TableOptimizer
from bseq_plugin.training import plan
from bseq_plugin.training.plan import check_device, sharding_types
from bseq_plugin.training.trainer import build_task

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("sharding", "table", "dim", "world_size", "message"),
    [
        ("auto", "adam", 16, 1, "not fused on CPU.*use training.table.name = 'rowwise_adagrad'"),
        (
            "column_wise",
            "rowwise_adagrad",
            16,
            2,
            "one number a row.*use training.table.name = 'adagrad', or sharding = 'row_wise'",
        ),
        ({"item": "column_wise"}, "rowwise_adagrad", 16, 2, "one number a row"),
        (
            "column_wise",
            "adagrad",
            24,
            4,
            "can't cut rows of 24 into 4 pieces of whole fours; use 1 or 2 or 3 or 6 process",
        ),
    ],
)
def test_what_a_device_can_not_shard_is_refused_with_the_alternative(sharding, table, dim, world_size, message):
    with pytest.raises(RecipeError, match=message):
        check_device(sharding, TableOptimizer(name=table), dim, CPU, world_size)


def test_what_it_can_is_not():
    check_device("column_wise", TableOptimizer(), 64, CPU, 1)  # in one piece
    check_device("column_wise", TableOptimizer(name="adagrad"), 16, CPU, 4)
    check_device("auto", TableOptimizer(name="adam"), 64, torch.device("cuda"), 4)


@pytest.mark.parametrize("name", ["data_parallel", "grid_shard", "table_row_wise", "table_column_wise"])
def test_other_shardings_of_torchrec_are_refused_with_the_reason(name):
    for sharding in (name, {"item": name}):
        with pytest.raises(RecipeError, match=f"sharding = '{name}' is not offered: .*use 'row_wise'"):
            sharding_types(sharding, ["item", "time_gap"])


def test_a_plan_for_tables_that_are_not_there():
    with pytest.raises(RecipeError, match=r"names the table\(s\) brand, .* its tables are: item, time_gap"):
        sharding_types({"brand": "row_wise", "item": "row_wise"}, ["item", "time_gap"])
    types = sharding_types({"item": "column_wise"}, ["item", "time_gap"])
    assert types == {"item": ["column_wise"], "time_gap": ["row_wise", "table_wise"]}


def test_tables_larger_than_the_machine_are_refused_before_anything_is_allocated(monkeypatch):
    """Ten million rows of 64 numbers and one of Adagrad's: 2.4 GiB in one piece, half of it on two ranks."""
    from torchrec import EmbeddingConfig

    table = EmbeddingConfig(name="item", num_embeddings=10**7, embedding_dim=64, feature_names=["event"])
    monkeypatch.setattr(plan, "device_bytes", lambda here: 2 * 2**30)
    alone, two = World(0, 1, CPU), World(0, 2, CPU)
    with pytest.raises(RecipeError, match=r"need 2.4 GiB on a process, and it has 1.7 GiB"):
        plan.check_memory("row_wise", TableOptimizer(), [table], alone)
    plan.check_memory("row_wise", TableOptimizer(), [table], two)
    with pytest.raises(RecipeError, match="2.4 GiB"):
        plan.check_memory("table_wise", TableOptimizer(), [table], two)
    with pytest.raises(RecipeError, match="2.4 GiB"):  # Adagrad keeps as much again
        plan.check_memory("row_wise", TableOptimizer(name="adagrad"), [table], two)


def errors(parts):
    """The error of each rank, which came within a minute."""
    assert all(part is not None and "error" in part and part["seconds"] < 60 for part in parts), parts
    return [part["error"] for part in parts]


@pytest.mark.timeout(400)
def test_ranks_fail_together_and_nothing_is_lost(ranks, tiny_source, tiny_frame, tiny_recipe, tmp_path, make_frame):
    done = train(Events.from_frame(tiny_frame), tiny_recipe, tmp_path / "other", progress=False)
    other = train(Events.from_frame(make_frame(n_items=25)), tiny_recipe, tmp_path / "vocabulary", progress=False)
    adagrad = tiny_recipe.replace(training={"table": {"name": "adagrad"}})

    def job(name, recipe=tiny_recipe, **more):
        base = {"do": "run", "world_size": 2, "source": str(tiny_source), "recipe": recipe.as_dict()}
        return {**base, "sharding": "row_wise", "name": name, "out": str(tmp_path / name), **more}

    # a run whose checkpoints somebody has replaced by those of another vocabulary
    shutil.copytree(done.path, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "checkpoints")
    shutil.copytree(other.path / "checkpoints", tmp_path / "mixed" / "checkpoints")
    info = json.loads((tmp_path / "mixed" / "run.json").read_text())
    (tmp_path / "mixed" / "run.json").write_text(json.dumps({**info, "status": "training"}))
    found = ranks(
        [
            job("columns", sharding="column_wise"),
            job("divide", adagrad, sharding="column_wise", world_size=4),
            job("tables", sharding={"brand": "row_wise"}),
            job("planner", broken="raises in planning", broken_rank=0),
            job("planning", broken="dies in planning", broken_rank=0),
            job("step", broken="dies in a step"),
            job("disk", broken="disk full"),
            job("mixed", resume=True),
            job("disk", resume=True) | {"name": "again"},
        ]
    )
    assert len(set(errors(found["columns"]))) == 1
    assert all(text.startswith("RecipeError") and "one number a row" in text for text in errors(found["columns"]))
    assert all("can't cut rows of 8 into 4 pieces" in text for text in errors(found["divide"]))
    assert len(errors(found["divide"])) == 4
    assert all("table(s) brand" in text for text in errors(found["tables"]))
    assert all("planner finds no plan" in text for text in errors(found["planner"]))
    assert not any((tmp_path / name).exists() for name in ("columns", "divide", "tables"))
    for name, survivor in (("planning", 1), ("step", 0)):
        assert found[name][1 - survivor] is None  # it was killed
        assert "lost another process of this run" in errors([found[name][survivor]])[0]
    assert all("epoch 1 can't be written" in t and "No space left" in t for t in errors(found["disk"]))
    assert all("another vocabulary (25 items" in text for text in errors(found["mixed"]))
    assert [part["result"] for part in found["again"]] == ["fine", "fine"]  # the disk has room again
    assert json.loads((tmp_path / "disk" / "run.json").read_text())["status"] == "complete"


def test_a_checkpoint_of_another_recipe_is_refused(tiny_frame, tiny_recipe, tmp_path):
    """``run.json`` and ``recipe.json`` were copied together with the wrong checkpoints."""
    events = Events.from_frame(tiny_frame)
    one = train(events, tiny_recipe.replace(training={"epochs": 1}), tmp_path / "one", progress=False)
    changed = tiny_recipe.replace(encoder={"dropout": 0.1}, training={"epochs": 1, "seed": 4})
    two = train(events, changed, tmp_path / "two", progress=False)
    shutil.rmtree(one.path / "checkpoints")
    shutil.copytree(two.path / "checkpoints", one.path / "checkpoints")
    (one.path / "run.json").write_text(json.dumps({**one.info, "status": "training"}))
    with pytest.raises(Exception, match=r"saved with another recipe \(different: encoder.dropout, training.seed\)"):
        train(events, tiny_recipe.replace(training={"epochs": 1}), one.path, resume=True, progress=False)
    (two.path / "checkpoints" / "epoch-0001" / "state.json").write_text("{")
    (two.path / "run.json").write_text(json.dumps({**two.info, "status": "training"}))
    with pytest.raises(Exception, match=r"state.json can't be read .*remove .*epoch-0001 to go on"):
        train(events, two.recipe, two.path, resume=True, progress=False)


def test_the_model_names_its_tables(tiny_frame, tiny_recipe):
    from bseq_plugin.data.prepare import prepare

    log = prepare(Events.from_frame(tiny_frame), tiny_recipe)
    assert plan.table_names(build_task(log, "meta")) == ["item", "event_type", "time_gap"]
