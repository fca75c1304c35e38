"""A table of schemes in words, on the terminal, as a picture and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as Lines
from rich.text import Text

from quantopsy.analysis.results import EVALUATION_IMAGES
from quantopsy.analysis.scheme_table import SchemeTable
from quantopsy.report import sheet
from quantopsy.report.chart import Axis, Chart, Group, Point, Section, Table
from quantopsy.report.palette import Tone, bit_tones
from quantopsy.report.sheet import Sheet
from quantopsy.report.terminal import bullets, print_part
from quantopsy.report.wording import Writer, count, duration, fixed, interval, interval_decimals, with_interval

_WIDE = 100
"""Columns from which the table on a terminal has all of its own."""

_CHANGES = {
    "granularity": "Weights per channel instead of per tensor, at {bits} bits,",
    "symmetry": "Asymmetric instead of symmetric weights per channel, at {bits} bits,",
    "activations": "Activations quantized besides {bits}-bit weights (symmetric per channel)",
}


def statements(table: SchemeTable) -> list[str]:
    """By bit-width: values beside float's, which schemes lose, and what granularity, symmetry and activations do."""
    write = _writer(table)
    sentences = []
    for bits in table.settings["bits"][::-1]:
        rows = table.schemes[(table.schemes["weight_bits"] == bits) | table.schemes["weight_bits"].isna()]
        sentences += [_value_sentence(table, rows, bits, write), _verdict_sentence(table, rows, bits, write)]
        mine = table.questions[table.questions["weight_bits"] == bits]
        sentences += [_change_sentence(row, len(table.questions), write) for _, row in mine.iterrows()]
    return sentences


def cautions(table: SchemeTable) -> list[str]:
    """What limits the table."""
    limits = [] if table.complete else ["The run was stopped before every scheme had every image."]
    if table.settings.get("calibration") == EVALUATION_IMAGES:
        limits.append("Ranges were calibrated on the evaluation images; give --calibration for an honest figure.")
    return limits


def _writer(table: SchemeTable) -> Writer:
    schemes = table.schemes
    decimals = interval_decimals(schemes["degradation_low"], schemes["degradation_high"], table.unit)
    return Writer(decimals, table.unit, table.level)


def _value_sentence(table: SchemeTable, rows: pd.DataFrame, bits: int, write: Writer) -> str:
    both = rows[rows["activation_bits"].notna()].sort_values("weight_bits", kind="stable")
    listed = ", ".join(f"{write.value(row['value'])} {row['scheme']}" for _, row in both.iterrows())
    span = write.between(table.float_low, table.float_high)
    return (
        f"{table.metric} is {write.value(table.float_value)} in float ({span}, {count(table.samples, 'image')}); "
        f"at {bits} bits {listed}."
    )


def _verdict_sentence(table: SchemeTable, rows: pd.DataFrame, bits: int, write: Writer) -> str:
    named = {verdict: rows.loc[rows["verdict"] == verdict, "scheme"].tolist() for verdict in ("hurts", "harmless")}
    sure = f"{write.confidence}, corrected for {count(len(table.schemes), 'scheme')}"
    parts = [
        f"{_are(len(schemes))} {told}: {'; '.join(schemes)}"
        for told, schemes in (
            (f"certain to lose {table.metric}", named["hurts"]),
            (f"harmless, losses above {write.amount(table.tolerance)} ruled out", named["harmless"]),
        )
        if schemes
    ]
    rest = len(rows) - sum(map(len, named.values()))
    parts += [f"{_are(rest)} undecided"] if rest else []
    return f"Of {count(len(rows), 'scheme')} at {bits} bits ({sure}) {'. '.join(parts)}."


def _are(number: int) -> str:
    return f"{number} {'is' if number == 1 else 'are'}"


def _change_sentence(row: pd.Series, questions: int, write: Writer) -> str:
    what = _CHANGES[row["question"]].format(bits=row["weight_bits"])
    change, low, high = row["change"], row["change_low"], row["change_high"]
    verb, less = ("saves", "less") if change < 0 else ("costs", "more")
    span = write.between(-high, -low) if change < 0 else write.between(low, high)
    if row["verdict"] in ("worse", "better"):
        return f"{what} {verb} {write.amount(abs(change))} ({span})."
    if row["verdict"] == "undecided" and (low > 0 or high < 0):
        return f"{what} {verb} {write.amount(abs(change))} ({span}): not certain among {count(questions, 'question')}."
    matters = "matters" if row["verdict"] == "unchanged" else "can be told"
    return f"{what} makes no difference that {matters}: {write.amount(abs(change))} {less} is lost ({span})."


