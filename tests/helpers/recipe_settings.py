"""Every setting of a recipe, enumerated from its models, so that a new field joins the tests by itself.

A field of numbers, of words to choose from or of yes and no needs nothing here. One of free text needs an entry in
``EXAMPLES``, and one that goes with another setting one in ``NEEDS``: without it the tests fail with its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from bseq_plugin import Recipe
from bseq_plugin.recipe.section import Section

BY_PRICE = {"name": "columns", "numbers": ["price"]}
# Other values than the default one; they fit the log of test_ignored_settings.py, and train in no time.
EXAMPLES: dict[str, list[Any]] = {
    "encoder.name": ["gru", "hstu", "mean", "masked", "cross_session"],
    "loss.name": ["bce", "gbce"],
    "vectors.dim": [16],
    "events.features": [["value", "session", "time_of_week"], []],
    "events.time_zone": ["Europe/Berlin", "America/St_Johns"],
    "items.attributes": [["kind"], ["kind", "price"]],
    "items.encoders": [[BY_PRICE], [{"name": "columns", "categories": ["kind"], "buckets": 4}]],
    "objective.event_types": [["buy"], ["buy", "view"]],
    "objective.event_type_weights": [{"buy": 2.0}, {"buy": 0.5, "view": 3.0}],
    "objective.popularity_days": [[7.0], [3.5, 28.0]],
    "split.metric": ["recall@5", "mrr@20"],
    "split.validation_at": ["2024-04-01T00:00:00+00:00"],
    "split.test_at": ["2024-06-25T12:00:00+02:00"],
    "training.epochs": [2],
    "training.stop_after": [1],
    "training.batch.users": [32],
    "training.batch.events": [40],
}
# What a setting, or one value of it, goes with beside the kind of its own section.
NEEDS: dict[str, dict[str, Any]] = {
    "events.time_zone": {"events": {"features": ["time_of_week"]}},
    "events.session_gap_minutes": {"events": {"features": ["session"]}},
    "items.prior_events": {"items": {"encoders": [BY_PRICE]}},
    "items.own_direction": {"items": {"encoders": [BY_PRICE]}},
    "interests.kind": {"objective": {"kind": "prefix"}},
    "interests.n": {"objective": {"kind": "prefix"}},
    "interests.method": {"objective": {"kind": "prefix"}},
    "interests.anchored": {"objective": {"kind": "prefix"}},
    "objective.kind=masked": {"encoder": {"name": "masked"}},
    "objective.share": {"encoder": {"name": "masked"}},
}
NAMES = st.text("abcxyz_019", min_size=1, max_size=5)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


class Contradiction(Exception):
    """One key can have one value."""


@dataclass(frozen=True)
class Setting:
    """A key that can be set.

    Attributes:
        key: dotted, such as "objective.days".
        type: of its values, without None.
        bounds: of its values.
        default: None if there is none.
        kinds: the alternative that it belongs to, as nested values: ``{"objective": {"kind": "window"}}``; empty if the
            default one has it too.
    """

    key: str
    type: Any
    bounds: tuple[Any, ...]
    default: Any
    kinds: dict[str, Any]

    def others(self) -> list[Any]:
        """Values that are not the default one, small enough to train with at once."""
        if self.key in EXAMPLES:
            return EXAMPLES[self.key]
        if get_origin(self.type) is Literal:
            return [value for value in get_args(self.type) if value != self.default]
        if self.type is bool:
            return [not self.default]
        if self.type in (int, float):
            numbers = [self.default * 2, self.default / 2, self.default + 1, self.default + 0.5]
            return [self.type(n) for n in numbers if n != self.default and within(self.bounds, n)][:1]
        raise AssertionError(f"say in EXAMPLES what {self.key} may be: {self.type}")

    def drawn(self) -> st.SearchStrategy[Any]:
        """Values of its type, of any size."""
        examples = st.sampled_from(self.others())
        free = self.type is str or self.key == "items.encoders"
        return examples if free else examples | of_type(self.type, self.bounds)


def settings(section: type[Section] = Recipe) -> list[Setting]:
    """All settings of a section and of those below it, each once; that of the default alternative comes first."""
    every: dict[str, Setting] = {}
    for setting in _settings(section, "", {}):
        every.setdefault(setting.key, setting)
    return list(every.values())


def _settings(section: type[Section], prefix: str, kinds: dict[str, Any]) -> Iterator[Setting]:
    for name, info in section.model_fields.items():
        key = f"{prefix}{name}"
        if name in section.sections():
            yield from _settings(section.sections()[name], f"{key}.", kinds)
        elif name not in section.choices():
            yield _setting(key, info, kinds)
        elif (choice := section.choices()[name]).tag == "name":
            yield from _settings(choice.classes[0], f"{key}.", kinds)
        else:
            by_kind = choice.by_kind()
            yield Setting(f"{key}.kind", Literal[tuple(by_kind)], (), choice.default, kinds)
            for kind in sorted(by_kind, key=lambda kind: kind != choice.default):
                own = kinds if kind == choice.default else merged(kinds, nested(f"{key}.kind", kind))
                yield from (s for s in _settings(by_kind[kind], f"{key}.", own) if s.key != f"{key}.kind")


def _setting(key: str, info: FieldInfo, kinds: dict[str, Any]) -> Setting:
    kind = info.annotation
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (entry for entry in get_args(kind) if entry is not type(None))
    return Setting(key, kind, tuple(info.metadata), info.get_default(call_default_factory=True), kinds)


def sections_of(chosen: Iterable[tuple[Setting, Any]], bare: bool = False) -> dict[str, Any]:
    """Settings and their values as sections of a recipe, with what they need unless they stand ``bare``.

    Raises Contradiction if two of them belong to different alternatives.
    """
    chosen = list(chosen)
    result = merged(*(merged({} if bare else s.kinds, nested(s.key, value)) for s, value in chosen))
    needed = [NEEDS.get(key, {}) for s, value in chosen for key in (s.key, f"{s.key}={value}") if not bare]
    for needs in needed:  # what is set goes first
        result = _filled(result, needs)
    return result


def nested(key: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` of "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """One nested mapping of several. Raises Contradiction if two say different things of one key."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = result.get(key, value)
            if isinstance(old, dict) and isinstance(value, dict):
                result[key] = merged(old, value)
            elif old != value:
                raise Contradiction(key)
            else:
                result[key] = value
    return result


