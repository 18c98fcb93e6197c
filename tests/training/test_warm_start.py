"""A vocabulary that lives: ids keep their rows, wherever the rows now stand."""

import numpy as np
import pandas as pd
import pytest
import torch

from bseq_plugin import ITEM_TABLE, Events, InterestModel, RecipeError, RunError, train
from bseq_plugin.data.prepare import prepare
from bseq_plugin.distributed import world
from bseq_plugin.training.checkpoint import Checkpoints, Position
from bseq_plugin.training.sharding import shard
from bseq_plugin.training.trainer import build_task
from bseq_plugin.training.warm_start import WarmStart

ITEM_STATE = f"embeddings.{ITEM_TABLE}.weight"


@pytest.fixture(scope="module")
def grown(tiny_frame):
    """The tiny log a while later: an item and an event type in front, an item behind, one item gone."""
    frame = tiny_frame[tiny_frame.item_id != 155].copy()
    new = frame.iloc[-40:].copy()
    new["item_id"] = np.where(np.arange(40) % 2, 1, 9_999)
    new["event_type"] = "add"
    return pd.concat([frame, new], ignore_index=True)


def table_and_state(sharded):
    """(item table, Adagrad's sums) of one rank that has it all."""
    model = sharded.model.state_dict()
    table = next(value for name, value in model.items() if name.endswith(ITEM_STATE)).local_shards()[0].tensor
    state = sharded.model.fused_optimizer.state_dict()["state"]
    (sums,) = [v for name, of in state.items() if name.endswith(ITEM_STATE) for v in of.values() if hasattr(v, "size")]
    return table, sums.local_shards()[0].tensor


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_every_id_keeps_its_row(tiny_frame, grown, tiny_recipe, tmp_path, optimizer):
    recipe = tiny_recipe.replace(training={"table": {"name": optimizer}})
    old = train(Events.from_frame(tiny_frame), recipe, tmp_path / "old", progress=False)
    model = InterestModel.from_run(old.path)
    old_log = prepare(Events.from_frame(tiny_frame), recipe)
    log = prepare(Events.from_frame(grown), recipe)
    with world() as here:
        before = shard(build_task(old_log, "meta"), recipe.training, "auto", here)
        Checkpoints(old.path).load(before, Position(old.info["best_epoch"]), here)
        _, old_sums = table_and_state(before)
        sharded = shard(build_task(log, "meta"), recipe.training, "auto", here)
        taken = WarmStart.open(old.path, log).apply(sharded, log.vocabulary)
        table, sums = table_and_state(sharded)
        old_table = model.encoder.embedding_collection.embeddings[ITEM_TABLE].weight.detach()
        old_rows = {item: place + 1 for place, item in enumerate(model.vocabulary.item_ids.tolist())}
        assert (log.vocabulary.item_ids[0], log.vocabulary.item_ids[-1]) == (1, 9_999)
        assert taken == log.vocabulary.n_items - 2 == len(old_rows) - 1
        assert torch.equal(table[0], old_table[0])
        for place, item in enumerate(log.vocabulary.item_ids.tolist()):
            if item in old_rows:
                assert torch.equal(table[place + 1], old_table[old_rows[item]]), item
                assert torch.equal(sums[place + 1], old_sums[old_rows[item]]), item
            else:
                torch.testing.assert_close(table[place + 1], old_table[1:].mean(0))
                assert not sums[place + 1].any()
        assert old_sums.any()
        types = sharded.model.state_dict()["interest_encoder.embedding_collection.embeddings.event_type.weight"]
        old_types = model.encoder.embedding_collection.embeddings["event_type"].weight.detach()
        # add, buy, view: buy and view were 1 and 2
        assert torch.equal(types.local_shards()[0].tensor[2:], old_types[1:])
        dense = {n: v for n, v in model.encoder.state_dict().items() if not n.startswith("embedding_collection.")}
        mine = sharded.model.state_dict()
        assert len(dense) > 5
        assert [n for n, v in dense.items() if not torch.equal(mine[f"interest_encoder.{n}"], v)] == []


def test_a_warm_run_begins_where_the_other_ended(tiny_frame, grown, tiny_recipe, tmp_path, read_lines, ranks):
    recipe = tiny_recipe.replace(
        encoder={"dropout": 0.0}, split={"patience": 8}, training={"epochs": 8, "dense": {"rate": 5e-3}}
    )
    old = train(Events.from_frame(tiny_frame), recipe, tmp_path / "old", progress=False)
    short, events = recipe.replace(training={"epochs": 1}), Events.from_frame(grown)
    cold = train(events, short, tmp_path / "cold", progress=False)
    warm = train(events, short, tmp_path / "warm", progress=False, warm_start=old.path)
    losses = {run.path.name: read_lines(run.path)[0]["loss"] for run in (cold, warm)}
    assert losses["warm"] < losses["cold"] - 0.3
    grown.to_parquet(tmp_path / "grown.parquet")
    job = {
        "name": "pair", "do": "run", "world_size": 2, "source": str(tmp_path / "grown.parquet"),
        "recipe": short.as_dict(), "sharding": "row_wise", "out": str(tmp_path / "pair"), "warm_start": str(old.path),
    }  # fmt: skip
    found = ranks([job])["pair"]
    assert [part.get("result") for part in found] == ["fine", "fine"], found
    # from the same rows, on two ranks: the first step's batches and so the epoch's loss are the same
    assert read_lines(tmp_path / "pair")[0]["loss"] == pytest.approx(losses["warm"], abs=0.02)


def test_what_does_not_fit_is_refused(tiny_frame, tiny_run, tiny_recipe, tmp_path):
    events = Events.from_frame(tiny_frame)
    for vectors, message in (
        ({"dim": 16}, r"it has another vectors.dim \(vectors.dim = 8\); use the same, or start cold"),
        ({"ensemble": 2}, r"another vectors.ensemble \(vectors.ensemble = 1\)"),
    ):
        other = tiny_recipe.replace(vectors=vectors)
        with pytest.raises(RecipeError, match=message):
            train(events, other, tmp_path / "run", progress=False, warm_start=tiny_run)
    with pytest.raises(RunError, match="not a finished run"):
        train(events, tiny_recipe, tmp_path / "run", progress=False, warm_start=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()
