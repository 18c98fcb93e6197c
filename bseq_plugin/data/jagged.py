"""Whether what somebody gives as a KeyedJaggedTensor is one, and whole."""

from __future__ import annotations

import torch
from torchrec import KeyedJaggedTensor

from bseq_plugin.errors import UsageError

ID_TYPES = (torch.int64, torch.int32)


def require_jagged(features: object, what: str) -> None:
    """Raise UsageError for something else than a KeyedJaggedTensor."""
    if not isinstance(features, KeyedJaggedTensor):
        raise UsageError(
            f"{what} is a {type(features).__name__}; give a KeyedJaggedTensor: bseq.history_features makes one of "
            "histories"
        )


def check_ids_and_lengths(features: KeyedJaggedTensor) -> None:
    """Raise UsageError for values that are no ids, and for lengths that don't cut them; it names the key."""
    keys, values, lengths = features.keys(), features.values(), features.lengths()
    if values.dtype not in ID_TYPES:
        raise UsageError(f"the values of keys {keys} are {values.dtype}; give ids as int64 or int32")
    if not bool((lengths < 0).any()) and int(lengths.sum()) == len(values):
        return
    start = 0
    for key, of_key in zip(keys, lengths.split(features.stride_per_key()), strict=True):
        end = start + int(of_key.sum())
        if bool((of_key < 0).any()) or end > len(values) or (key == keys[-1] and end < len(values)):
            raise UsageError(
                f"key {key!r}: its lengths {of_key.tolist()[:10]} take values {start} to {end} of {len(values)}; give "
                "each key a length a user, 0 or more, and as many values as all of them sum to"
            )
        start = end
