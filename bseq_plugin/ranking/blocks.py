"""Blocks of candidate rows that bound the memory, and the check of what a feature makes of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.errors import BseqError, PluginError
from bseq_plugin.schema.ranking import FeatureInputs
from bseq_plugin.schema.ranking_features import CATEGORY, EXACT, RankingFeature

BLOCK_NUMBERS = 8_000_000  # float64 numbers a block needs at once (about; padding can triple it): 64 MB


def blocks(base: FeatureInputs, block_numbers: int) -> Iterator[tuple[np.ndarray | slice, FeatureInputs]]:
    """Rows by request, cut where the vectors and cosines of a block would need more than ``block_numbers`` numbers.

    Yields the places of the block's rows in the input and their inputs, which hold only the requests they belong to.
    """
    order_N = torch.argsort(base.request_N, stable=True)
    request_N = base.request_N[order_N]
    interests, dim = base.interests_RKD.shape[1:]
    new_N = torch.diff(request_N, prepend=torch.tensor([-1])) != 0
    length_N = base.lengths_R[request_N]
    cost_N = length_N + dim * (interests + 2) + new_N * dim * (length_N + interests)
    block_N = (cost_N.cumsum(0) - cost_N) // block_numbers
    for places in torch.split(order_N, torch.unique_consecutive(block_N, return_counts=True)[1].tolist()):
        yield _run(places.numpy()), _block(base, places)


def _run(places: np.ndarray) -> np.ndarray | slice:
    """Consecutive places as a slice, which is copied to in one go."""
    first, stop = int(places[0]), int(places[-1]) + 1
    return slice(first, stop) if stop - first == len(places) and (np.diff(places) == 1).all() else places


def _block(base: FeatureInputs, places: Tensor) -> FeatureInputs:
    """The inputs of rows that stand by request; every request has rows, so those of a block are consecutive."""
    request_N = base.request_N[places]
    first, stop = int(request_N[0]), int(request_N[-1]) + 1
    offsets_R1 = base.offsets_R1[first : stop + 1]
    events = slice(int(offsets_R1[0]), int(offsets_R1[-1]))
    changed: dict[str, Any] = {"request_N": request_N - first, "offsets_R1": offsets_R1 - offsets_R1[0]}
    # by the letters of the name: rows of candidates, of requests, of events; everything else is of the whole catalogue
    parts: dict[str, Any] = {"_N": places, "_R": slice(first, stop), "_RKD": slice(first, stop), "_T": events}
    for name in (f.name for f in fields(base)):
        value, part = getattr(base, name), parts.get(name[name.rfind("_") :])
        if isinstance(value, Tensor) and part is not None and name not in changed:
            changed[name] = value[part]
    return replace(base, **changed)


def checked_columns(part: RankingFeature, inputs: FeatureInputs) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 or int64 [N] or [N, width]) for each column; what a plugin returns is checked first.

    Raises PluginError that names the feature.
    """
    try:
        names = part.columns(inputs.event_types)
        with torch.no_grad():
            values = part.compute(inputs)
    except BseqError:
        raise
    except Exception as error:  # a third party's feature can fail in any way; say whose it is
        raise PluginError(f"ranking feature {part.name!r} failed: {type(error).__name__}: {error}") from error
    kinds = (torch.float32, torch.int64) if part.unit == CATEGORY else (torch.float32,)
    if not isinstance(values, Tensor) or values.dtype not in kinds:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(
            f"ranking feature {part.name!r} gave {kind}; it has to be a float32 tensor, or int64 for unit {CATEGORY!r}"
        )
    n_rows = inputs.candidate_N.shape[0]
    if len(names) > 1 and tuple(values.shape) != (n_rows, len(names)):
        raise PluginError(
            f"ranking feature {part.name!r} gave shape {tuple(values.shape)}, not [{n_rows}, {len(names)}]: "
            f"it has the columns {list(names)}"
        )
    if values.ndim not in (1, 2) or values.shape[0] != n_rows or (values.ndim == 2 and values.shape[1] == 0):
        raise PluginError(
            f"ranking feature {part.name!r} gave shape {tuple(values.shape)}, not [{n_rows}] or [{n_rows}, width]"
        )
    array = _names(part, values) if part.unit == CATEGORY else _with_one_nan(part, values)
    if len(names) == 1:
        yield names[0], array
    else:
        yield from ((name, array[:, place]) for place, name in enumerate(names))


def _names(part: RankingFeature, values: Tensor) -> np.ndarray:
    """The values, if they are names that nothing has rounded."""
    if values.dtype == torch.int64:
        if bool((values < -1).any()):
            raise PluginError(f"ranking feature {part.name!r} gave {int(values.min())}; ids are 0 or more, -1 is none")
        return values.numpy()
    array = _with_one_nan(part, values)
    rounded = array[np.abs(array) >= EXACT]
    if len(rounded):
        raise PluginError(
            f"ranking feature {part.name!r} gave {rounded[0]:.0f}, and float32 rounds names from 2^24 on: "
            "return int64, -1 where there is none"
        )
    return array


def _with_one_nan(part: RankingFeature, values: Tensor) -> np.ndarray:
    """The values; one NaN for all: its sign bit depends on how it came about, and bytes are to be equal."""
    array = values.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):  # one quick pass for the usual case
            return array
    if np.isinf(array).any():
        raise PluginError(f"ranking feature {part.name!r} gave an infinite value; undefined values are NaN")
    return np.where(np.isnan(array), np.float32(np.nan), array)
