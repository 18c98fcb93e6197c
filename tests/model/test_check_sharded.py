"""A host whose sharding would teach an encoder's tables something else, or nothing, is told so and what to do.

`python tests/model/test_check_sharded.py RANK STORE` is one of the two processes of the last test.
"""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import bseq_plugin as bseq

DIM, N_ITEMS, CPU = 16, 20, torch.device("cpu")


class Host(nn.Module):
    """One or two encoders beside a table of the host."""

    def __init__(self, n_encoders=1, device="meta"):
        super().__init__()
        ads = EmbeddingBagConfig(name="ad", embedding_dim=DIM, num_embeddings=5, feature_names=["ad"])
        self.ads = EmbeddingBagCollection(tables=[ads], device=torch.device(device))
        self.interest = make_encoder(device)
        self.other = make_encoder(device) if n_encoders == 2 else None
        self.over = nn.Linear(DIM, 1)

    def forward(self, batch):
        read = self.interest(batch)["user_interest"] + self.ads(batch)["ad"]
        if self.other is not None:
            read = read + self.other(batch)["user_interest"]
        loss = self.over(read).square().mean()
        return loss, loss.detach()


def make_encoder(device="meta"):
    recipe = bseq.Recipe(
        encoder={"name": "mean", "max_length": 4, "dropout": 0.0},
        vectors={"dim": DIM},
        events={"features": ("event_type",)},
    )
    return bseq.SequenceInterestEncoder(recipe, N_ITEMS, 3, device=device)


def batch():
    lengths = torch.tensor([2, 3, 2, 3, 1, 1])
    return KeyedJaggedTensor(["event", "event_type", "ad"], torch.tensor([1, 2, 3, 4, 5, *[1] * 7]), lengths=lengths)


def parallel(
    host, ways="row_wise", kind=EmbOptimType.EXACT_ROWWISE_ADAGRAD, rate=0.1, bags_alone=False, fused=True, columns=8
):
    """``host`` under a plan in which the encoder's tables lie in ``ways``, in pieces of ``columns`` or more."""
    settings = {"optimizer": kind, "learning_rate": rate} if fused else None
    sharders = [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder(fused_params=settings)][: 2 - bags_alone]
    constraints = {
        name: ParameterConstraints(sharding_types=[ways], min_partition=columns) for name in ("item", "event_type")
    }
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    plan = planner.collective_plan(host, sharders, dist.GroupMember.WORLD)
    return DistributedModelParallel(host, device=CPU, plan=plan, sharders=sharders)


def told(call):
    """What an encoder warns of in ``call``, whatever else is warned of or raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except RuntimeError as error:
            assert "split_with_sizes" in str(error)  # noqa: PT017  # fbgemm's, after the warning
    return [str(one.message) for one in caught if "Encoder" in str(one.message)]


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("ways", "kind"),
    [
        ("row_wise", EmbOptimType.EXACT_ROWWISE_ADAGRAD),
        ("table_wise", EmbOptimType.EXACT_SGD),
        ("column_wise", EmbOptimType.EXACT_ADAGRAD),
    ],
)
def test_a_sound_host_hears_nothing(group, ways, kind):
    model = parallel(Host(2), ways, kind)
    assert bseq.check_sharded(model) == []
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters))
    pipeline = TrainPipelineSparseDist(model, adam, CPU)
    data = iter([batch()] * 3)
    assert told(lambda: pipeline.progress(data)) == []
    assert len(pipeline._pipelined_modules) == 3
    assert bseq.check_sharded(model.module) == []  # unwrapped, in a pipeline


def test_an_optimizer_of_torchrec_itself_or_its_default_is_sound(group):
    host = Host()
    _apply_optimizer_in_backward(RowWiseAdagrad, host.interest.embedding_collection.parameters(), {"lr": 0.1})
    assert bseq.check_sharded(parallel(host, fused=False)) == []
    assert bseq.check_sharded(parallel(Host(), fused=False)) == []  # fbgemm's: SGD, .01


def test_sharders_that_leave_the_encoder_out(group):
    """TorchRec's golden training passes these; the optimizer that was to run in backward is nowhere."""
    host = Host(2)
    _apply_optimizer_in_backward(RowWiseAdagrad, host.interest.embedding_collection.parameters(), {"lr": 0.1})
    model = parallel(host, bags_alone=True)
    assert "interest.embedding_collection.embeddings.item.weight" in dict(
        in_backward_optimizer_filter(model.named_parameters())
    )
    found = bseq.check_sharded(model, raises=False)
    assert [text.partition(":")[0] for text in found] == ["interest", "other"]
    assert all("table 'item', 'event_type' is in no sharding plan" in text for text in found)
    assert all("add EmbeddingCollectionSharder()" in text for text in found)
    with pytest.raises(bseq.UsageError, match=r"(?s)interest: .*\nother: "):
        bseq.check_sharded(model)


