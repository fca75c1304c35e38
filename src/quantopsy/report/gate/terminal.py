"""A gate on a terminal: a row for each check, then what each found, and the grids that changed most."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from quantopsy.analysis.gate.judge import Judged
from quantopsy.report.gate.words import cautions, found, heading, limit, outcome, sentence, site
from quantopsy.report.terminal import bullets, print_part
from quantopsy.report.wording import elide, significant

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim"}
_RANGES = 5
"""Grids in the table."""


def print_gate(judged: Judged, console: Console) -> None:
    """Print what was checked, what came out, and why."""
    print_part(console, check_table(judged), heading(judged))
    told = [f"{check.name}: {sentence(check, judged)}." for check in judged.checks if check.finding != "not judged"]
    print_part(console, bullets(told, cautions(judged)))
    if judged.ranges and judged.ranges[0].factor > 1.0:
        print_part(console, range_table(judged, console.width), "Ranges that changed most")
    print_part(console, Text(outcome(judged), style=_STYLES["passed" if judged.passed else "failed"]))


def check_table(judged: Judged) -> RenderableType:
    """A row for each check."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    for check in judged.checks:
        table.add_row(
            check.name,
            Text(check.status + ("?" if check.finding == "undecided" else ""), style=_STYLES[check.status]),
            found(check, judged),
            limit(check, judged),
        )
    if any(check.finding == "undecided" for check in judged.checks):
        return Group(table, Text("? undecided: the limit lies inside the interval", style="dim"))
    return table


def range_table(judged: Judged, width: int) -> Table:
    """The grids whose range changed most."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("site", no_wrap=True)
    for title in ("low", "high", "factor"):
        table.add_column(title, justify="right", no_wrap=True)
    changed = [change for change in judged.ranges or () if change.factor > 1.0][:_RANGES]
    for change in changed:
        ends = (f"{significant(a)} → {significant(b)}" for a, b in zip(change.before, change.after, strict=True))
        table.add_row(elide(site(change), max(12, width - 56)), *ends, significant(change.factor))
    return table
