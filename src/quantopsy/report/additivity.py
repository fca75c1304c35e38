"""Whether single layers add up, in words, charts and a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quantopsy.analysis.additivity import MARGIN, Additivity, Relation
from quantopsy.analysis.results import Results
from quantopsy.analysis.significance import Interval
from quantopsy.report.chart import Axis, Chart, Group, Line, Point, Section, Table
from quantopsy.report.palette import Tone
from quantopsy.report.wording import (
    confidence,
    count,
    degradation_decimals,
    degradation_unit,
    fixed,
    interval,
    percent,
    predicted,
    significant,
    with_interval,
)

_UNCLEAR = 0.5
"""Share of a sum of degradations that the images must resolve for it to be judged."""

_TELLING = 0.05
"""Share of the noise from which a pair of layers is worth naming."""


def additivity_statements(results: Results) -> list[str]:
    """What the subsets showed: noise, what the screen makes of it, degradation."""
    found = results.additivity
    if found is None:
        return []
    return [
        _noise_sentence(results, found),
        *_screen_sentences(results, found),
        *_degradation_sentences(results, found),
        *_cautions(found),
    ]


def additivity_headlines(results: Results) -> list[str]:
    """The two sentences of the verdict: noise and degradation."""
    found = results.additivity
    if found is None:
        return []
    return [_noise_sentence(results, found), *list(_degradation_sentences(results, found))[:1]]


def additivity_section(results: Results) -> Section | None:
    """The part of the page; None where no subsets were run."""
    found = results.additivity
    if found is None:
        return None
    return Section(
        "additivity",
        "Do single layers add up?",
        note=(
            f"Every point is the whole network quantized, a random subset of its layers with weights at "
            f"{found.low_bits} bits and all others at {found.high_bits}, run on {count(found.samples, 'image')}. "
            "Expected is the sum over all layers of what each does when quantized alone."
        ),
        statements=tuple(additivity_statements(results)),
        charts=(noise_chart(results, found), *degradation_charts(results, found)),
        table=subsets_table(results, found),
    )


def noise_chart(results: Results, found: Additivity) -> Chart:
    """Measured and screened noise against the sum of single layers."""
    ends = (float(found.table["noise_expected"].min()), float(found.table["noise_expected"].max()))
    ratio = found.noise_ratio.value
    titles = _titles(results, found)
    rows = found.table.to_dict("records")
    measured = tuple(
        Point(
            row["noise_expected"],
            row["noise_measured"],
            row["noise_measured"] - 1.96 * row["noise_measured_stderr"],
            row["noise_measured"] + 1.96 * row["noise_measured_stderr"],
            title,
        )
        for row, title in zip(rows, titles, strict=True)
    )
    screened = _screened(rows, titles, "noise")
    lines = []
    if math.isfinite(ratio):
        corners = tuple((x, ratio * x) for x in ends)
        lines.append(Line(f"{significant(ratio)} times the sum", corners, Tone("worse"), dashed=True))
    if found.below_signal < len(found.table):
        corners = ((found.signal, ends[0] / 1e6), (found.signal, ends[1] * 1e6))
        lines.append(Line("the signal", corners, Tone("muted"), dashed=True))
    return Chart(
        "Noise: sum of single layers against measured",
        Axis("sum of single layers' noise", logarithmic=True),
        Axis("noise of the network", logarithmic=True),
        (
            Group("screened, with cross terms", screened, Tone("noise")),
            Group("measured", measured, Tone("accent")),
        ),
        tuple(lines),
        identity="equal",
        note="On the line noises add up; above it layers reinforce each other. Sums beyond the signal mean nothing.",
    )


def _screened(rows: Iterable[Mapping[str, Any]], titles: Iterable[str], figure: str) -> tuple[Point, ...]:
    """What the screen says of every subset against the sum of single layers: of ``noise`` or ``degradation``."""
    return tuple(
        Point(row[f"{figure}_expected"], row[f"{figure}_predicted"], title=title, hollow=True)
        for row, title in zip(rows, titles, strict=True)
    )


def degradation_charts(results: Results, found: Additivity) -> Iterator[Chart]:
    """Measured degradation against the sum of single layers', as in Figure 2; nothing where no sum is known."""
    relation, unit = found.degradation, degradation_unit(results)
    if relation is None:
        return
    rows, titles = found.table.to_dict("records"), _titles(results, found)
    measured = tuple(
        Point(
            row["degradation_expected"],
            row["degradation_measured"],
            row["degradation_measured_low"],
            row["degradation_measured_high"],
            title,
        )
        for row, title in zip(rows, titles, strict=True)
    )
    screened = _screened(rows, titles, "degradation")
    lines = []
    if relation.fit is not None:
        slope, intercept = relation.fit.slope.value, relation.fit.intercept.value
        across = (float(found.table["degradation_expected"].min()), min(relation.largest, relation.most))
        corners = tuple((x, intercept + slope * x) for x in across)
        lines.append(Line(f"least squares, slope {fixed(slope, 2)}", corners, Tone("worse"), dashed=True))
    yield Chart(
        "Degradation: sum of single layers against measured",
        Axis(f"sum of single layers' degradation{unit}"),
        Axis(f"degradation of the network{unit}"),
        (
            Group("screened, with cross terms", screened, Tone("noise")),
            Group("measured", measured, Tone("accent")),
        ),
        tuple(lines),
        identity="equal",
        note=(
            f"Bars are {confidence(results)} intervals of what was measured. Sums are less certain: the errors of "
            "all layers add up in them."
        ),
    )


