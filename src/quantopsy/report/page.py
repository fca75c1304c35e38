"""The report as one HTML file that works offline: words and tables from here, pictures from its script.

The script draws with SVG and weighs a few kilobytes; plotly's would weigh five megabytes, and the heatmap
and the bars below it could not share their columns.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

from quantopsy.analysis.results import Results
from quantopsy.core.files import write_file
from quantopsy.report import markup
from quantopsy.report.chart import Table
from quantopsy.report.findings import WHY
from quantopsy.report.palette import DARK, LIGHT, strong_from
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
    interval,
    percent,
    predicted,
    si,
    significant,
)


def write(results: Results, path: str | Path) -> Path:
    """Write the report of ``results`` to ``path``; the same results give the same bytes."""
    return write_file(path, render(results), "page")


def render(results: Results) -> str:
    """The report as a complete HTML document without a reference to anything outside it."""
    lead, *rest = statements(results)
    parts = {part.key: markup.section(part) for part in sections(results)}
    body = Template(markup.asset("study.html")).substitute(
        level=markup.prose(confidence(results)),
        why=parts.pop(WHY, ""),
        sections="".join(parts.values()),
        whole=_whole(results),
        coverage=_coverage(results),
        settings=markup.definitions(results.settings),
        provenance=markup.definitions(results.provenance),
    )
    return markup.frame(
        f"{results.model}: quantization report" if results.model else "Quantization report",
        results.model or "Network",
        _facts(results),
        lead,
        rest,
        cautions(results),
        body=body,
        data={**payload(results), "strong": _strong()},
        script="page.js",
    )


def _strong() -> dict[str, list[float]]:
    """From which share of each colour its text turns, in the light and in the dark scheme."""
    schemes = (LIGHT, DARK)
    return {
        name: [strong_from(palette, getattr(palette, name)) for palette in schemes]
        for name in ("worse", "better", "noise")
    }


def _facts(results: Results) -> list[str]:
    scheme = results.settings.get("scheme")
    facts = [
        f"data {results.data}" if results.data else "",
        count(results.samples, "image"),
        f"metric {results.metric}",
        scheme if isinstance(scheme, str) else "",
        f"weights at {', '.join(map(str, sorted(results.bits, reverse=True)))} bits",
        f"{duration(results.seconds)}, {significant(results.passes)} passes" if results.passes else "",
    ]
    return [fact for fact in facts if fact]


def _whole(results: Results) -> str:
    decimals, unit = degradation_decimals(results), degradation_unit(results)
    span = interval(results.float_low, results.float_high, decimals)
    cells = with_marks(results.cells)
    screened = set(cells.loc[cells["screened"], "bits"])
    rows = [["float", str(results.samples), fixed(results.float_value, decimals), "", "", span, *[""] * 5]]
    for _, row in whole_network(results).iterrows():
        rows.append(
            [
                str(int(row["bits"])),
                str(int(row["samples"])),
                fixed(row["float_value"], decimals),
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
        "weight bits", "images", f"float {results.metric}", "quantized", f"degradation{unit}",
        f"{confidence(results)} interval", "sum of layers", "noise", "sum of layers' noise", "noise to sum",
        "noise predicted",
    ]  # fmt: skip
    notes = []
    table = whole_network(results)
    if (table["samples"] < results.samples).any():
        notes.append("Some bit-widths were run on fewer images: the float network's value is that of the same images.")
    if screened & set(table["bits"]):
        notes.append(f"{PREDICTED} before a sum: some of the layers are screened: predicted, not run.")
    if table["noise_predicted"].notna().any():
        notes.append(
            "Noise predicted is the screen's, with the interactions of all layers; "
            "beyond the linear regime it is rough."
        )
    below = f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""
    caption = "The whole network quantized, beside the sum of its single layers"
    return markup.table(Table(caption, tuple(headings), tuple(map(tuple, rows)))) + below


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
    return sentence + why + markup.table(Table("Operators that stay float", ("name", "operator", "source line"), rows))