def test_it_warns_once_an_encoder_and_in_training_alone(group):
    model = parallel(Host(2), bags_alone=True)
    assert told(lambda: model.eval()(batch())) == []
    with torch.no_grad():
        assert told(lambda: model.train()(batch())) == []
    first = told(lambda: model(batch()))
    assert len(first) == 2
    assert all("in no sharding plan" in text and "add EmbeddingCollectionSharder()" in text for text in first)
    assert told(lambda: model(batch())) == []


def test_the_pipeline_warns_too(group):
    model = parallel(Host(), bags_alone=True)
    pipeline = TrainPipelineSparseDist(model, torch.optim.SGD(model.parameters(), 0.1), CPU)
    data = iter([batch()] * 4)
    assert len(told(lambda: pipeline.progress(data))) == 1
    assert told(lambda: pipeline.progress(data)) == []


def test_copied_tables_on_a_cpu_are_named_before_they_are_looked_up(group):
    model = parallel(Host(), "data_parallel")
    (found,) = bseq.check_sharded(model, raises=False)
    assert found.startswith("interest: table 'item', 'event_type' is planned as data_parallel")
    assert "sharding_types=['row_wise']" in found
    (text,) = told(lambda: model(batch()))
    assert "pools a history" in text


def test_one_number_a_row_does_not_go_with_rows_in_pieces(group):
    model = parallel(Host(), "column_wise")  # two pieces of 8 on one process
    (found,) = bseq.check_sharded(model, raises=False)
    assert "'item', 'event_type' is planned as column_wise in 2 pieces" in found
    assert "use exact_adagrad, or ParameterConstraints(sharding_types=['row_wise'])" in found
    assert len(told(lambda: model(batch()))) == 1
    assert bseq.check_sharded(parallel(Host(), "column_wise", columns=DIM)) == []  # in one piece


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_rate_of_zero_never_learns(group, in_backward):
    host = Host()
    if in_backward:
        parameters = host.interest.embedding_collection.embeddings["item"].parameters()
        _apply_optimizer_in_backward(RowWiseAdagrad, parameters, {"lr": 0.0})
    model = parallel(host, rate=0.1 if in_backward else 0.0)
    (found,) = bseq.check_sharded(model, raises=False)
    tables = "'item'" if in_backward else "'item', 'event_type'"
    assert found.startswith(f"interest: table {tables} is under a fused optimizer with learning rate 0")
    (text,) = told(lambda: model(batch()))
    assert "never learns" in text


def test_a_host_of_one_process_and_one_in_ddp_of_its_own_hear_nothing(group):
    host = Host(device="cpu")
    assert told(lambda: host(batch())) == []
    assert told(lambda: DistributedDataParallel(Host(device="cpu"))(batch())) == []
    with pytest.raises(bseq.UsageError, match="in no sharding plan"):  # but whoever asks is told
        bseq.check_sharded(host)


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(bseq.UsageError, match="no encoder with tables inside"):
        bseq.check_sharded(nn.Linear(2, 2))


def test_two_processes_find_the_same(tmp_path):
    """With a table that lies on one of them alone, too."""
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        outputs = [json.loads(process.communicate(timeout=100)[0].splitlines()[-1]) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert outputs[0] == outputs[1]
    sound, whole, pieces, at_rest = outputs[0]
    assert sound == [[], []]
    assert [len(texts) for texts in (*whole, *pieces)] == [1, 1, 1, 1]
    assert all("add EmbeddingCollectionSharder()" in text for texts in whole for text in texts)
    assert all("column_wise in 2 pieces" in text for texts in pieces for text in texts)
    assert all("learning rate 0" in text for texts in at_rest for text in texts)


def two_processes(rank, store):
    """Print what is found and what is warned of, in four hosts."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    cases = [{}, {"bags_alone": True}, {"ways": "column_wise"}, {"ways": "table_wise", "rate": 0.0}]
    models = [parallel(Host(), **case) for case in cases]
    print(json.dumps([[bseq.check_sharded(m, raises=False), told(lambda m=m: m(batch()))] for m in models]))
    dist.destroy_process_group()


if __name__ == "__main__":
    two_processes(int(sys.argv[1]), sys.argv[2])