def _filled(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    result = {**more, **values}
    for key in values.keys() & more.keys():
        if isinstance(values[key], dict) and isinstance(more[key], dict):
            result[key] = _filled(values[key], more[key])
    return result


def within(bounds: Iterable[Any], value: float) -> bool:
    """Whether a number keeps the bounds of its field."""
    keeps = {
        Ge: lambda b: value >= b.ge,
        Gt: lambda b: value > b.gt,
        Le: lambda b: value <= b.le,
        Lt: lambda b: value < b.lt,
    }
    return all(keeps[type(bound)](bound) for bound in bounds if type(bound) in keeps)


def of_type(kind: Any, bounds: Iterable[Any] = ()) -> st.SearchStrategy[Any]:
    """Plain values of a type, within bounds."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return of_type(arguments[0], [bound for info in arguments[1:] for bound in getattr(info, "metadata", [info])])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(of_type(arguments[0]), max_size=3, unique=True)
    if origin is dict:
        return st.dictionaries(NAMES, of_type(arguments[1]), max_size=2)
    if kind in (bool, str):
        return st.booleans() if kind is bool else TEXTS
    low = next((getattr(b, "ge", getattr(b, "gt", None)) for b in bounds if isinstance(b, Ge | Gt)), None)
    high = next((getattr(b, "le", getattr(b, "lt", None)) for b in bounds if isinstance(b, Le | Lt)), None)
    if kind is int:
        return st.integers(low, high)
    return st.floats(low, high, allow_nan=False, allow_infinity=False).filter(lambda value: within(bounds, value))