def subsets_table(results: Results, found: Additivity) -> Table:
    """A row per subset."""
    unit, decimals = degradation_unit(results), degradation_decimals(results)
    rows = []
    for row in found.table.to_dict("records"):
        rows.append(
            (
                str(row["low_layers"]),
                predicted(significant(row["noise_expected"]), row["screened"] > 0),
                significant(row["noise_measured"]),
                significant(row["noise_measured"] / row["noise_expected"]),
                predicted(significant(row["noise_predicted"]), True),
                predicted(_bracketed(row, "expected", decimals), row["screened"] > 0),
                _bracketed(row, "measured", decimals),
                predicted(fixed(row["degradation_predicted"], decimals), True),
            )
        )
    return Table(
        "Subsets of layers: expected and measured",
        (
            f"layers at {found.low_bits} bits",
            "sum of noises",
            "noise",
            "noise to sum",
            "noise screened",
            f"sum of degradations{unit}",
            f"degradation{unit}",
            "degradation screened",
        ),
        tuple(rows),
    )


def _bracketed(row: Any, what: str, decimals: int) -> str:
    name = f"degradation_{what}"
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], decimals)


def _titles(results: Results, found: Additivity) -> list[str]:
    decimals = degradation_decimals(results)
    return [
        "\n".join(
            [
                f"{count(row['low_layers'], 'layer')} at {found.low_bits} bits",
                f"noise {significant(row['noise_measured'])} measured, {significant(row['noise_expected'])} summed, "
                f"{significant(row['noise_predicted'])} screened",
                f"degradation {_bracketed(row, 'measured', decimals)} measured",
                f"{_bracketed(row, 'expected', decimals)} summed",
            ]
        )
        for row in found.table.to_dict("records")
    ]


def _spanned(results: Results, value: Interval, digits: int = 3) -> str:
    """``1.10 (95 % interval 1.03 to 1.18)``."""
    low, high = significant(value.low, digits), significant(value.high, digits)
    return f"{significant(value.value, digits)} ({confidence(results)} interval {low} to {high})"


def _off(error: float) -> str:
    """An error given as a factor less 1: ``14 %``, ``a factor 2.3``."""
    return percent(error) if error < 1 else f"a factor {significant(1 + error, 2)}"


def _noise_sentence(results: Results, found: Additivity) -> str:
    ratio, where = found.noise_ratio, f"random layers at {found.low_bits} bits and the others at {found.high_bits}"
    if not found.below_signal:
        return (
            f"Sums of noise say nothing with {where}: even the least of them exceeds the signal, where noise "
            "saturates. Give a higher --low."
        )
    shown = found.table[found.table["below_signal"]]
    each = shown["noise_measured"] / shown["noise_expected"]
    known = (
        f"with {where}, noise is {_spanned(results, ratio)} times the sum of single layers "
        f"({significant(each.min())} to {significant(each.max())} in single subsets)"
    )
    if found.below_signal < len(found.table):
        known += f", over the {found.below_signal} of {count(len(found.table), 'subset')} whose sum is below the signal"
    if found.bias_shift:
        return f"Bias shift: sums under-estimate noise by a factor {significant(ratio.value, 2)}: {known}."
    if ratio.high < 1.0 / (1.0 + MARGIN):
        factor = significant(1.0 / ratio.value, 2)
        return f"Layers weaken each other: sums over-estimate noise by a factor {factor}: {known}."
    if ratio.low >= 1.0 / (1.0 + MARGIN) and ratio.high <= 1.0 + MARGIN:
        return f"Noises add up: {known}."
    return f"Noises add up only roughly: {known}."


