"""Plugins are loaded so that one bad plugin is reported and never takes the others down."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pluggy

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.hookspecs import API_VERSION, PROJECT, BseqSpecs

ALLOW_ENV = "BSEQ_PLUGINS"  # comma-separated entry-point names: only these are loaded (builtin always is)
DENY_ENV = "BSEQ_DISABLE_PLUGINS"  # comma-separated entry-point names that are not loaded
BUILTIN = "builtin"

# kind of part -> hook that lists the classes; the kind is the word used in messages and in `bseq plugins`
PART_HOOKS = {
    "encoder": "bseq_encoders",
    "loss": "bseq_losses",
    "item encoder": "bseq_item_encoders",
    "index": "bseq_indexes",
    "candidate source": "bseq_candidate_sources",
    "ranking feature": "bseq_ranking_features",
}


@dataclass
class PluginInfo:
    """One row of ``bseq plugins``: where a plugin comes from, what it gives, and why it, or a part of it, failed."""

    name: str
    distribution: str
    version: str
    error: str | None = None
    parts: dict[str, list[str]] = field(default_factory=dict)
    hooks: list[str] = field(default_factory=list)


class PluginManager:
    """Registers plugins by hand or from entry points, and finds parts by kind and name.

    Args:
        project: the pluggy project, which is also the entry-point group. A distribution that has parts of its own kind
            makes a manager with its own project, specification and kinds.
        specs: the class with the hook specifications.
        kinds: kind of part -> the hook that lists classes of that kind.

    Raises ``PluginError`` for duplicate names and misspelt hooks, ``UsageError`` for unknown names.
    """

    def __init__(
        self, project: str = PROJECT, specs: type[Any] = BseqSpecs, kinds: Mapping[str, str] = PART_HOOKS
    ) -> None:
        self.project, self.specs, self.kinds = project, specs, kinds
        self._pm = pluggy.PluginManager(project)
        self._pm.add_hookspecs(specs)
        self._info: dict[str, PluginInfo] = {}
        self._causes: dict[str, BaseException] = {}
        self._parts: dict[str, dict[str, tuple[type[Any], str]]] = {}

    @property
    def hook(self) -> Any:
        """pluggy's hook caller, for the hooks that are not part lists."""
        return self._pm.hook

    def register(self, plugin: object, name: str, *, distribution: str = "(local)", version: str = "") -> None:
        """Add one plugin object. Raises PluginError if the name is taken, a hook is misspelt, or a part clashes."""
        if name in self._info:
            other = self._info[name]
            raise PluginError(
                f"plugin name {name!r} is given by {distribution} and by {other.distribution}; uninstall one of them"
            )
        try:
            self._pm.register(plugin, name=name)
            self._pm.check_pending()
        except pluggy.PluginValidationError as error:  # an argument or a hook that the specification does not have
            self._pm.unregister(name=name)
            hooks = ", ".join(sorted(hook_names(self.specs)))
            raise PluginError(
                f"plugin {name!r} ({distribution}): {error}. The hooks are: {hooks}. "
                f"Until it is repaired, {DENY_ENV}={name} leaves it out"
            ) from error
        callers = self._pm.get_hookcallers(plugin) or []
        self._info[name] = PluginInfo(name, distribution, version, hooks=sorted(c.name for c in callers))
        self._parts.clear()

    def load_entry_points(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        """Load every entry point of the project's group that the environment switches allow; keep going on failures."""
        points = importlib.metadata.entry_points(group=self.project) if entry_points is None else entry_points
        allow, deny = _names_from_env(ALLOW_ENV), _names_from_env(DENY_ENV)
        # an editable install can list the same distribution twice: one entry point is loaded once
        for point in sorted(set(points), key=lambda p: (p.name != BUILTIN, p.name, p.dist.name if p.dist else "")):
            if point.name != BUILTIN and (point.name in deny or (allow and point.name not in allow)):
                continue
            self._load(point)

    def _load(self, point: importlib.metadata.EntryPoint) -> None:
        distribution = point.dist.name if point.dist else "?"
        version = point.dist.version if point.dist else ""
        if point.name in self._info and self._info[point.name].distribution == distribution:
            return
        try:
            plugin = point.load()
        except Exception as error:  # a third party's import can fail in any way, and must not stop the others
            self._info[point.name] = PluginInfo(
                point.name, distribution, version, error=f"{type(error).__name__}: {error}"
            )
            self._causes[point.name] = error
            return
        wanted = getattr(plugin, "bseq_api_version", API_VERSION)
        if wanted != API_VERSION:
            message = (
                f"was written for plugin API {wanted}, this is {API_VERSION}; upgrade {distribution} or bseq-plugin"
            )
            self._info[point.name] = PluginInfo(point.name, distribution, version, error=message)
            self._causes[point.name] = PluginError(f"plugin {point.name!r} {message}")
            return
        self.register(plugin, point.name, distribution=distribution, version=version)

    def implementations(self, hook: str) -> list[tuple[PluginInfo, Callable[..., Any]]]:
        """Return who implements a hook, and how. Called one by one, not through pluggy, an error names its plugin."""
        return [(self._info[impl.plugin_name], impl.function) for impl in getattr(self._pm.hook, hook).get_hookimpls()]

    def parts(self, kind: str) -> dict[str, type[Any]]:
        """All classes of one kind, by name. Raises PluginError if two plugins use one name."""
        return {name: cls for name, (cls, _) in self._collect(kind).items()}

    def part(self, kind: str, name: str) -> type[Any]:
        """The class of ``kind`` called ``name``. An unknown name lists what there is and what failed to load."""
        parts = self.parts(kind)
        if name in parts:
            return parts[name]
        failed = "; ".join(f"plugin {i.name!r} of {i.distribution} failed: {i.error}" for i in self._failed())
        message = f"unknown {kind} {name!r}; there are: {', '.join(sorted(parts)) or '(none)'}"
        message += f". {failed}" if failed else ""
        raise UsageError(message) from next(iter(self._causes.values()), None)

    def infos(self) -> list[PluginInfo]:
        """What is loaded, what it gives, and what failed, builtin first."""
        for kind in self.kinds:
            parts = self._collect(kind)
            for info in self._info.values():
                info.parts[kind] = sorted(name for name, (_, plugin) in parts.items() if plugin == info.name)
        return list(self._info.values())

    def digest(self) -> str:
        """sha256 over (plugin, version, part names): equal on two ranks exactly if they run the same parts."""
        rows = [[i.name, i.distribution, i.version, i.error, i.parts, i.hooks] for i in self.infos()]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def is_of_kind(self, kind: str, part: type[Any], plugin: PluginInfo) -> bool:
        """Return whether a class is of ``kind``; override it where one hook lists classes of several kinds."""
        return True

    def _failed(self) -> list[PluginInfo]:
        return [info for info in self._info.values() if info.error]

    def _collect(self, kind: str) -> dict[str, tuple[type[Any], str]]:
        if kind not in self._parts:  # one kind at a time: asking for an encoder does not import the indexes
            self._parts[kind] = self._collect_kind(kind, self.kinds[kind])
        return self._parts[kind]

    def _collect_kind(self, kind: str, hook: str) -> dict[str, tuple[type[Any], str]]:
        parts: dict[str, tuple[type[Any], str]] = {}
        for mine, function in self.implementations(hook):
            try:
                classes = function()
            except Exception as error:
                raise PluginError(
                    f"plugin {mine.name!r} ({mine.distribution}) failed in {hook}(): "
                    f"{type(error).__name__}: {error}. Disable it with {DENY_ENV}={mine.name}"
                ) from error
            for cls in classes or []:
                name = getattr(cls, "name", None)
                if not isinstance(cls, type) or not isinstance(name, str) or not name:
                    raise PluginError(f"plugin {mine.name!r}: {hook}() gave {cls!r}; it needs a class with a `name`")
                if not self.is_of_kind(kind, cls, mine):
                    continue
                if name in parts:
                    other = self._info[parts[name][1]]
                    raise PluginError(
                        f"{kind} name {name!r} is given by plugin {other.name!r} ({other.distribution}) and by "
                        f"{mine.name!r} ({mine.distribution}); disable one with {DENY_ENV}={mine.name}"
                    )
                parts[name] = (cls, mine.name)
        return parts


def hook_names(specs: type[Any] = BseqSpecs) -> list[str]:
    """Return the names of all hooks, in the order of the specification."""
    return [name for name in vars(specs) if not name.startswith("_")]


@cache
def plugin_manager() -> PluginManager:
    """The process-wide manager with all entry points loaded.

    Raises PluginError if bseq-plugin is not installed: its own parts come in by an entry point as well.
    """
    manager = PluginManager()
    manager.load_entry_points()
    if BUILTIN in manager._causes:
        raise PluginError("the built-in parts failed to load") from manager._causes[BUILTIN]
    if BUILTIN not in manager._info:
        raise PluginError(
            "the built-in parts are not registered: install the package (pip install -e .) instead of only importing it"
        )
    return manager


def _names_from_env(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}
