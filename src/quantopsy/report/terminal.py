"""The result on a terminal: verdict, worst layers, a heat strip, the whole network beside its sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from textwrap import wrap

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from quantopsy.analysis.additivity import Additivity
from quantopsy.analysis.results import Results
from quantopsy.core.recipe import Repair
from quantopsy.report.additivity import additivity_statements
from quantopsy.report.allocated import allocation_statements, bits_table, front_table, rivals_table
from quantopsy.report.chart import Table as Plain
from quantopsy.report.findings import findings_sentences
from quantopsy.report.fitted import Column, fitted
from quantopsy.report.grid import degradation_limit, grid
from quantopsy.report.repaired import repair_statements, steps_table
from quantopsy.report.tables import headline_bits, ranked, whole_network, with_marks
from quantopsy.report.verdict import cautions, statements
from quantopsy.report.wording import (
    BEYOND_LINEAR,
    ELLIPSIS,
    MINUS,
    MISSING,
    PREDICTED,
    cell_interval,
    cell_verdict,
    confidence,
    count,
    degradation_decimals,
    degradation_unit,
    duration,
    elide,
    fixed,
    interval,
    percent,
    predicted,
    significant,
)

WHY = "Why"
_WORST = 10
"""Layers in the table; the page has them all."""

_WIDE = 110
"""Columns from which a source line has a column of its own; below, it stands under the name."""

_STEP, _OUTCOME = 32, 18
"""Characters of a line for what a repair tried, and for a choice of bit-widths, where columns are few."""

_ROW_LABEL = 8
_ROUGH = "?"
_WORSE, _BETTER = "red", "blue"

SHADES = ((0.1, "·"), (0.4, "░"), (0.7, "▒"), (1.0, "▓"), (math.inf, "█"))
"""Share of the colour limit below which a cell takes the character."""

BLOCKS = "▁▂▃▄▅▆▇█"
"""Heights of a sparkline."""

_ASCII = str.maketrans(
    {MINUS: "-", MISSING: "-", ELLIPSIS: "~", "·": ".", "•": "*", "░": ":", "▒": "+", "▓": "%", "█": "#", "→": ">"}
    | dict(zip(BLOCKS[:-1], "_.,-=+*", strict=True))
)


def print_results(results: Results, console: Console, worst: int = _WORST) -> None:
    """Print what a person wants to know before opening the page."""
    bits = headline_bits(results)
    parts: tuple[tuple[str, RenderableType], ...] = (
        ("", verdict_lines(results)),
        *(((WHY, bullets(findings_sentences(results), [])),) if results.diagnosed else ()),
        (f"Worst layers at {bits} bits", worst_table(results, bits, console.width, worst)),
        (f"Degradation of single layers{degradation_unit(results)}", heat_strip(results, console.width)),
        *(
            ()
            if results.whole.empty
            else (("Whole network, beside the sum of its single layers", whole_table(results, console.width)),)
        ),
    )
    for heading, part in parts:
        print_part(console, part, heading)
    print_part(console, Text(_cost(results), style="dim"))


def print_part(console: Console, part: RenderableType, heading: str = "") -> None:
    """One part of what a command says, an empty line above it, under its heading where it has one."""
    console.print()
    if heading:
        console.print(Encodable(Text(heading, style="bold")))
    console.print(Encodable(part))


def print_findings(results: Results, console: Console) -> None:
    """Print why layers hurt, and nothing that the analysis has said before."""
    print_part(console, bullets(findings_sentences(results), []), WHY)


def print_additivity(results: Results, console: Console) -> None:
    """Print whether single layers add up, and every subset that was run."""
    found = results.additivity
    if found is None:
        console.print("No subset of layers has been run on any image.")
        return
    print_part(console, bullets(additivity_statements(results), []))
    heading = f"Subsets of layers at {found.low_bits} bits, the others at {found.high_bits}"
    print_part(console, additivity_table(results, found, console.width), heading)


def additivity_table(results: Results, found: Additivity, width: int) -> Group:
    """A row per subset: sums of single layers beside what was measured, red where they are wrong."""
    decimals = degradation_decimals(results)
    rows = found.table.to_dict("records")

    def judged(text: str, holds: bool) -> Text:
        return Text(text, style="" if holds else "bold red")

    columns = (
        Column("low", [str(row["low_layers"]) for row in rows]),
        Column("sum", [predicted(significant(row["noise_expected"]), row["screened"] > 0) for row in rows], spare=2),
        Column("noise", [significant(row["noise_measured"]) for row in rows], spare=1),
        Column(
            "ratio",
            [judged(fixed(row["noise_measured"] / row["noise_expected"], 2), row["noise_holds"]) for row in rows],
        ),
        Column("screen", [predicted(significant(row["noise_predicted"]), True) for row in rows], spare=3),
        Column("sum", [predicted(fixed(row["degradation_expected"], decimals), row["screened"] > 0) for row in rows]),
        Column(
            "lost", [judged(fixed(row["degradation_measured"], decimals), row["degradation_holds"]) for row in rows]
        ),
        Column(
            confidence(results),
            [interval(row["degradation_measured_low"], row["degradation_measured_high"], decimals) for row in rows],
            right=False,
            style="dim",
        ),
    )
    note = "low: layers at the low bit-width; sum: of single layers; screen: with cross terms; red: the sum is wrong"
    return Group(fitted(columns, width), Text(note, style="dim"))


def verdict_lines(results: Results) -> Table:
    """The verdict as a list."""
    return bullets(statements(results), cautions(results))


def print_repair(results: Results, console: Console) -> None:
    """Print what the repair came to, and every step that was tried."""
    done = results.repaired
    if done is None:
        console.print("No repair has been tried.")
        return
    print_part(console, bullets(repair_statements(results), []))
    if done.steps:
        heading = f"What was tried, over the images that decide{degradation_unit(results)}"
        print_part(console, tried_table(results, done, console.width), heading)


def tried_table(results: Results, done: Repair, width: int) -> Table:
    """A row per step of a repair, fitted to ``width`` columns; those that were dropped dim."""
    _, fate, where, change, span, noise, after = zip(*steps_table(results, done).rows, strict=True)
    styles = ["" if step.kept else "dim" for step in done.steps]
    lines = [
        tuple(Text(line, style=style) for line in _lines(step.words, step.layers, _STEP if width < _WIDE else width))
        for step, style in zip(done.steps, styles, strict=True)
    ]

    def styled(texts: Iterable[str]) -> list[Text]:
        return [Text(text, style=style) for text, style in zip(texts, styles, strict=True)]

    columns = (
        Column("step", lines, right=False, least=_STEP),
        Column("", styled(fate), right=False),
        Column("at run time", styled(where), right=False, spare=2),
        Column("change", styled(change)),
        Column(confidence(results), styled(span), right=False, spare=1),
        Column("noise", styled(noise)),
        Column("loss after", styled(after)),
    )
    return fitted(columns, width)


def _lines(words: str, layers: tuple[str, ...], width: int) -> list[str]:
    """``words`` in lines of ``width`` characters; a long name that they begin with has one of its own, to be cut."""
    if len(words) <= width:
        return [words]
    name = next((f"{x}:" for x in layers if words.startswith(f"{x}: ") and len(x) > width // 2), "")
    return [*([name] if name else []), *wrap(words[len(name) :], width)]


def print_allocation(results: Results, console: Console) -> None:
    """Print what bit-widths were chosen, what they are worth, and the front."""
    done = results.allocated
    if done is None:
        console.print("No bit-widths have been allocated.")
        return
    print_part(console, bullets(allocation_statements(results), []))
    for table in (bits_table(done), rivals_table(results, done), front_table(results, done)):
        print_part(console, choices_table(table, console.width), table.caption)


def choices_table(table: Plain, width: int) -> Table:
    """A table of an allocation fitted to ``width`` columns: of what it is of, in front, long names are cut."""
    (heading, *headings), (words, *numbers) = table.headings, zip(*table.rows, strict=True)
    lines = [tuple(wrap(text, _OUTCOME if width < _WIDE else width)) if " " in text else text for text in words]
    columns = [
        Column(title.removesuffix(" interval"), cells, right=False, style="dim", spare=1)
        if title.endswith(" interval")
        else Column(title, cells)
        for title, cells in zip(headings, numbers, strict=True)
    ]
    return fitted([Column(heading, lines, right=False, least=_OUTCOME), *columns], width)


def bullets(found: Iterable[str], limits: Iterable[str]) -> Table:
    """Sentences as a list, what stands between backticks in bold, what limits them in yellow."""
    lines = Table.grid(padding=(0, 1))
    for sentence in found:
        lines.add_row("•", _emphasised(sentence, ""))
    for sentence in limits:
        lines.add_row(Text("!", style="yellow"), _emphasised(sentence, "yellow"))
    return lines


def worst_table(results: Results, bits: int, width: int, worst: int = _WORST) -> Group:
    """The ``worst`` layers at ``bits``, fitted to ``width`` columns; guilty ones in red.

    Below it stands what the marks mean, where there are any.
    """
    decimals, wide = degradation_decimals(results), width >= _WIDE
    cells = ranked(results, bits).head(worst)
    rows = cells.to_dict("records")
    sources = [row["source"] if isinstance(row["source"], str) else "" for row in rows]
    names = [Text(row["name"], style="bold red" if row["guilty"] else "") for row in rows]
    operators = [str(row["op"]) for row in rows]
    below = [Text(f"{op} {source}".strip(), style="dim") for op, source in zip(operators, sources, strict=True)]
    spans = [cell_interval(row, decimals) for row in rows]
    verdicts = [cell_verdict(row) for row in rows]
    columns = (
        Column("no.", [str(row["layer"]) for row in rows], style="dim"),
        Column("layer", names if wide else list(zip(names, below, strict=True)), right=False, least=12),
        *(
            (
                Column("op", operators, right=False, least=6),
                Column("source", sources, right=False, style="dim", least=12),
            )
            if wide
            else ()
        ),
        Column(
            "noise",
            [
                predicted(significant(row["noise"], 2), row["screened"]) + (_ROUGH if row["rough"] else "")
                for row in rows
            ],
        ),
        Column("share", [percent(row["noise_share"]) for row in rows], spare=2),
        Column(
            f"lost{degradation_unit(results)}" if wide else "lost",
            [
                Text(
                    predicted(fixed(row["degradation"], decimals), row["screened"]),
                    style="bold red" if row["guilty"] else "bold blue" if row["improves"] else "",
                )
                for row in rows
            ],
        ),
        Column(
            confidence(results), spans if wide else list(zip(spans, verdicts, strict=True)), right=False, style="dim"
        ),
        *((Column("verdict", verdicts, right=False),) if wide else ()),
    )
    notes = ["no.: place in the network; layers that hurt come first, then by noise"]
    if cells["screened"].any():
        notes.append(f"{PREDICTED} screened: predicted, not run; in brackets, where a measurement would fall")
    if cells["rough"].any():
        notes.append(f"{_ROUGH} {BEYOND_LINEAR}")
    return Group(fitted(columns, width), *[Text(note, style="dim") for note in notes])


def heat_strip(results: Results, width: int) -> Group:
    """A character per layer, a row per bit-width, in as many bands as ``width`` asks for.

    The character grows with the degradation, so that it reads without colour; colour says which way.
    """
    cells, limit = grid(results), degradation_limit(results)
    room = max(10, (width - _ROW_LABEL) // 10 * 10)
    strip = Text(no_wrap=True)
    for start in range(0, len(cells.layers), room):
        columns = range(start, min(start + room, len(cells.layers)))
        strip.append(" " * _ROW_LABEL + ruler(columns) + "\n", style="dim")
        for row, bits in enumerate(cells.bits):
            strip.append(f"{bits:>2} bits ".ljust(_ROW_LABEL))
            for column in columns:
                strip.append(*shade(cells.degradation[row, column], limit))
            strip.append("\n")
    steps = [f"{mark} from {below * limit:.2g}" for (below, _), (_, mark) in pairwise(SHADES)]
    least = f"{SHADES[0][0] * limit:.2g}"
    legend = ", ".join([f"{SHADES[0][1]} less", *steps, f"- improves by {least} or more"])
    lines = [legend]
    if screened := int(cells.screened.sum()):
        of = f"{screened} of {len(results.cells)} cells are" if screened < len(results.cells) else "all cells are"
        lines.append(f"{of} screened: predicted, not run")
    return Group(strip, *[Text(line, style="dim") for line in lines])


def shade(value: float, limit: float) -> tuple[str, str]:
    """The character and style of one cell; a blank where nothing was measured."""
    if not math.isfinite(value):
        return " ", ""
    mark = next(mark for below, mark in SHADES if abs(value) < below * limit)
    if mark == SHADES[0][1]:
        return mark, "dim"
    return (mark, _WORSE) if value > 0 else ("-", f"bold {_BETTER}")


def whole_table(results: Results, width: int) -> Group:
    """The whole network by bit-width beside the sum of its single layers, marked where some are screened."""
    decimals = degradation_decimals(results)
    cells, whole = with_marks(results.cells), whole_network(results)
    screened = set(cells.loc[cells["screened"], "bits"])
    rows = whole.to_dict("records")

    def number(value: float) -> str:
        return fixed(value, decimals)

    def total(name: str, text: Callable[[float], str]) -> list[str]:
        return ["", *(predicted(text(row[name]), row["bits"] in screened) for row in rows)]

    columns = (
        Column("bits", ["float", *(str(int(row["bits"])) for row in rows)]),
        Column("images", [str(results.samples), *(str(int(row["samples"])) for row in rows)]),
        Column(
            elide(results.metric, 15),
            [
                number(results.float_value),
                *(f"{number(row['float_value'])} → {number(row['value'])}" for row in rows),
            ],
            spare=1,
        ),
        Column(
            "lost",
            [
                "",
                *(Text(number(row["degradation"]), "bold red" if row["degradation_low"] > 0 else "") for row in rows),
            ],
        ),
        Column(
            confidence(results),
            [
                interval(results.float_low, results.float_high, decimals),
                *(interval(row["degradation_low"], row["degradation_high"], decimals) for row in rows),
            ],
            right=False,
            style="dim",
        ),
        *([Column("sum", total("degradation_sum", number), spare=2)] if whole["degradation_sum"].notna().any() else []),
        Column("noise", ["", *(significant(row["noise"]) for row in rows)], spare=3),
        Column("sum", total("noise_sum", significant), spare=4),
    )
    notes = []
    if (whole["samples"] < results.samples).any():
        notes.append(f"{results.metric}: float and quantized, on the same images")
    if screened & set(whole["bits"]):
        notes.append(f"{PREDICTED} some of the layers summed are screened: predicted, not run")
    return Group(fitted(columns, width), *[Text(note, style="dim") for note in notes])


class Encodable:
    """What is inside, with substitutes for the characters that the console's encoding lacks."""

    def __init__(self, part: RenderableType) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        encoding = options.encoding
        for segment in console.render(self._part, options):
            yield Segment(_encodable(segment.text, encoding), segment.style, segment.control)


def _encodable(text: str, encoding: str) -> str:
    """``text`` in characters of ``encoding``, one for one, so that columns stay aligned."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _emphasised(sentence: str, style: str) -> Text:
    text = Text(style=style)
    for index, part in enumerate(sentence.split("`")):
        text.append(part, style="bold" if index % 2 else "")
    return text


def ruler(columns: Iterable[int]) -> str:
    """Every tenth column's number at its place."""
    return "".join(str(column).ljust(10) for column in columns if column % 10 == 0).rstrip()


def _cost(results: Results) -> str:
    spent = f"{count(results.samples, 'image')}, {duration(results.seconds)}"
    return f"{spent}, {significant(results.passes)} passes" if results.passes else spent
