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
        raise RecipeError(f"{where}: {describe_errors(model, error)}") from None


def describe_errors(model: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with which key, in one line."""
    messages: dict[str, list[str]] = {}
    for item in error.errors():
        # the tail of loc names pydantic's own branches of a union ("int", "literal['all']"): no word for a user
        path = [str(part) for part in item["loc"] if str(part).isidentifier() or str(part).isdecimal()]
        known = [part for place, part in enumerate(path) if place == 0 or part.isdecimal()]
        key = ".".join(known) or "(recipe)"
        if item["type"] == "extra_forbidden":
            found = f"unknown key {key!r}; the keys are: {', '.join(sorted(model.model_fields)) or '(none)'}"
        elif item["type"] == "value_error":
            found = str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
        else:
            found = f"{key} = {item['input']!r}: {item['msg'].lower()}"
        messages.setdefault(key, []).append(found)
    return "; ".join(" or ".join([found[0], *(m.split(": ", 1)[-1] for m in found[1:])]) for found in messages.values())
