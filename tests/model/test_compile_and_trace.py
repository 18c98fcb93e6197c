"""One test for each row of "Compile, trace, export" in docs/embedding.md but the exports (``test_exportable``): what
works gives what eager gives, and what does not work fails as the page says.

Graphs are run by ``backend="eager"`` or ``"aot_eager"``: inductor takes most of a minute for an encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from small_encoders import DIM, ENCODERS, LENGTHS, make_encoder, make_features, small_recipe
from torch import distributed as dist
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.train_pipeline.train_pipelines import TorchCompileConfig, TrainPipelinePT2
from torchrec.fx import symbolic_trace
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.streamable import Pipelineable

import bseq_plugin as bseq

# what TrainPipelinePT2 turns on for the whole process
SETTINGS = (
    "capture_scalar_outputs",
    "capture_dynamic_output_shape_ops",
    "force_unspec_int_unbacked_size_like_on_torchrec_kjt",
    "skip_torchrec",
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Nothing compiled before, and settings as they were."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch({name: getattr(torch._dynamo.config, name) for name in SETTINGS}):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "symbols"),
    [*((name, False) for name in ENCODERS), ("causal", True), ("masked", True)],  # True: as TrainPipelinePT2 has it
)
def test_the_dense_part_compiles_in_several_graphs(name, symbols):
    chosen = small_recipe(name)
    encoder, compiled = make_encoder(chosen), make_encoder(chosen)
    with torch._dynamo.config.patch(capture_scalar_outputs=symbols):
        compiled.sequence_encoder.compile(backend="eager")
        for lengths in (LENGTHS, (2, 2, 5)):
            history = make_features(lengths, chosen)
            assert torch.equal(compiled(history).values(), encoder(history).values())


@pytest.mark.parametrize("what", ["sequence_encoder", "sequence_encoder.part"])
def test_a_compiled_part_has_the_gradients_of_eager(what):
    chosen = small_recipe("causal")
    encoder, compiled = make_encoder(chosen).train(), make_encoder(chosen).train()
    compiled.get_submodule(what).compile(backend="aot_eager")
    history = make_features(LENGTHS, chosen)
    for model in (encoder, compiled):
        model(history).values().square().sum().backward()
    for (key, wanted), found in zip(encoder.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, msg=key)


@pytest.mark.parametrize("name", ENCODERS)
def test_one_graph_is_refused(name):
    chosen = small_recipe(name)
    encoder = make_encoder(chosen)
    encoder.sequence_encoder.compile(backend="eager", fullgraph=True)
    # what is met first depends on Python's version: up to 3.11 a cached property has a lock
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="RLock|data-dependent|torch.compiler.disable"):
        encoder(make_features(LENGTHS, chosen))


class Host(nn.Module):
    """Somebody's model with an encoder inside."""

    def __init__(self, encoder):
        super().__init__()
        self.interest, self.over = encoder, nn.Linear(DIM, 1)

    def forward(self, history):
        return self.over(self.interest(history)["user_interest"])


@dataclass
class Batch(Pipelineable):
    """The smallest batch that TorchRec's pipelines take."""

    history: KeyedJaggedTensor

    def to(self, device, non_blocking=False):
        return Batch(self.history.to(device, non_blocking))

    def record_stream(self, stream):
        self.history.record_stream(stream)


class Training(Host):
    """The same as TorchRec's pipelines want it."""

    def forward(self, batch):
        loss = self.over(self.interest(batch.history)["user_interest"]).square().sum()
        return loss, {"loss": loss.detach()}


def losses(chosen, make_pipeline, compile_it=None, n_steps=2):
    """Of a sharded host, which starts with the same weights every time; and the pipeline."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.1}
        host = Training(make_encoder(chosen, "meta")).train()
        if compile_it == "before sharding":
            host.interest.sequence_encoder.compile(backend="aot_eager")
        model = DistributedModelParallel(
            host, device=torch.device("cpu"), sharders=[EmbeddingCollectionSharder(fused_params=fused)]
        )
        if compile_it == "after sharding":
            host.interest.sequence_encoder.compile(backend="aot_eager")
        dense = dict(in_backward_optimizer_filter(model.named_parameters()))
        adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
        pipeline = make_pipeline(model, CombinedOptimizer([model.fused_optimizer, adam]), torch.device("cpu"))
        data = iter([Batch(make_features(LENGTHS, chosen)) for _ in range(n_steps)])
        return [float(pipeline.progress(data)["loss"]) for _ in range(n_steps)], pipeline
    finally:
        dist.destroy_process_group()


def sparse_pipeline(model, optimizer, device):
    return TrainPipelineSparseDist(model, optimizer, device, execute_all_batches=True)


@pytest.mark.parametrize(("name", "when"), [("causal", "after sharding"), ("gru", "before sharding")])
def test_the_dense_part_is_compiled_under_dmp_and_the_sparse_pipeline(name, when):
    chosen = small_recipe(name, events={"features": ()})
    wanted, _ = losses(chosen, sparse_pipeline)
    torch._dynamo.utils.counters.clear()
    found, pipeline = losses(chosen, sparse_pipeline, when)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert found == pytest.approx(wanted, rel=1e-5)
    assert len(pipeline._pipelined_modules) == 1


def pt2_pipeline(fullgraph):
    config = TorchCompileConfig(backend="eager", fullgraph=fullgraph, compile_on_iter=0)
    return lambda *given: TrainPipelinePT2(*given, compile_configs=config)


def test_train_pipeline_pt2_trains_as_the_sparse_pipeline_does():
    chosen = small_recipe("causal", events={"features": ()})
    wanted, _ = losses(chosen, sparse_pipeline)
    torch._dynamo.utils.counters.clear()
    found, pipeline = losses(chosen, pt2_pipeline(False))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 10
    assert pipeline._model.module.interest.learned.told() == (True, False)  # by a hook, outside of the graphs
    assert found == pytest.approx(wanted, rel=1e-5)


def test_train_pipeline_pt2_in_one_graph_is_refused():
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torchrec/distributed/model_parallel\.py"):
        losses(small_recipe("mean"), pt2_pipeline(True))


def test_fx_traces_a_host_whose_encoder_is_a_leaf():
    chosen = small_recipe("causal")
    host, history = Host(make_encoder(chosen)).eval(), make_features(LENGTHS, chosen)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return isinstance(m, bseq.SequenceInterestEncoder) or super().is_leaf_module(m, module_qualified_name)

    by_torch = torch.fx.GraphModule(host, Tracer().trace(host))
    by_torchrec = symbolic_trace(host, leaf_modules=["SequenceInterestEncoder"])
    for traced in (by_torch, by_torchrec):
        assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["interest", "over"]
        assert torch.equal(traced(history), host(history))


@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, symbolic_trace], ids=["torch", "torchrec"])
def test_fx_does_not_trace_into_the_encoder(trace):
    with pytest.raises(RuntimeError, match="'len' is not supported in symbolic tracing"):
        trace(Host(make_encoder(small_recipe("causal"))))


def test_torchscript_does_not_take_the_encoder():
    with pytest.raises(ValueError, match="Unknown type annotation"):
        torch.jit.script(make_encoder(small_recipe("causal")))
