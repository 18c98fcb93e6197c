"""Typed, immutable options of a part, checked where they enter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bseq_plugin.errors import RecipeError, UsageError


class Settings(BaseModel):
    """Base of what is set by hand: frozen; an unknown key, NaN, infinity and true for a number are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        for key, field in cls.model_fields.items() if isinstance(values, Mapping) else ():
            kinds = {field.annotation, *get_args(field.annotation)}
            if isinstance(values.get(key), bool) and bool not in kinds and kinds & {int, float}:
                raise ValueError(f"{key} = {str(values[key]).lower()}: give a number")
        return values


class PartOptions(Settings):
    """Base of every part's options."""


AnyOptions = TypeVar("AnyOptions", bound=BaseModel)


def parse_options(model: type[AnyOptions], values: Mapping[str, Any], where: str) -> AnyOptions:
    """Build ``model`` from ``values``. Raises RecipeError naming the key, the value and what is allowed."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{where}: {describe_errors(model, error)}") from None


def names_in(given: Iterable[str], argument: str) -> tuple[str, ...]:
    """Return several names. Raises UsageError for one string: its letters would be the names."""
    if isinstance(given, str):
        raise UsageError(f"{argument} = {given!r}: give a list of names, [{given!r}]")
    return tuple(given)


def describe_errors(model: type[BaseModel], error: ValidationError) -> str:
    """Say in one line what is wrong with which key."""
    messages: dict[str, list[str]] = {}
    for item in error.errors():
        owner, path = _place(model, item["loc"])
        key = ".".join(path) or "(recipe)"
        if item["type"] == "extra_forbidden":
            message = _unknown(model, owner, path)
        elif item["type"] == "value_error":
            section = f"{key}: " if path else ""
            message = section + (str(item["ctx"]["error"]) if "ctx" in item else item["msg"])
        elif item["type"] == "union_tag_invalid":
            tag = item["ctx"]["discriminator"].strip("'")
            message = f"{key}.{tag} = {item['ctx']['tag']!r}: there are {item['ctx']['expected_tags']}"
        elif item["type"] == "model_type":
            message = f"{key} = {item['input']!r}: this is a section; its keys are: {_keys(owner, path)}"
        else:
            message = f"{key} = {item['input']!r}: {item['msg'].lower()}"
        messages.setdefault(key, []).append(message)
    return "; ".join(" or ".join([texts[0], *(m.split(": ", 1)[-1] for m in texts[1:])]) for texts in messages.values())


def _place(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[type[BaseModel], list[str]]:
    """The model that a key belongs to, and the key's path; pydantic's names of a union's branches are left out."""
    owners, path = [model], []
    for place, part in enumerate(loc):
        owner = next((entry for entry in owners if str(part) in entry.model_fields), None)
        if owner is not None:
            path.append(str(part))
            owners = _models(owner.model_fields[str(part)].annotation)
            if place == len(loc) - 1:
                return owner, path
        elif tagged := [entry for entry in owners if str(part) in _kinds(entry)]:
            owners = tagged
        elif isinstance(part, int) or (place == len(loc) - 1 and owners and not _is_branch(part)):
            path.append(str(part))
    return (owners or [model])[0], path


def _keys(owner: type[BaseModel], path: list[str]) -> str:
    """The keys of the section at the end of a path."""
    models = _models(owner.model_fields[path[-1]].annotation) if path and path[-1] in owner.model_fields else [owner]
    return ", ".join(sorted({name for model in models for name in model.model_fields}))


def _is_branch(part: int | str) -> bool:
    """Whether it is pydantic's name of a union's branch ("literal['all']", "int") and no word for a user."""
    text = str(part)
    return text in ("int", "float", "str", "bool", "dict", "tuple") or not text.replace("-", "_").isidentifier()


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models within an annotation."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for entry in get_args(annotation) for model in _models(entry)]


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """What a model's ``kind`` may be."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _unknown(root: type[BaseModel], owner: type[BaseModel], path: list[str]) -> str:
    keys = ", ".join(sorted(owner.model_fields)) or "(none)"
    kinds = _kinds(owner)
    where = f" with kind = {kinds[0]!r}" if len(kinds) == 1 else ""
    elsewhere = sorted({place + need for place, need in _paths(root) if place.rpartition(".")[2] == path[-1]})
    elsewhere = [place for place in elsewhere if place.split(".")[0] == path[0]] or elsewhere
    hint = f"; there is {' and '.join(elsewhere)}" if elsewhere else ""
    return f"unknown key {'.'.join(path)!r}{where}; the keys are: {keys}{hint}"


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, the kind that it needs) of all keys below a model."""
    kinds = _kinds(model)
    need = f" (with {prefix}kind = {' or '.join(map(repr, kinds))})" if kinds else ""
    for name, field in model.model_fields.items():
        models = _models(field.annotation)
        if not models:
            yield f"{prefix}{name}", "" if name == "kind" else need
        for below in models:
            yield from _paths(below, f"{prefix}{name}.")
