"""What the sections of a recipe share: they are immutable, and what would mean nothing can't be written in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

from pydantic import ConfigDict, model_validator

from bseq_plugin.schema.options import Settings


class Section(Settings):
    """The base of every section.

    Attributes:
        ALTERNATIVES: keys of which exactly one is written; writing one takes the other's place.
    """

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _tagged(cls, values: Any) -> Any:
        """Read the name of a choice as its section, and a table without one as the default choice with other keys."""
        if not isinstance(values, Mapping):
            return values
        tagged = dict(values)
        for key, choice in cls.choices().items():
            value = tagged.get(key)
            if isinstance(value, str):
                tagged[key] = {choice.tag: value}
            elif isinstance(value, Mapping) and choice.tag not in value:
                tagged[key] = {choice.tag: choice.default, **value}
        return tagged

    @classmethod
    @cache
    def choices(cls) -> dict[str, Choice]:
        """The keys whose section is one of several, by its ``kind``, or a plugin's part, by its ``name``."""
        choices = {}
        for key, field in cls.model_fields.items():
            classes = _classes(field.annotation)
            if classes and (field.discriminator or issubclass(classes[0], PartSection)):
                default = field.get_default(call_default_factory=True)
                tag = str(field.discriminator or "name")
                choices[key] = Choice(tag, getattr(default, tag), classes)
        return choices

    @classmethod
    @cache
    def sections(cls) -> dict[str, type[Section]]:
        """The keys whose section is always the same one."""
        classes = {key: _classes(field.annotation) for key, field in cls.model_fields.items()}
        return {key: found[0] for key, found in classes.items() if found and key not in cls.choices()}


class PartSection(Section):
    """The choice of a plugin's part by ``name``; the part's own options stand beside it.

    The options are checked by the part that reads them, when it is built: only a plugin knows which there are.
    """

    model_config = ConfigDict(extra="allow")

    name: str

    @model_validator(mode="before")
    @classmethod
    def _as_a_file_has_them(cls, values: Any) -> Any:
        """Turn tuples into lists: a section equals what is read back from its file. Refuse what a file can't have."""
        if not isinstance(values, Mapping):
            return values
        for key, value in values.items():
            if _has_none(value):
                raise ValueError(f"{key}: a recipe has no null; leave the key out, and its default counts")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key} = {value!r}: {error}; give plain, finite values") from None
        return json.loads(json.dumps(dict(values)))

    @property
    def options(self) -> dict[str, Any]:
        """The part's own options, unchecked."""
        return dict(self.model_extra or {})


@dataclass(frozen=True)
class Choice:
    """A section that is one of several.

    Attributes:
        tag: the key that says which: "kind", or "name" for a plugin's part.
        default: what it is if nothing is said.
        classes: the alternatives; of a part there is one class, whatever its name.
    """

    tag: str
    default: str
    classes: tuple[type[Section], ...]

    def by_kind(self) -> dict[str, type[Section]]:
        """The alternatives by what ``tag`` says; empty for a part."""
        if self.tag == "name":
            return {}
        return {kind: found for found in self.classes for kind in get_args(found.model_fields[self.tag].annotation)}

    def common_keys(self, new: str, old: str | None) -> set[str] | None:
        """The keys that another choice keeps; None = all, for it is the same one, or one there is not."""
        if new == (old or self.default):
            return None
        if self.tag == "name":
            return set(self.classes[0].model_fields)
        chosen = self.by_kind().get(new)
        return None if chosen is None else set(chosen.model_fields)


def _has_none(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_none, value.values()))
    return any(map(_has_none, value)) if isinstance(value, list | tuple) else value is None


def _classes(annotation: Any) -> tuple[type[Section], ...]:
    """The section classes of a field: one, those of a union, or none."""
    if get_origin(annotation) in (Union, UnionType):
        classes = tuple(entry for entry in get_args(annotation) if isinstance(entry, type))
        return classes if classes and all(issubclass(entry, Section) for entry in classes) else ()
    return (annotation,) if isinstance(annotation, type) and issubclass(annotation, Section) else ()