def _screen_sentences(results: Results, found: Additivity) -> Iterator[str]:
    if math.isfinite(found.screen_error):
        total, screened = found.degradation_errors
        unit = f" {results.unit}" if results.unit else ""
        sentence = (
            f"The screen with its cross terms is off by {_off(found.screen_error)} of the measured noise in the "
            f"median, the sum by {_off(found.sum_error)}"
        )
        if math.isfinite(total) and math.isfinite(screened):
            decimals = degradation_decimals(results)
            sentence += (
                f"; of the degradation by {fixed(screened, decimals)}{unit} on average, the sum by "
                f"{fixed(total, decimals)}"
            )
        yield sentence + "."
    seen = found.interaction
    if seen is None:
        return
    how = "reinforce" if seen.factor.low > 1 else "weaken" if seen.factor.high < 1 else None
    if how is None:
        known = f"{_spanned(results, seen.factor)}"
        sentence = f"With all layers at {found.low_bits} bits the screen sees no certain interaction: a factor {known}"
    else:
        sentence = (
            f"With all layers at {found.low_bits} bits the screen sees them {how} each other: their noise together is "
            f"{_spanned(results, seen.factor)} times that of each on its own"
        )
    if seen.first and seen.share >= _TELLING:
        sentence += f"; the strongest pair is `{seen.first}` with `{seen.second}`, {percent(seen.share)} of all noise"
    yield sentence + "."


def _degradation_sentences(results: Results, found: Additivity) -> Iterator[str]:
    relation, decimals = found.degradation, degradation_decimals(results)
    unit = f" {results.unit}" if results.unit else ""

    def amount(value: float) -> str:
        return f"{fixed(value, decimals)}{unit}"

    if relation is None:
        yield "Sums of degradation are not known: not all single layers were run, and their loss cannot be predicted."
        return
    images = count(found.samples, "image")
    told = f"within what {images} can tell, {amount(relation.reach)} either way"
    table = found.table
    wrong = table[~table["degradation_holds"] & table["degradation_expected"].notna()]
    unclear = relation.reach > max(results.tolerance, _UNCLEAR * abs(relation.limit))
    if wrong.empty and unclear:
        yield (
            f"Whether degradations add up cannot be told from {images}: the errors of single layers add up too, and "
            f"at the largest sum, {amount(relation.limit)}, what is measured beyond it is known only within "
            f"{amount(relation.reach)} either way. More images narrow it."
        )
    elif wrong.empty:
        yield f"Sums of degradation can be trusted up to {amount(relation.limit)}, the largest tried ({told})."
    else:
        first = wrong.loc[wrong["degradation_expected"].idxmin()]
        way = "under" if first["degradation_measured"] > first["degradation_expected"] else "over"
        seen = f"{amount(first['degradation_expected'])} expected, {amount(first['degradation_measured'])} measured"
        if not relation.limit > results.tolerance:
            yield f"Sums of degradation cannot be trusted: even small ones {way}-estimate, {seen}."
        elif unclear:
            yield (
                f"Sums of degradation {way}-estimate beyond {amount(relation.limit)}: {seen}; up to there {images} can "
                f"only tell within {amount(relation.reach)} either way."
            )
        else:
            yield (
                f"Sums of degradation can be trusted up to about {amount(relation.limit)} ({told}); beyond, they "
                f"{way}-estimate: {seen}."
            )
    yield from _fit_sentences(relation)


def _fit_sentences(relation: Relation) -> Iterator[str]:
    if relation.fit is None:
        return
    line = relation.fit
    span = interval(line.slope.low, line.slope.high, 2)
    through = interval(line.proportion.low, line.proportion.high, 2)
    yield (
        f"Least squares of measured on expected degradation: slope {fixed(line.slope.value, 2)} ({span}), through the "
        f"origin {fixed(line.proportion.value, 2)} ({through}), correlation {fixed(line.correlation.value, 2)} "
        f"({interval(line.correlation.low, line.correlation.high, 2)})."
    )


def _cautions(found: Additivity) -> Iterator[str]:
    screened = int(found.table["screened"].max())
    if screened:
        yield (
            f"Up to {count(screened, 'single layer')} of a sum {'is' if screened == 1 else 'are'} screened: predicted, "
            "not run; `quantopsy analyze --mode exact` runs them."
        )
    if found.samples < found.wanted:
        yield (
            f"The run was stopped: {found.samples} of {found.wanted} images. The same command again goes on from there."
        )
