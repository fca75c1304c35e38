"""A repair in words, as a step chart and as a table: what each step bought, what was tried in vain, what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil

from quantopsy.analysis.results import Results
from quantopsy.core.recipe import Repair
from quantopsy.remedy.applied import Applied
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
    signed,
    significant,
    with_interval,
)

_NAMED = 5  # layers, for the noise that remains
_CHANGED = 0.01  # of a ratio of ranges: what scales do, and rounding does not


def repair_statements(results: Results) -> list[str]:
    """What the repair came to, on images that no decision has seen."""
    done = results.repaired
    if done is None:
        return []
    return [
        _proof(results, done),
        *_worse(results, done),
        *_resolution(results, done),
        *_path(done),
        *_rest(results, done),
    ]


def repair_section(results: Results) -> Section | None:
    """The part of the page; None where nothing was repaired."""
    done = results.repaired
    if done is None:
        return None
    return Section(
        "repair",
        "Repair",
        note="Steps are kept or dropped by images set apart for that; the figures in the first sentence are of others.",
        statements=tuple(repair_statements(results)),
        charts=(path_chart(results, done), layers_chart(done), *spread_chart(done)),
        table=steps_table(results, done),
    )


def _proof(results: Results, done: Repair) -> str:
    expected, decimals = done.expected, degradation_decimals(results)
    unit = f" {results.unit}" if results.unit else ""
    kept = [step for step in done.steps if step.kept]
    values = f"{fixed(expected.before[0], decimals)} → {fixed(expected.after[0], decimals)}"
    gained = with_interval(*expected.gained, decimals)
    lost = with_interval(*expected.lost, decimals)
    if not kept:
        return (
            f"Nothing was changed: at {done.bits} bits the network loses {lost}{unit} ({confidence(results)} interval, "
            f"{count(expected.samples, 'image')} held out), {_wanted(done, unit)}."
        )
    return (
        f"{expected.metric} {values} at {done.bits} bits, float {fixed(expected.float[0], decimals)}: regained {gained}"
        f"{unit} ({confidence(results)} interval, {count(expected.samples, 'image')} held out). "
        f"It loses {lost}{unit}, {_wanted(done, unit)}."
    )


def _worse(results: Results, done: Repair) -> Iterator[str]:
    """A loss by the repair that only the proof shows, which decides nothing."""
    change, low, high = done.expected.gained
    if change >= 0:
        return
    decimals, unit = degradation_decimals(results), f" {results.unit}" if results.unit else ""
    certain = "for certain" if high < 0 else "by chance, perhaps"
    lost = with_interval(-change, -high, -low, decimals)
    yield (
        f"Caution: the repair makes these images worse by {lost}{unit}, {certain}; "
        "those that decided did not show it. More images would decide better."
    )


def _resolution(results: Results, done: Repair) -> Iterator[str]:
    """How many images the proof would need where those at hand leave the loss open."""
    expected = done.expected
    reach = (expected.lost[2] - expected.lost[1]) / 2
    if 0 < done.max_drop < reach:
        needed = ceil(expected.samples * (reach / done.max_drop) ** 2)
        within = fixed(reach, degradation_decimals(results)) + (f" {results.unit}" if results.unit else "")
        yield (
            f"{count(expected.samples, 'image')} tell a loss to within {within}; to within the {done.max_drop:g} "
            f"asked for, the proof would need about {needed}."
        )


def _wanted(done: Repair, unit: str) -> str:
    return f"{'within' if done.met else 'more than'} the {done.max_drop:g}{unit} asked for"


def _path(done: Repair) -> Iterator[str]:
    kept = [step for step in done.steps if step.kept]
    dropped = [step for step in done.steps if not step.kept]
    if not done.steps and not done.met and not done.untried:
        yield "Nothing was tried: the images that decide lose no more than was asked for."
    if kept:
        yield f"Kept, in this order: {'; '.join(step.words for step in kept)}."
    if dropped:
        yield f"Tried in vain: {'; '.join(step.words for step in dropped)}."
    if done.untried:
        yield f"Time was up before: {', '.join(done.untried)}. A larger `--budget` would try them."


def _rest(results: Results, done: Repair) -> Iterator[str]:
    if done.left:
        named = ", ".join(f"`{name}` {percent(share)}" for name, share in done.left[:_NAMED])
        yield f"The noise that is left is mostly of {named}, as screened."
    decimals = degradation_decimals(results)
    unit = f" {results.unit}" if results.unit else ""
    yield f"With 16 bits at every site the network would lose {fixed(done.unbounded[0], decimals)}{unit}."


def steps_table(results: Results, done: Repair) -> Table:
    """A row per step, in order."""
    decimals = degradation_decimals(results)
    rows = tuple(
        (
            step.words,
            "kept" if step.kept else "dropped",
            step.cost,
            signed(step.change[0], decimals),
            interval(step.change[1], step.change[2], decimals),
            signed(100 * (step.noise[0] - 1), 0) + " %",
            fixed(step.degradation[0], decimals),
        )
        for step in done.steps
    )
    unit = degradation_unit(results)
    headings = (
        "step", "", "at run time", f"change{unit}", f"{confidence(results)} interval", "noise", f"loss after{unit}",
    )  # fmt: skip
    return Table("What was tried, over the images that decide", headings, rows)


def path_chart(results: Results, done: Repair) -> Chart:
    """Loss after every step that was kept, and of those that were dropped."""
    names = ("start", *(step.words for step in done.steps))
    start = done.expected.lost_before if not done.steps else _start(done)
    points = [Point(0.0, start[0], start[1], start[2], f"start\nloss {start[0]:.2f}")]
    dropped: list[Point] = []
    corners = [(0.0, start[0])]
    level = start[0]
    for number, step in enumerate(done.steps, 1):
        value, low, high = step.degradation
        point = Point(float(number), value, low, high, f"{step.words}\n{step.why}", hollow=not step.kept)
        (points if step.kept else dropped).append(point)
        corners.append((float(number), level))
        if step.kept:
            level = value
            corners.append((float(number), level))
    unit = degradation_unit(results)
    lines = (
        Line("network so far", tuple(corners), Tone("accent")),
        Line("asked for", ((-0.5, done.max_drop), (len(names) - 0.5, done.max_drop)), Tone("muted"), dashed=True),
    )
    return Chart(
        f"Loss{unit}, step by step",
        Axis("", names=tuple(str(number) for number in range(len(names)))),
        Axis(f"degradation{unit}"),
        (Group("kept", tuple(points), Tone("accent")), Group("dropped", tuple(dropped), Tone("muted"))),
        lines,
        note="Steps in the order of the table, over the images that decide; bars are intervals.",
        wide=True,
    )


def layers_chart(done: Repair) -> Chart:
    """Noise of every layer before and after, as screened."""
    return _before_and_after(
        "Noise of every layer, before and after",
        "noise",
        {layer.name: layer.noise for layer in done.layers if min(layer.noise) > 0},
        "What the screen expects each layer's grids to add to the network's noise.",
    )


def spread_chart(done: Repair) -> Iterator[Chart]:
    """How unlike the channels of every weight are, where a transform changed it."""
    spreads = {layer.name: layer.spread for layer in done.layers if layer.spread is not None}
    if any(abs(after / before - 1) > _CHANGED for before, after in spreads.values()):
        yield _before_and_after(
            "Range of every weight over its median channel's, before and after",
            "widest over median channel",
            spreads,
            "1 where all output channels use the grid of their tensor alike.",
        )


def _before_and_after(title: str, axis: str, values: Mapping[str, tuple[float, float]], note: str) -> Chart:
    def points(which: int) -> tuple[Point, ...]:
        return tuple(
            Point(float(n), pair[which], title=f"{name}\n{significant(pair[0])} before, {significant(pair[1])} after")
            for n, (name, pair) in enumerate(values.items())
        )

    return Chart(
        title,
        Axis("layer", names=tuple(str(n) for n in range(len(values)))),
        Axis(axis, logarithmic=True),
        (
            Group("before", tuple(replace(point, hollow=True) for point in points(0)), Tone("muted")),
            Group("after", points(1), Tone("accent")),
        ),
        note=note,
        wide=True,
    )


def _start(done: Repair) -> tuple[float, float, float]:
    """The loss before the first step, over the same images: after it, less its change."""
    first = done.steps[0]
    value = first.degradation[0] - first.change[0]
    return value, value, value


def applied_sentences(found: Applied) -> list[str]:
    """What the network of a recipe gave, beside what the recipe expects."""
    decimals = 1 if found.unit else 4
    unit = f" {found.unit}" if found.unit else ""
    floating = "float as trained" if found.trained else "float"
    lines = [
        f"{found.metric} {fixed(found.after[0], decimals)}, {floating} {fixed(found.float[0], decimals)}: loses "
        f"{with_interval(*found.lost, decimals)}{unit} "
        f"({percent(found.level)} interval, {count(found.samples, 'image')})."
    ]
    expected = found.expected
    if expected is not None and expected.metric == found.metric:
        # A training moves the weights: the loss that its recipe expects is against the float network before it.
        what, wanted, given, rest = "a loss of", expected.lost, found.lost, ""
        if found.trained:
            what, wanted, given = found.metric, expected.after, found.after
            rest = f"; float before training {fixed(expected.float[0], decimals)}"
        agree = given[2] >= wanted[1] and given[1] <= wanted[2]
        lines.append(
            f"The recipe expects {what} {with_interval(*wanted, decimals)}{unit} on "
            f"{count(expected.samples, 'image')}{rest}: {'they agree' if agree else 'they disagree'}."
        )
    if found.renamed:
        name, other = next(iter(found.renamed.items()))
        lines.append(
            f"{count(len(found.renamed), 'layer')} matched by order and shapes, not by name: the model's {name!r} is "
            f"the recipe's {other!r}."
        )
    if not found.same_model:
        lines.append("The weights are not those that the recipe was made for; layers and shapes are.")
    return lines
