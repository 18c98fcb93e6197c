"""Every key of a recipe in words: what `bseq recipes --keys` prints, and what docs/recipes.md has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from bseq_plugin.recipe.section import Choice, Section


class Key(NamedTuple):
    """A key that can be set.

    Attributes:
        name: dotted, as ``--set`` takes it: "objective.days".
        kinds: what the ``kind`` of its section has to be; empty if it is there whatever the kind.
        default: as JSON; "" for a key that has none.
        text: what it does.
    """

    name: str
    kinds: tuple[str, ...]
    default: str
    text: str


def keys(section: type[Section], prefix: str = "", default: object = None) -> Iterator[Key]:
    """The keys of a section and of those below it, in order; ``default``: what the section is if nothing is said."""
    below, choices = section.sections(), section.choices()
    for name, field in section.model_fields.items():
        if name in below:
            yield from keys(below[name], f"{prefix}{name}.", field.get_default(call_default_factory=True))
        elif name in choices:
            yield from _of_choice(choices[name], f"{prefix}{name}.")
        else:
            yield _key(section, name, prefix, (), default)


def _of_choice(choice: Choice, prefix: str) -> Iterator[Key]:
    if choice.tag == "name":
        yield from keys(choice.classes[0], prefix)
        return
    by_kind = choice.by_kind()
    texts = "; ".join(
        ", ".join(f"`{kind}`" for kind, of_kind in by_kind.items() if of_kind is section) + f" = {_sentence(section)}"
        for section in choice.classes
    )
    yield Key(f"{prefix}kind", (), json.dumps(choice.default), texts)
    names = dict.fromkeys(name for section in choice.classes for name in section.model_fields if name != "kind")
    for name in names:
        having = tuple(kind for kind, section in by_kind.items() if name in section.model_fields)
        yield _key(by_kind[having[0]], name, prefix, () if len(having) == len(by_kind) else having)


def _key(section: type[Section], name: str, prefix: str, kinds: tuple[str, ...], default: object = None) -> Key:
    field = section.model_fields[name]
    value = field.get_default(call_default_factory=True) if default is None else getattr(default, name)
    return Key(f"{prefix}{name}", kinds, "" if field.is_required() else json.dumps(value), field.description or "")


def _sentence(section: type[Section]) -> str:
    """What a section is: its docstring without line breaks, as the rest of a sentence."""
    text = " ".join((section.__doc__ or "").split()).replace("``", "`").rstrip(".")
    return text[:1].lower() + text[1:]
