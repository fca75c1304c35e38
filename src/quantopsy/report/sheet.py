"""A page of words, charts and tables in the look of the report: one HTML file that works offline."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from quantopsy.report import markup
from quantopsy.report.chart import Section


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
    target = Path(path)
    target.write_text(render(sheet), encoding="utf-8")
    return target


def render(sheet: Sheet) -> str:
    """A complete HTML document without a reference to anything outside it."""
    charts = {name: chart.to_json() for section in sheet.sections for name, chart in section.by_id.items()}
    return Template(markup.asset("sheet.html")).substitute(
        title=escape(f"Quantopsy: {sheet.heading}"),
        heading=escape(sheet.heading),
        facts="".join(f"<li>{escape(fact)}</li>" for fact in sheet.facts),
        lead=markup.prose(sheet.lead),
        statements=markup.items(sheet.statements),
        cautions=markup.aside(sheet.cautions),
        sections="".join(map(markup.section, sheet.sections)),
        colours=markup.colours(),
        style=markup.asset("page.css"),
        data=markup.script_json({"charts": charts}),
        script=markup.asset("chart.js") + markup.asset("sheet.js"),
    )
