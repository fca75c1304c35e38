"""Tables that fit a terminal: texts are cut, numbers never; what matters least is left out where there is no room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from quantopsy.report.wording import elide

Line = str | Text

_BETWEEN, _EDGES = 3, 2
"""What rich puts between two columns of such a table, and around all."""


@dataclass(frozen=True)
class Column:
    """A heading and its cells, each of one or several lines.

    A text may be cut to ``least`` characters. Of columns with a ``spare`` the one with the greatest goes first.
    """

    heading: str
    cells: Sequence[Line | tuple[Line, ...]]
    right: bool = True
    style: str = ""
    least: int | None = None
    spare: int = 0

    @property
    def width(self) -> int:
        """What it takes whole."""
        lines = [line for cell in self.cells for line in _lines(cell)]
        return max(len(self.heading), *(line.cell_len for line in lines), 0)

    @property
    def narrowest(self) -> int:
        """What it takes at least."""
        return self.width if self.least is None else min(self.width, max(self.least, len(self.heading)))

    def cut(self, cell: Line | tuple[Line, ...], width: int) -> Text:
        """``cell`` in ``width`` characters, where it is a text."""
        lines = _lines(cell)
        if self.least is not None:
            lines = [Text(elide(line.plain, width), style=line.style) for line in lines]
        return Text("\n").join(lines)


def fitted(columns: Iterable[Column], width: int) -> Table:
    """A table of ``columns`` in ``width`` characters."""
    kept = list(columns)
    while _least(kept) > width and any(column.spare for column in kept):
        least_needed = max(kept, key=lambda column: column.spare)
        kept = [column for column in kept if column is not least_needed]
    free = max(0, width - _least(kept))
    widths = []
    for column in kept:
        more = min(free, column.width - column.narrowest)
        free -= more
        widths.append(column.narrowest + more)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in kept:
        table.add_column(
            Text(column.heading), justify="right" if column.right else "left", style=column.style, overflow="fold"
        )
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*(column.cut(cell, room) for column, cell, room in zip(kept, row, widths, strict=True)))
    return table


def _lines(cell: Line | tuple[Line, ...]) -> list[Text]:
    lines = cell if isinstance(cell, tuple) else (cell,)
    return [line if isinstance(line, Text) else Text(line) for line in lines]


def _least(columns: Sequence[Column]) -> int:
    return sum(column.narrowest for column in columns) + _BETWEEN * (len(columns) - 1) + _EDGES
