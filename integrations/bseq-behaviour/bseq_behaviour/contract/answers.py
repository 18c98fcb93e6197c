"""What a head answers is looked at where it comes in: it may be a plugin's, and a wrong shape would be found far from
there, or not at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import bseq_plugin as bseq


def nonsense(head: Any, given: str, wanted: str) -> bseq.PluginError:
    """The error that names ``head`` (kind and name), what it gave and what it should have given."""
    return bseq.PluginError(
        f"{head.answer} head {head.name!r} gave {given}; wanted {wanted}: repair the plugin it comes from"
    )


def checked(
    head: Any, answer: object, shape: tuple[int, ...], *, least: float | None = None, finite: bool = False
) -> Tensor:
    """``answer`` as float32.

    Raises PluginError unless it is a float tensor of ``shape``, without a number below ``least``, and with ``finite``
    without NaN and infinity. (Training goes without: weights that grew too far are no fault of the head.)
    """
    if not isinstance(answer, Tensor) or answer.shape != shape or not answer.is_floating_point():
        given = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise nonsense(head, given, f"a float tensor {tuple(shape)}")
    if least is not None and bool((answer < least).any()):
        raise nonsense(head, f"{answer.min().item():g}", f"numbers of {least:g} or more")
    if finite and not bool(torch.isfinite(answer).all()):
        raise nonsense(head, "NaN or infinity", "finite numbers")
    return answer.float()


def checked_steps(head: Any, answers: object, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(item logits [*shape, V + 1], type logits [*shape, E]) of a sequence head.

    Raises PluginError as ``checked``, and if the unknown item could be an answer: its logit is -inf.
    """
    if not isinstance(answers, tuple) or len(answers) != 2:
        raise nonsense(head, type(answers).__name__, "a tuple of item logits and type logits")
    logits = checked(head, answers[0], (*shape, len(head.item_vectors_VD)))
    if bool((logits[..., 0] != -torch.inf).any()):
        raise nonsense(head, "the unknown item (row 0) as an answer", "-inf as its logit")
    return logits, checked(head, answers[1], (*shape, head.n_event_types + 1))
