"""Words, tables and sections as HTML, for every page: the user's text escaped, nothing loaded from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from importlib import resources
from string import Template
from typing import Any

from quantopsy.report.chart import Section, Table
from quantopsy.report.palette import DARK, LIGHT, Palette
from quantopsy.report.wording import flattened


def asset(name: str) -> str:
    """The text of a file of ``assets/``."""
    return (resources.files("quantopsy.report") / "assets" / name).read_text(encoding="utf-8")


def frame(
    title: str,
    heading: str,
    facts: Iterable[str],
    lead: str,
    statements: Iterable[str],
    cautions: Iterable[str],
    *,
    body: str,
    data: Mapping[str, Any],
    script: str,
) -> str:
    """A complete HTML document without a reference to anything outside it: a heading with its ``facts``, the finding
    with what limits it, ``body``, and ``script``, an asset, drawing what is in ``data``."""
    return Template(asset("frame.html")).substitute(
        title=escape(title),
        heading=escape(heading),
        facts="".join(f"<li>{escape(fact)}</li>" for fact in facts),
        lead=prose(lead),
        statements=items(statements),
        cautions=aside(cautions),
        body=body,
        colours=colours(),
        style=asset("page.css"),
        data=script_json(data),
        script=asset("chart.js") + asset(script),
    )


def script_json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def colours() -> str:
    """The palettes as variables of a style sheet."""

    def declared(palette: Palette) -> str:
        return "".join(f"--{name}:{colour};" for name, colour in asdict(palette).items())

    return f":root{{{declared(LIGHT)}}}@media (prefers-color-scheme:dark){{:root{{{declared(DARK)}}}}}"


def prose(sentence: str) -> str:
    """Escaped, layer names set as code, no line break between a number and its percent sign; of several lines the
    first stands out."""
    first, newline, rest = sentence.partition("\n")
    if newline:
        return f"<strong>{prose(first)}</strong><br>{prose(rest)}"
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(sentence, quote=False))
    return re.sub(r"(\d) %", r"\1&nbsp;%", text)


def items(sentences: Iterable[str]) -> str:
    """Sentences as the items of a list."""
    return "".join(f"<li>{prose(sentence)}</li>" for sentence in sentences)


def aside(sentences: Iterable[str]) -> str:
    """What limits the findings, beside them; nothing where nothing does."""
    found = items(sentences)
    return f'<aside aria-label="Cautions"><ul>{found}</ul></aside>' if found else ""


def section(part: Section) -> str:
    """A section with room for its charts, which the script draws."""
    statements = items(part.statements)
    charts = "".join(
        f'<div class="card{" wide" if chart.wide else ""}"><h3>{escape(chart.title)}</h3>'
        f'<div class="scatter" id="{name}"></div>' + (f"<p>{prose(chart.note)}</p>" if chart.note else "") + "</div>"
        for name, chart in part.by_id.items()
    )
    return (
        f'<section aria-labelledby="{part.key}"><h2 id="{part.key}">{escape(part.heading)}</h2>'
        + (f'<p class="note">{prose(part.note)}</p>' if part.note else "")
        + (f'<ul class="verdict">{statements}</ul>' if statements else "")
        + (f'<div class="cards charts">{charts}</div>' if charts else "")
        + (table(part.table) if part.table else "")
        + "</section>\n"
    )


def table(shown: Table) -> str:
    """A table in a region that scrolls; the first cell of each row names it."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in shown.headings)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>' if index == 0 else f"<td>{escape(cell)}</td>"
            for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in shown.rows
    )
    caption = escape(shown.caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f'<caption class="unseen">{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def definitions(values: Mapping[str, Any]) -> str:
    """Settings, or what else has names and values; nested ones with dots."""
    found = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in flattened(values))
    return f"<dl>{found}</dl>" if found else "<p>None were recorded.</p>"
