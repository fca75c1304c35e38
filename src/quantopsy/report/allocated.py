"""Mixed precision in words, as charts of what was measured against its cost, and as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

from quantopsy.analysis.results import Results
from quantopsy.core.allocation import Allocation, Outcome
from quantopsy.remedy.allocation.costs import Resource, amount
from quantopsy.remedy.allocation.criteria import CRITERIA
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
    significant,
    with_interval,
)

_LABELS: Mapping[str, str] = {"size": "size of weights, KB", "bitops": "BitOps, G", "latency": "latency"}
_SCALES: Mapping[str, float] = {"size": 1e3, "bitops": 1e9, "latency": 1.0}
_CORRECTIONS: Mapping[str, str] = {
    "none": "no bias corrected",
    "analytic": "biases corrected in closed form",
    "iterative": "biases corrected layer after layer (IBC)",
}


def allocation_section(results: Results) -> Section | None:
    """The part of the page; None where nothing was allocated."""
    done = results.allocated
    if done is None:
        return None
    return Section(
        "allocation",
        "Mixed precision",
        note="The front is measured on images that the bit-widths were not chosen on; the first figures are of others.",
        statements=tuple(allocation_statements(results)),
        charts=(front_chart(results, done), noise_chart(done), bits_chart(done)),
        table=front_table(results, done),
    )


def allocation_statements(results: Results) -> list[str]:
    """What the chosen bit-widths are worth, on images that no decision has seen."""
    done = results.allocated
    return [] if done is None else [*_proof(results, done), *_beyond_bits(results, done), *_choice(done)]


def _proof(results: Results, done: Allocation) -> Iterator[str]:
    expected, decimals = done.expected, degradation_decimals(results)
    unit = f" {results.unit}" if results.unit else ""
    yield (
        f"{expected.metric} {fixed(expected.after[0], decimals)} at {_uses(done.uses, done.limits)}"
        f"{_in_a_file(results, done)} against {fixed(expected.before[0], decimals)} of uniform {done.baseline} bits "
        f"({_uses(done.baseline_uses, done.limits)}), float {fixed(expected.float[0], decimals)}: gained "
        f"{with_interval(*expected.gained, decimals)}{unit} ({confidence(results)} interval, "
        f"{count(expected.samples, 'image')} held out, both with {_CORRECTIONS[done.correction]})."
    )
    ratio, low, high = done.noise_ratio
    yield (
        f"It loses {with_interval(*expected.lost, decimals)}{unit}, uniform {done.baseline} bits "
        f"{with_interval(*expected.lost_before, decimals)}{unit}; its noise is {percent(ratio)} "
        f"({percent(low)} to {percent(high)}) of uniform's."
    )
    if (decided := done.decisions) is not None and expected.metric != "agreement":
        yield (
            f"It decides {fixed(decided.after, 1)} % of them as the float network does, uniform {done.baseline} bits "
            f"{fixed(decided.before, 1)} %: gained {with_interval(*decided.gained, 1)} points."
        )


def _beyond_bits(results: Results, done: Allocation) -> Iterator[str]:
    """What is lost at the highest bit-width already, where that is most of it."""
    highest = done.uniform[-1]
    lost, low, _ = highest.degradation
    if low > results.tolerance and lost >= done.expected.lost[0] / 2:
        unit = f" {results.unit}" if results.unit else ""
        loss = with_interval(*highest.degradation, degradation_decimals(results))
        yield (
            f"With {highest.words}, the most that were allowed, it loses {loss}{unit} already: bits cannot mend this. "
            "`quantopsy repair` comes first."
        )


def _choice(done: Allocation) -> Iterator[str]:
    yield f"Bits of weights: {_spread(done.bits)}; chosen by {CRITERIA[done.criterion]}."
    if done.activation_bits:
        yield f"Bits of what layers read: {_spread(done.activation_bits)}."


def _spread(bits: Mapping[str, int]) -> str:
    return ", ".join(f"{count(number, 'layer')} at {width}" for width, number in sorted(Counter(bits.values()).items()))


def _uses(uses: Mapping[str, float], some: Iterable[str]) -> str:
    return ", ".join(f"{_NAMES[name]}{amount(name, uses[name])}" for name in some)  # type: ignore[arg-type]


def _in_a_file(results: Results, done: Allocation) -> str:
    """`` (89 KB as ONNX stores it)``, where that is another size: it has integers of 4 and 8 bits and none between."""
    stored = onnx_bytes(results, done)
    if "size" not in done.limits or stored is None or amount("size", stored) == amount("size", done.uses["size"]):
        return ""
    return f" ({amount('size', stored)} as ONNX stores it)"


def onnx_bytes(results: Results, done: Allocation) -> int | None:
    """Bytes of the weights in a file of ONNX: up to 4 bits two in a byte, up to 8 one in a byte, then 16 or 32 bits.

    None where weights take another size than their values times bits: some are shared, or on grids of several
    tensors.
    """
    shapes = results.layers.set_index("name")["weight_shape"]
    values = {name: math.prod(shapes[name]) for name in done.bits if isinstance(shapes.get(name), tuple | list)}
    if sum(number * done.bits[name] for name, number in values.items()) != 8 * done.uses["size"]:
        return None
    widths = {name: next(width for width in _STORED_BITS if width >= bits) for name, bits in done.bits.items()}
    return sum(math.ceil(number * widths[name] / 8) for name, number in values.items())


_STORED_BITS = (4, 8, 16, 32)

_NAMES: Mapping[str, str] = {"size": "", "bitops": "BitOps ", "latency": "latency "}
assert set(_NAMES) == set(get_args(Resource))


def bits_table(done: Allocation) -> Table:
    """Bits layer by layer."""
    both = bool(done.activation_bits)
    rows = tuple(
        (name, str(bits), *([str(done.activation_bits.get(name, ""))] if both else []))
        for name, bits in done.bits.items()
    )
    return Table("Bits", ("layer", "weight", *(["input"] if both else [])), rows)


def rivals_table(results: Results, done: Allocation) -> Table:
    """What each criterion proposes at the limit."""
    rivals = (
        replace(rival, words=f"{rival.words} (chosen)" if rival.words == done.criterion else rival.words)
        for rival in done.rivals
    )
    return _table("Criteria at the limit, over the images that choose", rivals, results, done)


def front_table(results: Results, done: Allocation) -> Table:
    """The front, greedy choices and uniform widths, each once; and what was chosen, on the images held out."""
    words: dict[Any, dict[str, None]] = {}
    outcomes = {_figures(outcome): outcome for outcome in (*done.front, *done.greedy, *done.uniform)}
    for outcome in (*done.front, *done.greedy, *done.uniform):
        words.setdefault(_figures(outcome), {})[outcome.words] = None
    found = [replace(outcome, words=", ".join(words[figures])) for figures, outcome in outcomes.items()]
    chosen = _chosen(done)
    ordered = sorted((*found, chosen), key=lambda outcome: outcome.uses[done.along])
    return _table("Front, greedy steps and uniform widths", ordered, results, done)


def _chosen(done: Allocation) -> Outcome:
    return Outcome("chosen, on images held out", done.uses, math.nan, math.nan, done.expected.lost)


def _figures(outcome: Outcome) -> tuple[Any, ...]:
    """What two outcomes that are the same choice share."""
    return (*outcome.uses.values(), outcome.noise, *outcome.degradation)


def _table(caption: str, outcomes: Iterable[Outcome], results: Results, done: Allocation) -> Table:
    decimals, resources = degradation_decimals(results), list(done.uses)
    rows = tuple(
        (
            outcome.words,
            *(amount(name, outcome.uses[name]) for name in resources),  # type: ignore[arg-type]
            significant(outcome.noise),
            fixed(outcome.degradation[0], decimals),
            interval(*outcome.degradation[1:], decimals),
        )
        for outcome in outcomes
    )
    headings = ("", *resources, "noise", f"loss{degradation_unit(results)}", f"{confidence(results)} interval")
    return Table(caption, headings, rows)


def front_chart(results: Results, done: Allocation) -> Chart:
    """Loss of the metric against the resource that is limited first."""
    unit, decimals = degradation_unit(results), degradation_decimals(results)

    def point(outcome: Outcome, hollow: bool) -> Point:
        title = f"{outcome.words}\n{_uses(outcome.uses, done.uses)}\nloss {fixed(outcome.degradation[0], decimals)}"
        return Point(outcome.uses[done.along] / _SCALES[done.along], *outcome.degradation, title, hollow=hollow)

    chosen = _chosen(done)
    groups = tuple(
        Group(label, tuple(point(outcome, label == "uniform") for outcome in outcomes), tone)
        for label, outcomes, tone in (
            ("mixed", done.front, Tone("accent")),
            ("uniform", done.uniform, Tone("worse")),
            (chosen.words, (chosen,), Tone("ink")),
        )
    )
    return Chart(
        f"Loss{unit} against {_LABELS[done.along].partition(',')[0]}",
        Axis(_LABELS[done.along]),
        Axis(f"degradation{unit}"),
        groups,
        tuple(_lines(done, lambda outcome: outcome.degradation[0])),
        hollow="all weights of one width",
        note="Every point was run; bars are intervals.",
    )


def noise_chart(done: Allocation) -> Chart:
    """Noise against the resource that is limited first: what the metric's chance hides."""

    def points(outcomes: Iterable[Outcome], hollow: bool = False) -> tuple[Point, ...]:
        return tuple(
            Point(
                outcome.uses[done.along] / _SCALES[done.along],
                outcome.noise,
                title=f"{outcome.words}\n{_uses(outcome.uses, done.uses)}\nnoise {significant(outcome.noise)}",
                hollow=hollow,
            )
            for outcome in outcomes
        )

    groups = (
        Group("mixed", points(done.front), Tone("accent")),
        Group("greedy", points(done.greedy), Tone("muted")),
        Group("uniform", points(done.uniform, hollow=True), Tone("worse")),
    )
    return Chart(
        f"Noise against {_LABELS[done.along].partition(',')[0]}",
        Axis(_LABELS[done.along]),
        Axis("noise", logarithmic=True),
        groups,
        tuple(_lines(done, lambda outcome: outcome.noise)),
        hollow="all weights of one width",
        note="The same choices: squared distance of the outputs from float.",
    )


