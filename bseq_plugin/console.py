"""What people look at: the one place that knows how text, tables and progress are drawn.

Nothing of a user's data is markup: ``[red]`` in an id is shown as it stands, and so is ``:smile:``. Characters that a
terminal would obey or hide are shown escaped. A cell is never cut; where nobody looks (a pipe), a row is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

StyledText = Text

WIDE = 100_000  # columns of a pipe


def visible(text: str) -> str:
    """Return text with everything that is not printed escaped, but for spaces and ends of lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def styled(text: str, style: str) -> Text:
    """Return a piece of text in bold, or in a colour."""
    return Text(visible(text), style)


def joined(*parts: str | Text) -> Text:
    """Return pieces of text one after the other."""
    return Text.assemble(*(part if isinstance(part, Text) else visible(part) for part in parts))


class Plain(Console):
    """A console that takes text for text."""

    def __init__(self, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print: lines of text as long as they are, tables as wide as they must be where nobody looks."""
        if all(isinstance(one, str | Text) for one in objects):
            shown = [visible(one) if isinstance(one, str) else one for one in objects]
            super().print(*shown, **{"soft_wrap": True, **how})
            return
        narrow = self._width
        self._width = narrow if self.is_terminal else WIDE
        try:
            super().print(*objects, **how)
        finally:
            self._width = narrow


class Table(RichTable):
    """A table whose cells are text; give ``styled`` for more."""

    def __init__(self, *heads: str, title: str | None = None, caption: str | None = None) -> None:
        super().__init__(
            title=None if title is None else Text(visible(title), "table.title"),
            caption=None if caption is None else Text(visible(caption), "table.caption"),
            title_justify="left",
        )
        for head in heads:
            self.column(head)

    def column(self, head: str, justify: Literal["left", "right"] = "left", whole: bool = False) -> None:
        """Add a column. ``whole`` ones stay on one line however narrow the terminal is."""
        super().add_column(Text(visible(head)), justify=justify, no_wrap=whole, overflow="ignore" if whole else "fold")

    def row(self, *cells: object, style: str = "", end: bool = False) -> None:
        """Add a row; ``end`` draws a line under it."""
        shown = [cell if isinstance(cell, Text) else Text(visible(str(cell))) for cell in cells]
        super().add_row(*shown, style=style, end_section=end)


out = Plain()  # results
note = Plain(stderr=True)  # everything else, so that results can be piped


@contextmanager
def progress(*columns: str | ProgressColumn, console: Plain = note, shown: bool = True) -> Iterator[Progress]:
    """Show a progress bar on a terminal, gone when it is done; with other columns than the usual ones if given."""
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        yield bar


@contextmanager
def counting(
    what: str, total: int | None, console: Plain = note, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` are done; call what is given with how many more are."""
    columns = (TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress(*columns, console=console, shown=shown) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)


def stepping(console: Plain) -> AbstractContextManager[Progress]:
    """Return the bar of an epoch; its tasks have a field ``state``."""
    fields = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    return progress(*fields, TimeRemainingColumn(), console=console)
