"""A page of words, charts and tables in the look of the report: one HTML file that works offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantopsy.core.files import write_file
from quantopsy.report import markup
from quantopsy.report.chart import Section

_NO_SCRIPT = "<noscript><p>The pictures need JavaScript; the tables have the numbers.</p></noscript>\n\n"


@dataclass(frozen=True)
class Sheet:
    """What stands on the page: the finding first, what limits it, then sections."""

    heading: str
    facts: tuple[str, ...]
    lead: str
    statements: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


def write(sheet: Sheet, path: str | Path) -> Path:
    """Write ``sheet`` to ``path``; equal sheets give the same bytes."""
    return write_file(path, render(sheet), "page")


def render(sheet: Sheet) -> str:
    """A complete HTML document without a reference to anything outside it."""
    charts = {name: chart.to_json() for section in sheet.sections for name, chart in section.by_id.items()}
    return markup.frame(
        f"Quantopsy: {sheet.heading}",
        sheet.heading,
        sheet.facts,
        sheet.lead,
        sheet.statements,
        sheet.cautions,
        body=_NO_SCRIPT + "".join(map(markup.section, sheet.sections)),
        data={"charts": charts},
        script="sheet.js",
    )