def _lines(done: Allocation, of: Any) -> Iterator[Line]:
    for label, outcomes, tone in (("", done.front, Tone("accent")), ("", done.uniform, Tone("worse"))):
        corners = tuple((outcome.uses[done.along] / _SCALES[done.along], of(outcome)) for outcome in outcomes)
        yield Line(label, corners, tone, dashed=outcomes is done.uniform)
    limit = done.limits[done.along] / _SCALES[done.along]
    every = [of(outcome) for outcome in (*done.front, *done.uniform)]
    yield Line("limit", ((limit, min(every)), (limit, max(every))), Tone("muted"), dashed=True)


def bits_chart(done: Allocation) -> Chart:
    """Bits of every weight, in the order of the network."""
    names = tuple(done.bits)

    def points(bits: Mapping[str, int], of: str) -> tuple[Point, ...]:
        return tuple(
            Point(float(n), float(bits[name]), title=f"{name}\n{of} at {bits[name]} bits", hollow=of == "input")
            for n, name in enumerate(names)
            if name in bits
        )

    groups = [Group("weight", points(done.bits, "weight"), Tone("accent"))]
    if done.activation_bits:
        groups.append(Group("input", points(done.activation_bits, "input"), Tone("noise")))
    return Chart(
        "Bits, layer by layer",
        Axis("layer", names=tuple(str(number) for number in range(len(names)))),
        Axis("bits", whole=True),
        tuple(groups),
        hollow="of what the layer reads" if done.activation_bits else "",
        note=f"Layers with weights in the order of the network, {names[0]} to {names[-1]}.",
        wide=True,
    )
