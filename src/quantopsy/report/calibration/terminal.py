"""A study of a calibration set on a terminal: the verdict, the curve over sizes, what held-out images exceed."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from quantopsy.analysis.calibration.result import CalibrationStudy
from quantopsy.report.calibration.tables import activation_rows, channel_rows, size_rows
from quantopsy.report.calibration.words import cautions, lead, statements
from quantopsy.report.terminal import bullets, print_part
from quantopsy.report.wording import duration, elide

_WORST = 6
"""Activations in the table; the page has them all."""

_COLOURS = {"enough": "bold green", "too few": "bold yellow", "wrong": "bold red"}


def print_study(study: CalibrationStudy, console: Console) -> None:
    """Print what a person wants to know before opening the page."""
    parts: list[tuple[str, RenderableType]] = [
        ("", Text(lead(study).replace("`", ""), style=_COLOURS[study.verdict.kind])),
        ("", bullets(statements(study), cautions(study))),
        ("By number of calibration images, over draws", _sizes(study)),
        ("Held-out images against the calibrated ranges", _activations(study, console.width)),
    ]
    if any(shift.differs for shift in study.shifts):
        parts.append(("Channels, calibration against evaluation images", _channels(study)))
    for heading, part in parts:
        print_part(console, part, heading)
    spent = f"{study.evaluation} evaluation images, {100 * study.level:g} % intervals, {duration(study.seconds)}"
    print_part(console, Text(spent, style="dim"))


def _sizes(study: CalibrationStudy) -> Group:
    headings, rows, note = size_rows(study)
    table = _table(headings)
    for row in rows:
        table.add_row(*row)
    return Group(table, Text(note, style="dim"))


def _activations(study: CalibrationStudy, width: int) -> Group:
    headings, rows, note = activation_rows(study)
    table = _table(headings, first="")
    taken = sum(max(len(row[column]) for row in [headings, *rows[:_WORST]]) + 2 for column in range(1, len(headings)))
    for row in rows[:_WORST]:
        table.add_row(elide(row[0], max(12, width - taken - 2)), *row[1:])
    return Group(table, Text(note, style="dim"))


def _channels(study: CalibrationStudy) -> Group:
    headings, rows, note = channel_rows(study)
    table = _table(headings, first="")
    for row in rows:
        table.add_row(*row)
    return Group(table, Text(note, style="dim"))


def _table(headings: tuple[str, ...], first: str = "right") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 and not first else "right", no_wrap=True)
    return table
