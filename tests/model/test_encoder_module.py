from dataclasses import replace

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import ShardedEmbeddingModule
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline.tracing import Tracer

from bseq_plugin import (
    USER_INTEREST,
    Recipe,
    RecipeError,
    SequenceInterestEncoder,
    Sequences,
    UsageError,
    history_features,
)
from bseq_plugin.distributed import world
from bseq_plugin.model.direct import direct_interests

N_ITEMS, N_TYPES = 20, 2
VARIANTS = {
    "causal": {"encoder": {"name": "causal", "n_blocks": 1}},
    "mean": {"encoder": {"name": "mean", "dropout": 0}},
    "cosine": {"encoder": {"name": "mean", "dropout": 0}, "vectors": {"similarity": "cosine"}},
    "priors": {
        "encoder": "causal",
        "vectors": {"similarity": "cosine"},
        "objective": {"kind": "window", "popularity_days": (7.0, 28.0)},
    },
    "bare": {"encoder": "causal", "events": {"features": ()}},
    "several interests": {"encoder": "causal", "objective": "prefix", "interests": {"kind": "several", "n": 3}},
    "routed": {
        "encoder": {"name": "mean", "dropout": 0},
        "vectors": {"similarity": "cosine"},
        "objective": {"kind": "window", "popularity_days": (7.0,)},
        "interests": {"kind": "several", "method": "routing"},
    },
    "anchored": {
        "encoder": "causal",
        "vectors": {"similarity": "cosine"},
        "objective": {"kind": "window", "popularity_days": (7.0,)},
        "interests": {"kind": "several", "anchored": True},
    },
    "all features": {
        "encoder": "causal",
        "events": {
            "features": ("value", "session", "time_of_week", "event_type", "time_gap"),
            "time_zone": "America/New_York",
        },
    },
}


@pytest.fixture(params=VARIANTS)
def recipe(request):
    small = Recipe(encoder={"max_length": 6, "dropout": 0.5}, vectors={"dim": 8})
    return small.replace(**VARIANTS[request.param])


@pytest.fixture
def encoder(recipe):
    torch.manual_seed(0)
    made = SequenceInterestEncoder(recipe, N_ITEMS, N_TYPES)
    for parameter in made.parameters():  # tables that start at zero would hide mistakes
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def histories(lengths, seed=0):
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    times = np.concatenate(
        [np.sort(random.integers(0, 10**13, length)) for length in lengths] + [np.empty(0, np.int64)]
    )
    items, types = random.integers(0, N_ITEMS + 1, n), random.integers(0, N_TYPES + 1, n)
    sessions = times.astype(np.int64) // 3_000_000_000_000
    values = np.where(random.random(n) < 0.2, np.nan, random.normal(0, 20, n))
    return Sequences(np.arange(len(lengths)), offsets, items, times.astype(np.int64), types, sessions, values=values)


def width(recipe):
    """K * D."""
    n_interests = recipe.interests.n if recipe.interests.kind == "several" else 1
    return n_interests * (recipe.vectors.dim + len(recipe.popularity_days))


def features(sequences, recipe):
    return history_features(sequences, recipe)


def interests(encoder, recipe, sequences):
    with torch.no_grad():
        return encoder(features(sequences, recipe))["user_interest"]


@pytest.mark.parametrize("lengths", [(3, 1, 6), (1,), (0, 4, 0), (0, 0)])
@pytest.mark.parametrize("timed", [True, False])
def test_the_direct_way_is_the_way_through_torchrec(encoder, recipe, lengths, timed):
    """Interests, and what the encoder part is handed: rows, times, types, offsets."""
    given = histories(lengths)
    if not timed:
        if "time_gap" in recipe.events.features:
            with torch.no_grad(), pytest.raises(ValueError, match="no times"):
                direct_interests(encoder, replace(given, timestamps=None))
            return
        given = replace(given, timestamps=None)
    handed = []
    hook = encoder.sequence_encoder.register_forward_pre_hook(lambda _, inputs: handed.append(inputs[0]))
    through_torchrec = interests(encoder, recipe, given)
    with torch.no_grad():
        found = direct_interests(encoder, given)
    hook.remove()
    assert torch.equal(found, through_torchrec)
    for name in ("x_TD", "offsets_B1", "timestamps_T", "event_types_T", "sessions_T"):
        theirs, ours = (getattr(events, name) for events in handed)
        assert (theirs is None and ours is None) or torch.equal(theirs, ours), name


def test_the_direct_way_needs_what_the_features_need(encoder, recipe):
    if "event_type" in recipe.events.features:
        with pytest.raises(ValueError, match="these histories have none"):
            direct_interests(encoder, replace(histories((2,)), event_types=None))


def test_read_only_columns_are_read_without_a_warning(encoder, recipe, recwarn):
    given = histories((3, 2))
    for column in (given.items, given.offsets, given.timestamps, given.event_types):
        column.flags.writeable = False
    direct_interests(encoder, given)
    assert not [w for w in recwarn if "writable" in str(w.message)]


@pytest.mark.parametrize("lengths", [(3, 1, 6), (1,), (0, 4, 0), (0, 0)])
def test_a_jagged_tensor_becomes_a_keyed_tensor(encoder, recipe, lengths):
    given = features(histories(lengths), recipe)
    assert isinstance(given, KeyedJaggedTensor)
    with torch.no_grad():
        found = encoder(given)
    assert isinstance(found, KeyedTensor)
    assert (found.keys(), found.length_per_key()) == ([USER_INTEREST], [width(recipe)])
    assert encoder.width == width(recipe)
    assert found["user_interest"].shape == (len(lengths), width(recipe))
    assert found["user_interest"].dtype == torch.float32
    assert torch.isfinite(found["user_interest"]).all()


