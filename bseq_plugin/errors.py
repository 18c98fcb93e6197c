"""Every error that bseq raises on purpose; each says what was wrong, the value, and what to do."""

from __future__ import annotations


class BseqError(Exception):
    """Base of all errors raised by bseq. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(BseqError, ValueError):
    """The caller's input can't be used: an argument, a setting, an unknown name."""

    exit_code = 2


class SchemaError(UsageError):
    """Events (or another table given by the user) break the documented format."""


class RecipeError(UsageError):
    """A recipe has an unknown key, a value out of range, or settings that contradict each other."""


class PluginError(BseqError):
    """A plugin failed to load, clashes with another, or returned something unusable."""


class RunError(BseqError):
    """A run directory is missing, incomplete, or belongs to other settings."""


class StoreError(BseqError):
    """A store version is missing, damaged, or does not fit what is asked of it."""


class MissingDependencyError(BseqError, ImportError):
    """An optional package is needed for what was asked; the message names the remedy."""