def _bits(row: pd.Series) -> str:
    """``W8A8``; ``A8`` where weights stay float."""
    widths = (("W", row["weight_bits"]), ("A", row["activation_bits"]))
    return "".join(f"{letter}{width}" for letter, width in widths if not pd.isna(width))


def _headings(table: SchemeTable) -> tuple[str, ...]:
    level = _writer(table).confidence
    return "scheme", "bits", table.metric, "lost", level, "SQNR (dB)", "agreement (%)", "verdict"


def _rows(table: SchemeTable) -> Iterator[tuple[str, ...]]:
    """Text of every row, float first."""
    write = _writer(table)
    span = interval(table.float_low, table.float_high, write.decimals)
    yield "float", "", write.number(table.float_value), "", span, "", "", ""
    for _, row in table.schemes.iterrows():
        yield (
            row["scheme"],
            _bits(row),
            write.number(row["value"]),
            write.number(row["degradation"]),
            interval(row["degradation_low"], row["degradation_high"], write.decimals),
            fixed(row["sqnr_db"], 1),
            fixed(100 * row["agreement"], 1),
            str(row["verdict"]),
        )


def print_schemes(table: SchemeTable, console: Console) -> None:
    """Print words and table; SQNR and agreement where there is room for them."""
    shown = [index for index in range(8) if index not in (5, 6) or console.width >= _WIDE]
    lines = Lines(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(_headings(table)):
        if index in shown:
            lines.add_column(heading, justify="left" if index in (0, 1, 7) else "right", no_wrap=index > 0)
    for row in _rows(table):
        *texts, verdict = (row[index] for index in shown)
        lines.add_row(*texts, Text(verdict, style={"hurts": "bold red", "undecided": "dim"}.get(verdict, "")))
    print_part(console, bullets(statements(table), cautions(table)))
    print_part(console, lines)
    console.print(Text(f"{count(table.samples, 'image')}, {duration(table.seconds)}", style="dim"))


def chart(table: SchemeTable) -> Chart:
    """The metric under every scheme with what its paired interval leaves of float's (practical approach, Figure 8)."""
    write = _writer(table)
    order = list(dict.fromkeys(table.schemes["scheme"]))
    names = ("float", *(scheme.replace(", ", ",\n") for scheme in order))
    groups = [Group("float", (Point(0.0, table.float_value, table.float_low, table.float_high, "float"),), Tone("ink"))]
    tones = bit_tones(table.schemes["weight_bits"].dropna().astype(int).unique())
    for bits, rows in table.schemes.groupby("weight_bits", dropna=False, sort=False):
        points = tuple(_point(row, 1 + order.index(row["scheme"]), table, write) for _, row in rows.iterrows())
        known = not pd.isna(bits)
        label = f"{bits}-bit weights" if known else "float weights"
        groups.append(Group(label, points, tones[int(bits)] if known else Tone("muted")))
    return Chart(
        f"{table.metric} under each scheme",
        Axis("", names=names),
        Axis(f"{table.metric}{f' ({table.unit})' if table.unit else ''}"),
        tuple(groups),
        note="Intervals are of the difference to float over the same images; float's own is of its value.",
        wide=True,
    )


def _point(row: pd.Series, place: int, table: SchemeTable, write: Writer) -> Point:
    # Where lower is better a loss is a greater value.
    sign = 1.0 if (table.float_value - row["value"]) * row["degradation"] >= 0 else -1.0
    ends = sorted(table.float_value - sign * row[f"degradation_{end}"] for end in ("low", "high"))
    lost = with_interval(row["degradation"], row["degradation_low"], row["degradation_high"], write.decimals)
    told = f"{row['scheme']}, {_bits(row)}\n{table.metric} {write.value(row['value'])}, lost {lost}"
    return Point(float(place), row["value"], ends[0], ends[1], told)


def page(table: SchemeTable) -> Sheet:
    """What stands on the page."""
    lead, *rest = statements(table)
    return Sheet(
        heading=f"{table.model}: schemes",
        facts=(f"data {table.data}", count(table.samples, "image"), f"metric {table.metric}", duration(table.seconds)),
        lead=lead,
        statements=tuple(rest),
        cautions=tuple(cautions(table)),
        sections=(
            Section(
                "schemes",
                "The whole network under each scheme",
                "Granularity and symmetry are the weights'; activations are asymmetric per tensor. Agreement is of "
                "decisions with the float network's.",
                charts=(chart(table),),
                table=Table("The whole network under each scheme", _headings(table), tuple(_rows(table))),
            ),
        ),
    )


def write(table: SchemeTable, path: str | Path) -> Path:
    """Write the page of ``table`` to ``path``."""
    return sheet.write(page(table), path)