def test_a_user_without_events_has_the_interest_of_a_state_of_zeros(encoder, recipe):
    found = interests(encoder, recipe, histories((2, 0, 3, 0)))
    with torch.no_grad():
        expected = encoder.interest_head(torch.zeros(1, recipe.vectors.dim))[0].repeat(recipe.interests_per_user)
    for row in (1, 3):
        torch.testing.assert_close(found[row], expected)
    if recipe.vectors.similarity.kind == "inner" and not recipe.popularity_days:
        assert not found[1].any()


def test_users_do_not_see_each_other(encoder, recipe):
    """Permuting users permutes the interests, and a user alone has the same one."""
    sequences = histories((3, 0, 6, 1, 4))
    together = interests(encoder, recipe, sequences)
    order = np.array([4, 2, 0, 1, 3])
    torch.testing.assert_close(interests(encoder, recipe, sequences.take(order)), together[order], rtol=1e-5, atol=1e-6)
    alone = torch.cat([interests(encoder, recipe, sequences.take(np.array([u]))) for u in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


def test_a_history_beyond_max_length_is_refused(encoder, recipe):
    long = histories((2, 7))
    with pytest.raises(ValueError, match=r"7 events, the encoder reads 6 \(encoder.max_length\).*Sequences.latest"):
        encoder(features(long, recipe))
    assert interests(encoder, recipe, long.latest(6)).shape[0] == 2


def test_only_the_keys_it_knows_are_needed_and_order_does_not_matter(encoder, recipe):
    """A host may hold more features in its batch; ``timestamp`` may be missing."""
    sequences = histories((3, 2))
    full = features(sequences, recipe)
    names = sorted(set(full.keys()) - {"timestamp"}, key=full.keys().index, reverse=True)
    lengths = torch.cat([full[name].lengths() for name in names])
    without = KeyedJaggedTensor(names, torch.cat([full[name].values() for name in names]), lengths=lengths)
    with torch.no_grad():
        torch.testing.assert_close(encoder(without).values(), interests(encoder, recipe, sequences))


def test_the_forward_is_a_straight_line(encoder, recipe):
    """TorchRec's pipeline traces it: with its own children as leaves, the graph gives the same."""
    children = [name for name, _ in encoder.named_children()]
    graph = Tracer(leaf_modules=children).trace(encoder)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    assert "embedding_collection" in calls
    # the collection must get the batch as it is, or the pipeline can't start its look-ups one batch ahead
    (lookup,) = [node for node in graph.nodes if node.target == "embedding_collection"]
    assert [argument.op for argument in lookup.args] == ["placeholder"]
    traced = torch.fx.GraphModule(encoder, graph)
    for lengths in ((3, 1), (0, 5, 2)):
        given = features(histories(lengths), recipe)
        with torch.no_grad():
            assert torch.equal(traced(given).values(), encoder(given).values())


class Host(nn.Module):
    """Somebody's model with an encoder inside."""

    def __init__(self, encoder, dim):
        super().__init__()
        self.interest = encoder
        self.over = nn.Linear(dim, 1)

    def forward(self, history):
        return self.over(self.interest(history).values())


def test_created_on_meta_it_is_sharded_inside_a_host(recipe):
    """No table exists before the planner decides; afterwards nothing is left on meta, and a step changes the tables."""
    torch.manual_seed(0)
    encoder = SequenceInterestEncoder(recipe, N_ITEMS, N_TYPES, device="meta")
    assert all(table.weight.is_meta for table in encoder.embedding_collection.embeddings.values())
    sequences = histories((3, 1, 5))
    with world() as here:
        fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.1}
        model = DistributedModelParallel(
            Host(encoder, width(recipe)), device=here.device, sharders=[EmbeddingCollectionSharder(fused_params=fused)]
        )
        assert sum(isinstance(m, ShardedEmbeddingModule) for m in model.modules()) == 1
        assert not any(p.is_meta for p in model.parameters())
        weight = model.state_dict()["interest.embedding_collection.embeddings.item.weight"]
        before = weight.local_shards()[0].tensor.clone()
        assert before.shape == (N_ITEMS + 1, recipe.vectors.dim)
        assert 0.01 < float(before.std()) < 0.03  # as the unsharded table begins
        out = model(features(sequences, recipe))
        assert out.shape == (3, 1)
        assert torch.isfinite(out).all()
        out.sum().backward()
        after = weight.local_shards()[0].tensor
        used = sorted(set(sequences.items.tolist()))
        changed = torch.nonzero((before != after).any(1)).flatten().tolist()
        assert changed
        assert set(changed) <= set(used)


def test_wrong_settings_are_named():
    with pytest.raises(UsageError, match="unknown encoder 'gru5'; there are: .*causal"):
        SequenceInterestEncoder(Recipe(encoder="gru5"), N_ITEMS)
    with pytest.raises(
        RecipeError, match="options of encoder 'causal': unknown key 'n_bloks'; the keys are: .*n_blocks"
    ):
        SequenceInterestEncoder(Recipe(encoder={"n_bloks": 2}), N_ITEMS)
    with pytest.raises(RecipeError, match="n_blocks = 0"):
        SequenceInterestEncoder(Recipe(encoder={"n_blocks": 0}), N_ITEMS)
    with pytest.raises(RecipeError, match="dim = 9 is not a multiple"):
        SequenceInterestEncoder(Recipe(vectors={"dim": 9}), N_ITEMS)
