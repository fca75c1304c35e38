"""A study of a calibration set on a terminal: the verdict, the curve over sizes, what held-out images exceed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from quantopsy.analysis.calibration.result import CalibrationStudy
from quantopsy.report.calibration.tables import Rows, activation_rows, channel_rows, size_rows
from quantopsy.report.calibration.words import cautions, lead, statements
from quantopsy.report.fitted import Column, fitted
from quantopsy.report.terminal import bullets, print_part
from quantopsy.report.wording import duration

_WORST = 6
"""Activations in the table; the page has them all."""

_COLOURS = {"enough": "bold green", "too few": "bold yellow", "different": "bold yellow", "wrong": "bold red"}


def print_study(study: CalibrationStudy, console: Console) -> None:
    """Print what a person wants to know before opening the page."""
    parts: list[tuple[str, RenderableType]] = [
        ("", Text(lead(study).replace("`", ""), style=_COLOURS[study.verdict.kind])),
        ("", bullets(statements(study), cautions(study))),
        (
            "By number of calibration images, over draws",
            _table(size_rows(study), console.width, spare=("ranges", "beyond")),
        ),
        (
            "Held-out images against the calibrated ranges",
            _table(activation_rows(study), console.width, _WORST, spare=("unused", "furthest")),
        ),
    ]
    if any(shift.differs for shift in study.shifts):
        parts.append(
            (
                "Channels, calibration against evaluation images",
                _table(channel_rows(study), console.width, spare=("mean",)),
            )
        )
    for heading, part in parts:
        print_part(console, part, heading)
    spent = f"{study.evaluation} evaluation images, {100 * study.level:g} % intervals, {duration(study.seconds)}"
    print_part(console, Text(spent, style="dim"))


def _table(content: Rows, width: int, most: int | None = None, spare: Sequence[str] = ()) -> Group:
    """The first ``most`` rows in ``width`` columns; ``spare`` has the headings that may be left out, in that order."""
    headings, rows, note = content
    columns = [
        Column(
            heading,
            [row[place] for row in rows[:most]],
            right=place > 0,
            least=None if place else 12,
            spare=len(spare) - spare.index(heading) if heading in spare else 0,
        )
        for place, heading in enumerate(headings)
    ]
    return Group(fitted(columns, width), Text(note, style="dim"))
