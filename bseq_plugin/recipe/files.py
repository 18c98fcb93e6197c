"""Recipes as text: TOML files, those that come with the package, and settings of a command line."""

from __future__ import annotations

import tomllib
from datetime import date, time
from importlib import resources
from pathlib import Path
from typing import Any

from bseq_plugin.errors import RecipeError, UsageError


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("bseq_plugin.recipe") / "shipped"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def recipe_description(name: str) -> str:
    """The first words of a shipped recipe: what it is for."""
    return str(tomllib.loads(_shipped(name).read_text(encoding="utf-8")).get("description", ""))


def _shipped(name: str) -> Any:
    return resources.files("bseq_plugin.recipe") / "shipped" / f"{name}.toml"


def read_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """Values of a shipped recipe, by name, or of a TOML file. Raises RecipeError."""
    try:
        values = tomllib.loads(_text(name_or_path))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {str(name_or_path)!r} is not valid TOML: {error}") from None
    values.pop("description", None)
    return {key: _plain(value) for key, value in values.items()}


def _text(name_or_path: str | Path) -> str:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {str(path)!r}")
        try:
            return path.read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError) as error:
            raise RecipeError(f"recipe {str(name_or_path)!r} can't be read: {error}") from None
    if str(name_or_path) not in shipped_recipes():
        raise RecipeError(
            f"unknown recipe {str(name_or_path)!r}; there are: {', '.join(shipped_recipes())}; or give a .toml file"
        )
    return str(_shipped(str(name_or_path)).read_text(encoding="utf-8"))


def parse_value(text: str) -> Any:
    """A value as in TOML, or a bare word as it is."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text  # a bare word: --set encoder=mean
    return _plain(document["value"]) if len(document) == 1 else text  # more lines would be other keys


def parse_key(text: str) -> tuple[str, ...]:
    """The parts of a dotted key; as in TOML one in quotes may have dots of its own: ``weights."a.b"``."""
    try:
        value: Any = tomllib.loads(f"{text} = 0")
    except (tomllib.TOMLDecodeError, RecursionError):
        return tuple(text.split("."))
    parts = []
    while isinstance(value, dict):
        part, value = next(iter(value.items()))
        parts.append(part)
    return tuple(parts)


def _plain(value: Any) -> Any:
    """TOML has dates and times of its own; a recipe keeps the text."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.isoformat() if isinstance(value, date | time) else value


def split_setting(setting: str, option: str, example: str) -> tuple[str, str]:
    """Return key and text of a ``key=value``. Raises UsageError that names the option and gives the example."""
    key, separator, text = (part.strip() for part in setting.partition("="))
    if not separator or not key:
        raise UsageError(f"{option} {setting!r}: write key=value, for example {example}")
    return key, text
