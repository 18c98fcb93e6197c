"""Typed, immutable options of a part, checked where they enter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bseq_plugin.errors import RecipeError


class PartOptions(BaseModel):
    """Base of every part's options: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnyOptions = TypeVar("AnyOptions", bound=BaseModel)


def parse_options(model: type[AnyOptions], values: Mapping[str, Any], where: str) -> AnyOptions:
    """Build ``model`` from ``values``. Raises RecipeError naming the key, the value and what is allowed."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{where}: {_describe(model, error)}") from None


def _describe(model: type[BaseModel], error: ValidationError) -> str:
    messages = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(recipe)"
        if item["type"] == "extra_forbidden":
            messages.append(f"unknown key {key!r}; the keys are: {', '.join(sorted(model.model_fields)) or '(none)'}")
        else:
            messages.append(f"{key} = {item['input']!r}: {item['msg'].lower()}")
    return "; ".join(messages)
