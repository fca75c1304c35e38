"""The parts of the page that are charts with a few words: what of the results goes into each."""

from __future__ import annotations

from quantopsy.analysis.results import Results
from quantopsy.report.additivity import additivity_section
from quantopsy.report.allocated import allocation_section
from quantopsy.report.chart import Axis, Chart, Group, Point, Section
from quantopsy.report.findings import findings_section
from quantopsy.report.palette import bit_tones
from quantopsy.report.repaired import repair_section
from quantopsy.report.tables import run_and_screened
from quantopsy.report.wording import BEYOND_LINEAR, count, degradation_decimals, fixed, significant

CHECK_FROM = 3
"""Cells both run and screened from which the page draws the one against the other."""


def sections(results: Results) -> list[Section]:
    """Those that ``results`` has something for, in the order of the page."""
    made = (
        findings_section(results),
        repair_section(results),
        allocation_section(results),
        check_section(results),
        additivity_section(results),
    )
    return [section for section in made if section is not None]


def check_section(results: Results) -> Section | None:
    """Predicted against measured noise; None where there are too few points to see anything."""
    chart = check_chart(results)
    if sum(len(group.points) for group in chart.groups) < CHECK_FROM:
        return None
    return Section("check", "Predicted against exact", charts=(chart,))


def check_chart(results: Results) -> Chart:
    """Noise as screened against noise as measured, a point per cell that has both."""
    both, decimals = run_and_screened(results), degradation_decimals(results)
    groups = tuple(
        Group(
            f"{bits} bits",
            tuple(
                Point(
                    cell.noise,
                    cell.screened_noise,
                    title="\n".join(
                        [
                            cell.name,
                            f"{bits} bits, {count(int(cell.samples), 'image')}",
                            f"noise {significant(cell.noise)} measured, {significant(cell.screened_noise)} predicted",
                            f"degradation {fixed(cell.degradation, decimals)} measured, "
                            f"{fixed(cell.screened_degradation, decimals)} predicted",
                            *([BEYOND_LINEAR] if cell.beyond else []),
                        ]
                    ),
                    hollow=cell.beyond,
                )
                for cell in both[both["bits"] == bits].itertuples(index=False)
            ),
            tone,
        )
        for bits, tone in bit_tones(results.bits).items()
        if (both["bits"] == bits).any()
    )
    return Chart(
        "Noise, predicted against exact",
        Axis("noise as run", logarithmic=True),
        Axis("noise as screened", logarithmic=True),
        groups,
        identity="equal",
        hollow="beyond the linear regime",
        note="Every cell that was both screened and run. Beyond the linear regime the prediction is rough.",
    )
