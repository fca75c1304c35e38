"""One version of a network against another: compare and gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantopsy.cli.arguments import Json, StudyMetric, parse_bits
from quantopsy.cli.terminal import new_console, print_json


def compare(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Folders of analyses")],
    bits: Annotated[
        str | None, typer.Option(help="Bit-widths: 8, 4,8 or 3-8  (default: 8; of a single study all)")
    ] = None,
    level: Annotated[float | None, typer.Option(help="Confidence level  (default: the first study's)")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Change that does not matter  (default: the first study's)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page: FILE.html")] = None,
    metric: StudyMetric = None,
    as_json: Json = False,
) -> None:
    """Which layers changed from the first study to the others, or from its finest bits to fewer. Runs nothing."""
    from quantopsy.analysis.document import comparison_document
    from quantopsy.api import compare as compared
    from quantopsy.report.compared.terminal import print_compared

    found = compared(
        *studies,
        bits=None if bits is None else parse_bits(bits),
        metric=metric,
        level=level,
        tolerance=tolerance,
    )
    if out is not None:
        found.report(out)
    if as_json:
        print_json(comparison_document(found.compared))
        return
    console = new_console()
    print_compared(found.compared, console)
    if out is not None:
        console.print(f"\nReport: {out}", highlight=False)


def gate(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Folder of an analysis, or a recipe.json")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The same, of what is to replace it")],
    rules: Annotated[
        Path | None, typer.Option(help="TOML: max_drop, max_changed_layers, ...  (default: the study's tolerance)")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Of weights  (default: the rules', else 8)")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML, a test case for each rule: FILE.xml")] = None,
    metric: StudyMetric = None,
    as_json: Json = False,
) -> None:
    """Check that NEW may replace OLD, rule by rule: exit code 0 where all hold, 1 where one does not. Runs nothing."""
    from quantopsy.api import gate as run
    from quantopsy.report.gate.terminal import print_gate

    changed = {} if bits is None else {"bits": bits}
    found = run(old, new, rules, metric=metric, **changed)
    if junit is not None:
        found.junit(junit)
    if as_json:
        print_json(found.document())
    else:
        print_gate(found.judged, new_console())
    if not found.passed:
        raise typer.Exit(1)
