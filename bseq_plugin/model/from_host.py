"""What a host model has trained, as a plain model: shards gathered, and checked against the host's own scores.

Shape letters: B users, N items, K interests, D or O width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from bseq_plugin.data.batches import history_features
from bseq_plugin.distributed import World, world
from bseq_plugin.errors import RunError, UsageError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.model.gather import whole
from bseq_plugin.model.host_inputs import check_fits, checked_inputs, require_same
from bseq_plugin.model.interest_model import ITEM_WEIGHT, InterestModel
from bseq_plugin.model.query_tower import QueryTower, StoredTowers
from bseq_plugin.model.towers import Towers, export_towers

ITEMS_PER_CALL = 1 << 16
N_USERS, N_ITEMS = 256, 512  # whose scores are compared
TOLERANCE = 1e-5  # of a score, in units of the largest one
SMALLEST = 1e-30  # below it float32 has no more digits to compare

# What a sharded collection of TorchRec fixes at its first batch: the order of the keys. Others may come here.
AT_FIRST_BATCH: dict[str, Callable[[], Any]] = {
    "_input_dists": list,
    "_feature_splits": list,
    "_features_order": list,
    "_has_features_permute": lambda: True,
    "_has_uninitialized_input_dist": lambda: True,
}
ORDER = "_features_order_tensor"  # goes with the order, and is written anew


@torch.no_grad()
def model_of_host(
    host: nn.Module | Towers, vocabulary: Vocabulary | None, histories: Sequences | None, trained_until: object = None
) -> InterestModel | None:
    """Return what a store serves of a host, on rank 0; None on other ranks. Collective: every rank calls it.

    What is wrong with an argument on any rank is raised on all, before a look-up that they would wait in.

    Args:
        host: a trained model with an encoder inside, plain or under ``DistributedModelParallel``, a pipeline attached
            or not; or its ``Towers``.
        vocabulary: the items in the order of their rows in the encoder's table: row 1 is the first one.
        histories: in rows of the vocabulary; scores of a sample of its users are compared.
        trained_until: time of the newest event that was trained on, None if nobody knows.

    Raises:
        UsageError: arguments that are missing or not the same on all ranks; there are no towers or several
            (``export_towers``), an encoder that has not been trained, a vocabulary of another size, or a recipe that
            only ``bseq.train`` can finish.
        SchemaError: histories without what the encoder reads, or an instant that is none.
        RunError: the scores of the host and of the model differ by more than 1e-5 of the largest score.
    """
    with world() as here:
        items, users, until_us = here.on_all(lambda: checked_inputs(vocabulary, histories, trained_until))
        towers = here.on_all(lambda: host if isinstance(host, Towers) else export_towers(host))
        here.on_all(lambda: check_fits(towers.encoder, items, users))
        require_same(items, users, until_us, here)
        _check_learned(towers, here)
        with _at_rest(towers.host if isinstance(host, Towers) else host):
            state = {name: whole(value, here) for name, value in towers.encoder.state_dict().items()}
            own = towers.query_tower is None
            vectors_VO = None if own else _vectors(towers, items.n_items, here)
            made: list[InterestModel] = []
            here.on_first(lambda: made.append(_assembled(towers, items, state, vectors_VO, until_us)))
            _compare(towers, made, users, items.n_items, here)
        return made[0] if made else None


def _check_learned(towers: Towers, here: World) -> None:
    """Raise UsageError unless gradients have come, on whatever rank, to what a store would score with."""
    encoder = towers.encoder
    elsewhere = "If it has learned elsewhere, say so: encoder.learned.declare(items=...), docs/embedding.md"
    interests, items = (any(on_ranks) for on_ranks in zip(*here.gather(encoder.learned.told()), strict=True))
    if not interests:
        raise UsageError(
            "the encoder was neither trained nor loaded from one that was: no gradient has come back through its "
            f"interests in training, so that they are random; train the host first. {elsewhere}"
        )
    if towers.learned is not None:
        sides = {"query tower": 0, "candidate tower": 1}
        told = [any(on_ranks) for on_ranks in zip(*here.gather(towers.learned.told()), strict=True)]
        if random := [name for name, place in sides.items() if not told[place]]:
            raise UsageError(
                f"the {' and the '.join(random)} of {type(towers.host).__name__} has not been trained: no gradient has "
                "come back to what it gives; train the host first. If it has learned elsewhere, say so: "
                "host.learned.declare(items=True)"
            )
    if towers.query_tower is None and not items:
        raise UsageError(
            "no loss has trained the item vectors that a store would score with: no gradient has come back to the rows "
            f"of item_keys = {list(encoder.item_keys)}; write a loss over interest_and_items, with a weight above 0 "
            f"(bseq-dlrm: DLRMInterestTrain(next_item_weight=0.1)). {elsewhere}"
        )


def _vectors(towers: Towers, n_items: int, here: World) -> Tensor:
    """Return float32 [V + 1, O] of the candidate tower, row 0 zeros; on rank 0 alone."""
    blocks = []
    for start in range(1, n_items + 1, ITEMS_PER_CALL):
        rows_N = torch.arange(start, min(start + ITEMS_PER_CALL, n_items + 1), device=here.device)
        block_NO = _candidates(towers, rows_N, here)
        blocks += [block_NO] if here.is_first else []
    return torch.nn.functional.pad(torch.cat(blocks), (0, 0, 1, 0)) if blocks else torch.empty(0)


def _candidates(towers: Towers, rows_N: Tensor, here: World) -> Tensor:
    """Return float32 [N, O] on the CPU. Raises UsageError, on all ranks, if the host gives something else."""
    given = towers.candidates(rows_N)

    def check() -> Tensor:
        if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != len(rows_N):
            what = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise UsageError(f"the host's candidates gave {what} for {len(rows_N)} rows; wanted a vector each, [N, O]")
        return given.float().cpu()

    return here.on_all(check)


def _assembled(
    towers: Towers,
    vocabulary: Vocabulary,
    state: dict[str, Tensor],
    vectors_VO: Tensor | None,
    trained_until_us: int | None,
) -> InterestModel:
    tower = towers.encoder.item_tower
    state[ITEM_WEIGHT] = tower.folded(state[ITEM_WEIGHT].to(_device_of(tower))).cpu()
    state = {name: value for name, value in state.items() if "item_tower.attribute" not in name}
    model = InterestModel.from_state(towers.encoder.recipe, vocabulary, state, None, trained_until_us, own=False)
    if vectors_VO is None:
        return model
    return replace(model, towers=StoredTowers(QueryTower.of(cast(nn.Module, towers.query_tower)), vectors_VO))


def _device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _compare(towers: Towers, made: list[InterestModel], histories: Sequences, n_items: int, here: World) -> None:
    """Raise RunError if host and model score a sample of (history, item) pairs otherwise."""
    encoder = towers.encoder
    some = np.flatnonzero(histories.lengths)
    users = some[np.linspace(0, len(some) - 1, min(N_USERS, len(some))).astype(np.int64)]
    sample = histories.take(users).latest(encoder.recipe.encoder.max_length)
    items = np.linspace(1, n_items, min(N_ITEMS, n_items)).astype(np.int64)
    rows_N = torch.from_numpy(items).to(here.device)
    queries = towers.query(history_of(encoder, sample).to(here.device))
    items_NO = _candidates(towers, rows_N, here)

    def differ() -> None:
        queries_BKO = queries.float().cpu().view(len(users), -1, items_NO.shape[1])
        theirs = torch.einsum("bko,no->bkn", queries_BKO, items_NO)
        ours = torch.einsum("bko,no->bkn", made[0].encode(sample), made[0].item_vectors_VD[items])
        if ours.shape != theirs.shape:
            raise RunError(
                f"the host gives scores {tuple(theirs.shape)}, its export {tuple(ours.shape)}; nothing is kept: "
                "a host gives one query a user, or one for each interest"
            )
        worst, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not worst <= max(TOLERANCE * largest, SMALLEST):  # NaN too
            raise RunError(
                f"the host's scores of {theirs.numel()} sampled (history, item) pairs and those of a store differ by "
                f"up to {worst:.3g}, the largest score being {largest:.3g}; nothing is kept: query_tower and "
                "candidates of export_towers must be what the host scores with"
            )

    here.on_first(differ)


def history_of(encoder: SequenceInterestEncoder, histories: Sequences) -> KeyedJaggedTensor:
    """Return the batch of ``histories`` under the encoder's own keys, with no id under its ``item_keys``."""
    nothing = (np.empty(0, np.int64), np.zeros(histories.n_users, np.int64))
    features = history_features(histories, encoder.recipe, dict.fromkeys(encoder.item_keys, nothing))
    names = [encoder.keys.names.get(key, key) for key in features.keys()]  # noqa: SIM118  # no mapping
    return KeyedJaggedTensor(names, features.values(), lengths=features.lengths(), stride=histories.n_users)


@contextmanager
def _at_rest(host: nn.Module) -> Iterator[None]:
    """Within it the host is in evaluation mode, no pipeline starts its look-ups, and each batch may have other keys."""
    modes = {module: module.training for module in host.modules()}
    sharded = [module for module in modes if hasattr(module, "_has_uninitialized_input_dist")]
    forwards = {module: vars(module)["forward"] for module in sharded if "forward" in vars(module)}  # a pipeline's
    fixed = {
        module: {name: getattr(module, name) for name in (*AT_FIRST_BATCH, ORDER) if hasattr(module, name)}
        for module in sharded
    }
    for module in sharded:
        vars(module)["forward"] = partial(_look_up_anew, module)
    host.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module in sharded:
            vars(module).pop("forward")
            for name, value in fixed[module].items():
                setattr(module, name, value)
        for module, forward in forwards.items():
            vars(module)["forward"] = forward


def _look_up_anew(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a sharded collection does with its first batch."""
    for name, fresh in AT_FIRST_BATCH.items():
        if hasattr(module, name):
            setattr(module, name, fresh())
    return type(module).forward(module, *args, **kwargs)
