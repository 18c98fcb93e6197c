"""Settings as text: what a TOML file has, and what a command line says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``(dotted key, value as TOML writes it)`` of all leaves of nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", toml(value)


def toml(value: Any) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def toml_file(values: Mapping[str, Any]) -> str:
    """Nested settings as a file has them."""
    return "".join(f"{key} = {value}\n" for key, value in dotted(values))


def words(values: Mapping[str, Any]) -> list[str]:
    """Nested settings as ``--set`` takes them, one a key."""
    return [f"{key}={value}" for key, value in dotted(values)]


def options(values: Mapping[str, Any]) -> list[str]:
    """Nested settings as arguments of the command line."""
    return [argument for word in words(values) for argument in ("--set", word)]
