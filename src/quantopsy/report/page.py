"""The report as one HTML file that works offline: words and tables from here, pictures from its script.

The script draws with SVG and weighs a few kilobytes; plotly's would weigh five megabytes, and the heatmap
and the bars below it could not share their columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from quantopsy.analysis.results import Results
from quantopsy.report.chart import Section, Table
from quantopsy.report.palette import DARK, LIGHT, Palette, strong_from
from quantopsy.report.payload import payload
from quantopsy.report.sections import sections
from quantopsy.report.tables import whole_network, with_marks
from quantopsy.report.verdict import cautions, statements
from quantopsy.report.wording import (
    PREDICTED,
    confidence,
    count,
    degradation_decimals,
    degradation_unit,
    duration,
    fixed,
    flattened,
    interval,
    percent,
    predicted,
    si,
    significant,
)


def write(results: Results, path: str | Path) -> Path:
    """Write the report of ``results`` to ``path``; the same results give the same bytes."""
    target = Path(path)
    target.write_text(render(results), encoding="utf-8")
    return target


def render(results: Results) -> str:
    """The report as a complete HTML document without a reference to anything outside it."""
    lead, *rest = statements(results)
    data = {**payload(results), "strong": _strong()}
    level = confidence(results)
    return Template(_asset("page.html")).substitute(
        title=escape(f"{results.model}: quantization report" if results.model else "Quantization report"),
        model=escape(results.model or "Network"),
        facts=_facts(results),
        lead=_sentence(lead),
        statements="".join(f"<li>{_sentence(sentence)}</li>" for sentence in rest),
        cautions=_cautions(cautions(results)),
        level=_sentence(level),
        sections="".join(map(_section, sections(results))),
        whole=_whole(results),
        coverage=_coverage(results),
        settings=_definitions(results.settings),
        provenance=_definitions(results.provenance),
        colours=_variables(LIGHT, DARK),
        style=_asset("page.css"),
        data=_script_json(data),
        script=_asset("page.js"),
    )


def _asset(name: str) -> str:
    return (resources.files("quantopsy.report") / "assets" / name).read_text(encoding="utf-8")


def _script_json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _variables(light: Palette, dark: Palette) -> str:
    def declared(palette: Palette) -> str:
        return "".join(f"--{name}:{colour};" for name, colour in asdict(palette).items())

    return f":root{{{declared(light)}}}@media (prefers-color-scheme:dark){{:root{{{declared(dark)}}}}}"


def _strong() -> dict[str, list[float]]:
    """From which share of each colour its text turns, in the light and in the dark scheme."""
    schemes = (LIGHT, DARK)
    return {
        name: [strong_from(palette, getattr(palette, name)) for palette in schemes]
        for name in ("worse", "better", "noise")
    }


def _sentence(sentence: str) -> str:
    """Escaped, layer names set as code, no line break between a number and its percent sign."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(sentence, quote=False))
    return re.sub(r"(\d) %", r"\1&nbsp;%", text)


def _facts(results: Results) -> str:
    scheme = results.settings.get("scheme")
    facts = [
        f"data {results.data}" if results.data else "",
        count(results.samples, "image"),
        f"metric {results.metric}",
        scheme if isinstance(scheme, str) else "",
        f"weights at {', '.join(map(str, sorted(results.bits, reverse=True)))} bits",
        f"{duration(results.seconds)}, {significant(results.passes)} passes" if results.passes else "",
    ]
    return "".join(f"<li>{escape(fact)}</li>" for fact in facts if fact)


def _cautions(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{_sentence(sentence)}</li>" for sentence in sentences)
    return f'<aside aria-label="Cautions"><ul>{items}</ul></aside>' if items else ""


def _whole(results: Results) -> str:
    decimals, unit = degradation_decimals(results), degradation_unit(results)
    span = interval(results.float_low, results.float_high, decimals)
    cells = with_marks(results.cells)
    screened = set(cells.loc[cells["screened"], "bits"])
    rows = [["float", fixed(results.float_value, decimals), "", span, "", "", "", "", ""]]
    for _, row in whole_network(results).iterrows():
        rows.append(
            [
                str(int(row["bits"])),
                fixed(row["value"], decimals),
                fixed(row["degradation"], decimals),
                interval(row["degradation_low"], row["degradation_high"], decimals),
                predicted(fixed(row["degradation_sum"], decimals), row["bits"] in screened),
                significant(row["noise"]),
                predicted(significant(row["noise_sum"]), row["bits"] in screened),
                significant(row["noise"] / row["noise_sum"], 2) if row["noise_sum"] > 0 else "",
                predicted(significant(row["noise_predicted"]), True),
            ]
        )
    headings = [
        "weight bits", results.metric, f"degradation{unit}", f"{confidence(results)} interval", "sum of layers",
        "noise", "sum of layers' noise", "noise to sum", "noise predicted",
    ]  # fmt: skip
    notes = []
    table = whole_network(results)
    if screened & set(table["bits"]):
        notes.append(f"{PREDICTED} before a sum: some of the layers are screened: predicted, not run.")
    if table["noise_predicted"].notna().any():
        notes.append(
            "Noise predicted is the screen's, with the interactions of all layers; "
            "beyond the linear regime it is rough."
        )
    below = f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""
    caption = "The whole network quantized, beside the sum of its single layers"
    return _table(Table(caption, tuple(headings), tuple(map(tuple, rows)))) + below


def _section(section: Section) -> str:
    """A section with room for its charts, which the script draws."""
    statements = "".join(f"<li>{_sentence(sentence)}</li>" for sentence in section.statements)
    charts = "".join(
        f'<div class="card"><h3>{escape(chart.title)}</h3><div class="scatter" id="{name}"></div>'
        + (f"<p>{_sentence(chart.note)}</p>" if chart.note else "")
        + "</div>"
        for name, chart in section.by_id.items()
    )
    return (
        f'<section aria-labelledby="{section.key}"><h2 id="{section.key}">{escape(section.heading)}</h2>'
        + (f'<p class="note">{_sentence(section.note)}</p>' if section.note else "")
        + (f'<ul class="verdict">{statements}</ul>' if statements else "")
        + (f'<div class="cards charts">{charts}</div>' if charts else "")
        + (_table(section.table) if section.table else "")
        + "</section>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>' if index == 0 else f"<td>{escape(cell)}</td>"
            for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    caption = escape(table.caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f'<caption class="unseen">{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _coverage(results: Results) -> str:
    known = results.coverage
    parts = [f"{count(len(results.layers), 'layer')} can be quantized"]
    if "macs_share" in known:
        total = f" of {si(float(known['macs']))}" if "macs" in known else ""
        parts.append(f"{percent(float(known['macs_share']))}{total} multiply-accumulates")
    sentence = f"<p>{escape(', '.join(parts))}.</p>"
    if not results.unquantized:
        return sentence + "<p>Nothing stays float.</p>"
    rows = tuple(
        tuple(str(item.get(key) or "") for key in ("name", "operator", "source")) for item in results.unquantized
    )
    why = "<p>These operators are not among those that can be quantized and stay float:</p>"
    return sentence + why + _table(Table("Operators that stay float", ("name", "operator", "source line"), rows))


def _definitions(values: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in flattened(values))
    return f"<dl>{items}</dl>" if items else "<p>None were recorded.</p>"
