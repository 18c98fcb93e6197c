"""Several users side by side in lines of one width, so that attention needs few calls and little padding.

Shape letters: T packed events, N cells of a batch, G lines of a tile, W cells of a line (an event or none):

    line 0    a0 a1 a2 a3 a4 | c0 c1
    line 1    b0 b1 b2 b3 | d0 d1 | .
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from bseq_plugin.schema.packed import PackedEvents

NARROW = 64  # up to this length all users share one width: a second call costs more than the wider mask
WIDE = 256  # beyond it a mask [G, W, W] costs more than padding: one user a line, no mask
STEP = 32  # numbers of rows are multiples of it: oneDNN compiles a kernel for each shape it meets, a ms every time
MASK_CELLS = 1 << 24  # the most entries a mask of one tile may have, unless a single line has more


@dataclass(frozen=True)
class Tile:
    """G lines of W cells that stand one after the other; ``alone`` if no line has more than one user."""

    start: int
    n_lines: int
    width: int
    alone: bool

    @property
    def cells(self) -> slice:
        """The slice of all N cells that belongs to this tile."""
        return slice(self.start, self.start + self.n_lines * self.width)


@dataclass(frozen=True)
class Layout:
    """The place of every event of a batch.

    Attributes:
        tiles: cover the N cells in order.
        n_cells: N.
        cell_T: int64 [T], the cell of each packed event; None if cell i is event i.
    """

    tiles: tuple[Tile, ...]
    n_cells: int
    cell_T: Tensor | None

    def spread(self, x_TD: Tensor) -> Tensor:
        """Bring ``[T, D]`` to ``[N, D]``, with zeros in cells without an event."""
        if self.cell_T is None:
            return x_TD
        return x_TD.new_zeros(self.n_cells, *x_TD.shape[1:]).index_copy(0, self.cell_T, x_TD)

    def gather(self, x_ND: Tensor) -> Tensor:
        """Bring ``[N, D]`` to ``[T, D]``."""
        return x_ND if self.cell_T is None else x_ND.index_select(0, self.cell_T)

    def choose(self, rows_Q: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return a function from ``[N, D]`` to the rows ``rows_Q`` (None: all), filled up to a multiple of ``STEP``."""
        cell_Q = rows_Q if self.cell_T is None else self.cell_T if rows_Q is None else self.cell_T[rows_Q]
        if cell_Q is None:
            return lambda x_ND: x_ND
        return partial(torch.index_select, dim=0, index=pad(cell_Q, (0, -cell_Q.shape[0] % STEP)))

    def users(self, user_T: Tensor) -> Tensor:
        """Return int64 [N], the user of each cell, -1 in a cell without an event."""
        if self.cell_T is None:
            return user_T
        return user_T.new_full((self.n_cells,), -1).index_copy(0, self.cell_T, user_T)


def lay_out(events: PackedEvents) -> Layout:
    """Give every event a place; users without events have none.

    With ``events.longest`` every user has a line of that many cells, whatever the lengths.
    """
    if events.longest is not None:
        return _line_each(events, events.longest)
    if torch.compiler.is_dynamo_compiling():
        # read only then: it imports the compiler, which takes as long as torch itself
        from bseq_plugin.encoders.packed.uncompiled import uncompiled

        return cast(Layout, uncompiled(_planned, events))
    return _planned(events)


def _line_each(events: PackedEvents, width: int) -> Layout:
    n_cells = events.n_users * width
    tile = Tile(0, events.n_users, width, alone=True)
    return Layout((tile,), n_cells, events.user_T * width + events.position_T)


def _planned(events: PackedEvents) -> Layout:
    lengths: list[int] = events.lengths_B.tolist()
    if len(lengths) == 1:  # one user as in serving: nothing to arrange
        tiles = (Tile(0, 1, lengths[0], alone=True),) if lengths[0] else ()
        return Layout(tiles, lengths[0], None)
    tiles_found: list[Tile] = []
    first = [0] * len(lengths)
    n_cells = 0
    for users, width in _classes(lengths):
        places, n_lines = best_fit([lengths[user] for user in users], width)
        for user, (line, start) in zip(users, places, strict=True):
            first[user] = n_cells + line * width + start
        tiles_found.extend(_tiles(n_cells, n_lines, width, alone=n_lines == len(users)))
        n_cells += n_lines * width
    first_B = torch.tensor(first, dtype=torch.int64, device=events.offsets_B1.device)
    return Layout(tuple(tiles_found), n_cells, first_B[events.user_T] + events.position_T)


def _classes(lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Yield the users, longest first, and the width of their lines; a class ends where lengths get too short for it."""
    order = sorted((user for user, length in enumerate(lengths) if length), key=lambda user: -lengths[user])
    begin = 0
    while begin < len(order):
        longest = lengths[order[begin]]
        least = 1 if longest <= NARROW else longest // 4 + 1 if longest <= WIDE else max(longest * 4 // 5, WIDE + 1)
        end = begin
        while end < len(order) and lengths[order[end]] >= least:
            end += 1
        yield order[begin:end], -(-longest // STEP) * STEP
        begin = end


def _tiles(start: int, n_lines: int, width: int, *, alone: bool) -> Iterator[Tile]:
    step = max(1, MASK_CELLS // width**2)
    for line in range(0, n_lines, step):
        yield Tile(start + line * width, min(step, n_lines - line), width, alone)


def best_fit(lengths: Sequence[int], width: int) -> tuple[list[tuple[int, int]], int]:
    """Return ``([(line, first cell in it)], number of lines)``: each length goes where it leaves the least room.

    Longest first is best-fit-decreasing. From ``WIDE`` on nobody shares a line.
    """
    places: list[tuple[int, int]] = []
    lines_with: list[list[int]] = [[] for _ in range(width + 1)]  # by their free cells
    rooms = 0  # bit r is set if some line has r free cells
    n_lines = 0
    for length in lengths:
        fitting = rooms >> length << length if width <= WIDE else 0
        if fitting:
            room = (fitting & -fitting).bit_length() - 1
            line = lines_with[room].pop()
            if not lines_with[room]:
                rooms ^= 1 << room
        else:
            room, line = width, n_lines
            n_lines += 1
        places.append((line, width - room))
        if room > length:
            lines_with[room - length].append(line)
            rooms |= 1 << (room - length)
    return places, n_lines
