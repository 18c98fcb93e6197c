"""How values of a recipe are changed one at a time: settings of a command line, and ``Recipe.replace``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bseq_plugin.errors import RecipeError, UsageError
from bseq_plugin.recipe.files import parse_key, parse_value, split_setting
from bseq_plugin.recipe.section import Choice, Section

Path = tuple[str, ...]
EXAMPLE = "encoder.max_length=100"


def apply_settings(model: type[Section], values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return ``values`` of a ``model`` with ``key=value`` settings. Raises UsageError for one without =."""
    changes: dict[Path, Any] = {}
    for setting in settings:
        key, text = split_setting(setting, "--set", EXAMPLE)
        path = parse_key(key)
        if not all(path):
            raise UsageError(f"--set {setting!r}: a part of the key {key!r} is empty; write for example {EXAMPLE}")
        changes.update(_leaves(model, path, parse_value(text)))
    return changed(model, values, changes)


def replaced(model: type[Section], values: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` of a ``model`` with what ``sections`` says; a section as an object takes the place of all."""
    result, changes = dict(values), {}
    for name, change in sections.items():
        if isinstance(change, Section):
            result[name] = change.model_dump(mode="json", exclude_none=True)
        else:
            changes.update(_leaves(model, (name,), change))
    return changed(model, result, changes)


def changed(model: type[Section], values: Mapping[str, Any], changes: Mapping[Path, Any]) -> dict[str, Any]:
    """Return a copy of ``values`` with ``changes``, those of a kind or a name first.

    Another kind (or part) keeps what both alternatives have and drops the rest; but a key that is changed as well has
    to belong to the new one, or validation refuses it.
    """
    result = _copied(values)
    for path, value in sorted(changes.items(), key=lambda change: (not _is_tag(model, change[0]), len(change[0]))):
        table = result
        for place, key in enumerate(path[:-1]):
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise RecipeError(f"--set {'.'.join(path)}: {'.'.join(path[: place + 1])!r} has no keys below it")
        choice = _choice(model, path[:-1])
        if choice is not None and path[-1] == choice.tag:
            _keep(table, choice.common_keys(str(value), table.get(choice.tag)))
        others = {other for other in _alternatives(model, path[:-1]) if other != path[-1]}
        for other in others:
            if (*path[:-1], other) not in changes:
                table.pop(other, None)
        table[path[-1]] = value
    return result


def different_keys(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, or that one alone has, of two recipes as plain values."""
    keys = []
    for key in sorted(first.keys() | second.keys()):
        old, new = first.get(key), second.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys += different_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            keys.append(f"{prefix}{key}")
    return keys


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of plain values, None if there is none."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _leaves(model: type[Section], path: Path, value: Any) -> dict[Path, Any]:
    """Settings of single keys: a table given for a section is one setting for each of its keys."""
    choice = _choice(model, path)
    if choice is not None and isinstance(value, str):
        return {(*path, choice.tag): value}
    if isinstance(value, Mapping) and (choice is not None or _section(model, path) is not None):
        if not value:
            return {}
        return {
            key: leaf for name, entry in value.items() for key, leaf in _leaves(model, (*path, name), entry).items()
        }
    return {path: value}


def _is_tag(model: type[Section], path: Path) -> bool:
    choice = _choice(model, path[:-1])
    return choice is not None and path[-1] == choice.tag


def _choice(model: type[Section], path: Path) -> Choice | None:
    """The choice between alternatives that stands at ``path``."""
    owner = _section(model, path[:-1]) if path else None
    return owner.choices().get(path[-1]) if owner is not None else None


def _section(model: type[Section], path: Path) -> type[Section] | None:
    """The plain section at ``path``; of a choice none, for its keys hang on what is chosen."""
    section: type[Section] | None = model
    for key in path:
        section = section.sections().get(key) if section is not None else None
    return section


def _alternatives(model: type[Section], path: Path) -> tuple[str, ...]:
    section = _section(model, path)
    return section.ALTERNATIVES if section is not None else ()


def _keep(table: dict[str, Any], keys: set[str] | None) -> None:
    for key in [] if keys is None else [key for key in table if key not in keys]:
        del table[key]


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}
