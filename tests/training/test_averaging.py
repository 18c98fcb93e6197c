"""Averaged weights: a plain loop in float64 is the oracle."""

import pytest
import torch
from safetensors.torch import load_file

from bseq_plugin.data.events import Events
from bseq_plugin.errors import RecipeError
from bseq_plugin.training import averaging
from bseq_plugin.training.averaging import WeightAverage
from bseq_plugin.training.train import train


def test_the_average_is_exported_and_training_is_as_without(tiny_frame, tiny_recipe, tmp_path, monkeypatch, read_lines):
    events, recipe = Events.from_frame(tiny_frame), tiny_recipe.replace(split="none", training={"epochs": 3})
    tables, decays = [], []
    update, begin = WeightAverage.update, WeightAverage.__init__

    def init(self, model, half_life, steps_per_epoch):
        begin(self, model, half_life, steps_per_epoch)
        self.table = next(t for t in self._live if t.ndim == 2 and t.shape == (31, recipe.vectors.dim))  # the item table
        tables.append(self.table.double().clone())

    def recorded(self, step):
        update(self, step)
        tables.append(self.table.double().clone())
        decays.append(min(0.5 ** (1 / (0.5 * 4)), (1 + step) / (10 + step)))  # 4 steps an epoch, each of them averaged

    monkeypatch.setattr(WeightAverage, "__init__", init)
    monkeypatch.setattr(WeightAverage, "update", recorded)
    run = train(events, recipe.replace(ema_half_life=0.5), tmp_path / "run", progress=False)
    assert len(decays) == 12
    average = tables[0]
    for decay, table in zip(decays, tables[1:], strict=True):
        average = decay * average + (1 - decay) * table
    found = load_file(run.path / "model" / "items.safetensors")["item_table"]
    assert torch.allclose(found.double(), average, atol=1e-6)
    assert not torch.allclose(found.double(), tables[-1], atol=1e-3)
    plain = train(events, recipe, tmp_path / "plain", progress=False)
    assert [line["loss"] for line in read_lines(run.path)] == [line["loss"] for line in read_lines(plain.path)]
    assert torch.equal(load_file(plain.path / "model" / "items.safetensors")["item_table"].double(), tables[-1])


def test_applied_within_and_as_before_after_it(monkeypatch):
    monkeypatch.setattr(averaging, "ROWS", 2)  # exchanged in several pieces
    model = torch.nn.Linear(3, 5)
    model.register_buffer("count", torch.tensor(7))
    average = WeightAverage(model, half_life=1.0, steps_per_epoch=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(1)  # decay: the smaller of 1/2 and 2/11
    with average.applied():
        assert torch.allclose(model.weight, before["weight"] + 9 / 11)
        assert torch.equal(model.bias, before["bias"])
    assert torch.equal(model.weight, before["weight"] + 1.0)
    assert model.count == 7
    with pytest.raises(ZeroDivisionError), average.applied():
        1 / 0  # noqa: B018
    assert torch.equal(model.weight, before["weight"] + 1.0)


def test_a_negative_half_life_is_refused(tiny_recipe):
    with pytest.raises(RecipeError, match="ema_half_life = -1"):
        tiny_recipe.replace(ema_half_life=-1)


def test_a_rank_without_weights_has_nothing_to_average():
    average = WeightAverage(torch.nn.Identity(), half_life=1.0, steps_per_epoch=1)
    average.update(1)
    assert average.state() == {}
