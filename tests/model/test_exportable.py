"""``ExportableEncoder``, and the rows on ``torch.export`` of "Compile, trace, export" in docs/embedding.md."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from small_encoders import DIM, ENCODERS, LENGTHS, LONGEST, make_encoder, make_features, small_recipe
from torch import nn
from torchrec import KeyedJaggedTensor

import bseq_plugin as bseq
from bseq_plugin.errors import UsageError
from bseq_plugin.schema.packed import PackedEvents

GuardError = torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode
DYNAMIC = ({1: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
OTHER_LENGTHS = [(1,), (0,), (0, 0), (), (6, 6), (5,) * 20]


def flat(history):
    """The arguments of an ``ExportableEncoder``."""
    n_keys = len(history.keys())
    return history.values().view(n_keys, -1), history.lengths().view(n_keys, -1)[0].to(torch.int64)


def exported(encoder, chosen):
    history = make_features(LENGTHS, chosen)
    with torch.no_grad():
        return torch.export.export(
            bseq.ExportableEncoder(encoder, history.keys()), flat(history), dynamic_shapes=DYNAMIC
        )


@pytest.mark.parametrize("name", ENCODERS)
def test_export_of_an_exportable_encoder(name):
    """One graph for all numbers of users and events, none included; a history beyond the bound is refused."""
    chosen = small_recipe(name)
    encoder = make_encoder(chosen)
    program = exported(encoder, chosen)
    assert not [node for node in program.graph.nodes if "fbgemm" in str(node.target)]
    graph = program.module()
    with torch.no_grad():
        for lengths in (LENGTHS, *OTHER_LENGTHS):
            history = make_features(lengths, chosen, seed=1)
            found = graph(*flat(history))
            assert found.shape == (len(lengths), DIM)
            if lengths:  # torchrec's own look-up takes no batch without users
                torch.testing.assert_close(found, encoder(history).values(), rtol=1e-5, atol=1e-5)
        with pytest.raises(RuntimeError, match="u0 <= 6"):
            graph(*flat(make_features((2, 7), chosen)))


def test_the_keys_of_an_export_are_our_names():
    """Whatever they are called in a batch of the host's, and without those of its items."""
    chosen = small_recipe("causal", events={"features": ()})
    torch.manual_seed(0)
    named = bseq.SequenceInterestEncoder(chosen, 20, item_keys=["target"], keys={"event": "movie"}).eval()
    history = make_features(LENGTHS, chosen)
    with torch.no_grad():
        found = bseq.ExportableEncoder(named, history.keys())(*flat(history))
        events, none = history["event"], torch.zeros(len(LENGTHS), dtype=torch.int64)
        theirs = torch.cat([history["timestamp"].values(), events.values()])
        lengths = torch.cat([events.lengths(), events.lengths(), none])
        batch = KeyedJaggedTensor(["timestamp", "movie", "target"], theirs, lengths=lengths)
        torch.testing.assert_close(found, named(batch).values(), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match=r"reads \['event'\], which are not among the keys \['movie'\]"):
        bseq.ExportableEncoder(named, ["movie"])


SEVERAL = {"objective": "prefix", "interests": {"kind": "several", "n": 3}}
WINDOW = {"vectors": {"similarity": "cosine"}, "objective": {"kind": "window", "popularity_days": (7.0,)}}
FEATURES = ("value", "session", "time_of_week", "event_type", "time_gap")


@pytest.mark.parametrize(
    "sections",
    [
        {"vectors": {"ensemble": 2}},
        SEVERAL,
        WINDOW,
        {**WINDOW, "interests": {"kind": "several", "method": "routing"}},
        {**WINDOW, "interests": {"kind": "several", "anchored": True}},
        {"events": {"features": FEATURES, "time_zone": "America/New_York"}},
    ],
    ids=["ensemble", "several", "window", "routed", "anchored", "features"],
)
def test_export_whatever_the_readout_and_the_features(sections):
    chosen = small_recipe("causal", **sections)
    encoder = make_encoder(chosen)
    graph, history = exported(encoder, chosen).module(), make_features((2, 5, 0), chosen, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(graph(*flat(history)), encoder(history).values(), rtol=1e-5, atol=1e-5)


def test_an_exported_encoder_is_loaded_by_torch_alone_and_compiles_in_one_graph(tmp_path):
    chosen = small_recipe("causal")
    encoder = make_encoder(chosen)
    program, given = exported(encoder, chosen), flat(make_features((4, 2), chosen))
    wanted = program.module()(*given).detach()
    torch.testing.assert_close(torch.compile(program.module(), backend="aot_eager", fullgraph=True)(*given), wanted)
    torch.export.save(program, tmp_path / "encoder.pt2")
    torch.save([*given, wanted], tmp_path / "given.pt")
    code = (
        "import sys, torch\n"
        "values, lengths, wanted = torch.load('given.pt')\n"
        "torch.testing.assert_close(torch.export.load('encoder.pt2').module()(values, lengths), wanted)\n"
        "print([name for name in ('bseq_plugin', 'torchrec', 'fbgemm_gpu') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_export_of_the_encoder_itself_fails():
    chosen = small_recipe("causal")
    with pytest.raises(GuardError, match=r"lengths_B\.max\(\)"):
        torch.export.export(make_encoder(chosen), (make_features(LENGTHS, chosen),))


class DensePart(nn.Module):
    """The states of all users from tensors."""

    def __init__(self, sequence_encoder, longest=None):
        super().__init__()
        self.sequence_encoder, self.longest = sequence_encoder, longest

    def forward(self, x_TD, offsets_B1, timestamps_T):
        return self.sequence_encoder(PackedEvents(x_TD, offsets_B1, timestamps_T, longest=self.longest))


def dense_inputs(lengths):
    n = sum(lengths)
    return torch.randn(n, DIM), torch.tensor([0, *np.cumsum(lengths).tolist()]), torch.arange(n) * 10**10


@pytest.mark.parametrize("name", ["causal", "hstu", "gru", "mean", "masked"])
def test_export_of_the_dense_part_with_a_bound_on_lengths(name):
    part = make_encoder(small_recipe(name)).sequence_encoder
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in range(3))
    with torch.no_grad():
        program = torch.export.export(DensePart(part, LONGEST), dense_inputs(LENGTHS), dynamic_shapes=shapes)
        given = dense_inputs((5, 0, 2, 6))
        torch.testing.assert_close(program.module()(*given), DensePart(part)(*given), rtol=1e-5, atol=1e-5)


def test_export_of_the_dense_part_without_a_bound_fails():
    part = make_encoder(small_recipe("causal")).sequence_encoder
    with pytest.raises(GuardError, match=r"active\.any\(\)"):
        torch.export.export(DensePart(part), dense_inputs(LENGTHS))


def test_what_cannot_be_made_exportable_is_named():
    chosen = small_recipe("cross_session")
    encoder = make_encoder(chosen)
    with pytest.raises(UsageError, match=r"reads \['session_number'\], which are not among the keys"):
        bseq.ExportableEncoder(encoder, ["event", "event_type", "time_gap"])
    with pytest.raises(UsageError, match="call encoder.eval"):
        bseq.ExportableEncoder(encoder.train(), ["event", "session_number"])
    model = bseq.ExportableEncoder(encoder.eval(), make_features((1,), chosen).keys())
    with pytest.raises(RuntimeError, match="a history has more than 6 events"):
        model(*flat(make_features((7,), chosen)))
