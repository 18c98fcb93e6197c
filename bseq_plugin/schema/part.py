"""What parts of every kind have in common: a name, and options of a type of their own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, cast, get_args, get_origin

from typing_extensions import TypeVar

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.schema.options import PartOptions, parse_options

# A part only reads its options, so that a part with options of its own is also a part of any options (covariant).
OptionsT_co = TypeVar("OptionsT_co", bound=PartOptions, default=PartOptions, covariant=True)


def _named_options(part: type[Part[Any]]) -> type[PartOptions] | None:
    """Return the options that ``part`` names as the type argument of a base class, None if it names none."""
    for base in vars(part).get("__orig_bases__", ()):
        origin, arguments = get_origin(base), get_args(base)
        if not isinstance(origin, type) or not issubclass(origin, Part):
            continue
        classes = [options for argument in arguments if (options := _options_class(argument)) is not None]
        if classes:
            return classes[0]
        if Any not in arguments:
            raise PluginError(
                f"part {part.__module__}.{part.__qualname__}: {origin.__name__}{list(arguments)} names no class of "
                "options; give a subclass of PartOptions that is defined above it"
            )
    return None


def _options_class(argument: object) -> type[PartOptions] | None:
    """Return ``argument`` if it is a class of options; of a type variable, its default or its bound."""
    for options in (argument, getattr(argument, "__default__", None), getattr(argument, "__bound__", None)):
        if isinstance(options, type) and options is not Any and issubclass(options, PartOptions):
            return options
    return None


class Part(Generic[OptionsT_co]):
    """The base of every class that a plugin adds under a ``name``.

    A part with settings names their class once, as the type argument of its base class:
    ``class MyEncoder(SequenceEncoder[MyOptions])``. A type checker then knows what ``options`` has. A part without
    settings leaves the brackets out.

    Attributes:
        Options: the class that was named; ``PartOptions``, which has no keys, if none was.

    Raises PluginError, when such a class is defined, for a type argument that is no class of options, and for an
    ``Options`` written into the class that contradicts it.
    """

    name: ClassVar[str]
    Options: ClassVar[type[PartOptions]] = PartOptions

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        declared = vars(cls).get("Options")
        inherited = next(base for base in cls.__mro__[1:] if issubclass(base, Part)).Options
        named = _named_options(cls) or inherited
        if declared is None:
            cls.Options = named
        elif not issubclass(declared, named):
            raise PluginError(
                f"part {cls.__module__}.{cls.__qualname__} is declared with options {named.__name__}, but sets Options "
                f"= {declared.__name__}; name the class once, as the type argument of its base class"
            )

    @classmethod
    def checked_options(cls, options: OptionsT_co | Mapping[str, Any] | None) -> OptionsT_co:
        """Return ``options`` (None for the defaults, a mapping, or ready-made) as ``Options``.

        Raises RecipeError for an unknown key or value, UsageError for anything else that is given.
        """
        if isinstance(options, cls.Options):
            return options
        if options is not None and not isinstance(options, Mapping):
            raise UsageError(
                f"{cls.name!r}: options are {type(options).__name__}; give a mapping or {cls.Options.__name__}"
            )
        return cast(OptionsT_co, parse_options(cls.Options, options or {}, f"options of {cls.name!r}"))


class MachineChoices(Part[OptionsT_co]):
    """What a part leaves to be found by measuring the machine; it is no option, for it says nothing of what is learned.

    ``train`` asks once, on rank 0, gives the answer to every rank and writes it into the run, so that all ranks and a
    resumed run calculate alike. In a training loop of another kind ``settle`` is for its owner to call.
    """

    options: OptionsT_co
    choices: Mapping[str, Any] = MappingProxyType({})  # what was settled; nothing before

    def machine_choices(self, dim: int) -> dict[str, Any]:
        """Return what is best here, for vectors of width ``dim``; nothing by default."""
        return {}

    def settle(self, choices: Mapping[str, Any]) -> None:
        """Take ``choices`` over."""
        self.choices = dict(choices)
