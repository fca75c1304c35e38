"""Why layers hurt, in words and pictures: what ``quantopsy diagnose`` found.

A finding is one paragraph: the cause, the numbers that speak for it, what the test of it removed, the fixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.stats import mannwhitneyu

from quantopsy.analysis.results import Results
from quantopsy.core import Cause, Finding
from quantopsy.report.chart import Axis, Chart, Group, Line, Point, Section
from quantopsy.report.palette import Tone
from quantopsy.report.wording import (
    capital,
    confidence,
    count,
    degradation_decimals,
    degradation_unit,
    fixed,
    interval,
    percent,
    significant,
)

_EXAMINED = 3
"""Layers whose channels are drawn."""

_CERTAIN = 0.01

_HEARD = 0.005
"""Share of the noise from which a site is mentioned."""

WHY = "why"
"""The key of the section, which stands behind the verdict."""

TITLES: Mapping[Cause, str] = {
    "calibration_range": "its ranges do not fit these images",
    "dead_channel": "a dead channel sets the range of its weight",
    "weight_outlier": "few outliers set the range of its weight",
    "channel_imbalance": "few output channels set the range of its weight",
    "double_rounding": "its output is rounded on a grid that does not fit its inputs'",
    "branch_imbalance": "its branches have very different ranges",
    "wasted_range": "a side of its range holds hardly any value",
    "activation_outlier": "few large activations set its range",
    "bias_shift": "quantization shifts the mean of its output",
    "bias_overflow": "a bias does not fit its 32-bit integer",
    "amplification": "the network amplifies a small error here",
    "no_single_cause": "no single cause",
}


def findings_sentences(results: Results) -> list[str]:
    """A paragraph per finding, layers in the order of what they cost; what was looked at where there is none."""
    if not results.diagnosed:
        return []
    found = [sentence(results, finding) for finding in ordered(results)]
    if not found:
        widths = ", ".join(map(str, sorted(results.diagnosed, reverse=True)))
        found = [f"At {widths} bits no layer costs enough to look for causes; --layers names some all the same."]
    return found + [text for bits in sorted(results.diagnosed, reverse=True) for text in shift_sentences(results, bits)]


def ordered(results: Results) -> list[Finding]:
    """Findings by bit-width from the highest, then by what the layer costs, the primary one of a layer first."""
    cost = results.cells.set_index(["name", "bits"])["degradation"].to_dict()
    return sorted(results.findings, key=lambda f: (-f.bits, -cost.get((f.layer, f.bits), 0.0), f.layer, not f.primary))


def sentence(results: Results, finding: Finding) -> str:
    """One finding: the cause in the first line; evidence, test and fixes in the second."""
    lead = f"`{finding.layer}` at {finding.bits} bits, {finding.severity}:"
    if not finding.primary:
        lead = f"`{finding.layer}`, also:"
    evidence = "; ".join(_evidence(finding))
    parts = [
        f"{capital(evidence)}." if evidence else "",
        _where(finding) if finding.primary else "",
        _test(results, finding) if finding.removed is not None else "",
        f"To try: {', '.join(finding.fixes)}.",
    ]
    return f"{lead} {TITLES[finding.cause]}.\n{' '.join(filter(None, parts))}"


def _evidence(finding: Finding) -> Iterator[str]:
    """The numbers that speak for the cause."""
    e = finding.evidence
    match finding.cause:
        case "weight_outlier" if "peak_over_rms" in e:
            where = "" if e["grids"] == 1 else f"in {int(e['tailed_grids'])} of {int(e['grids'])} channels "
            yield (
                f"{where}the largest weight is {significant(e['peak_over_rms'], 2)} root mean squares from zero, "
                f"where a bell curve's is {significant(e['expected'], 2)}"
            )
        case "dead_channel" | "channel_imbalance" | "weight_outlier":
            wide, channels = int(e["wide_channels"]), int(e["channels"])
            reach = f"{significant(e['peak'])}, the typical one {significant(e['typical_channel_peak'])}"
            times = f"{significant(e['peak_ratio'], 2)} times"
            yield f"{wide} of {channels} output channels {'reaches' if wide == 1 else 'reach'} {reach} ({times})"
            if finding.cause == "dead_channel":
                yield "what it gives is the same for all images and positions"
            if finding.cause == "weight_outlier":
                ratio = significant(e["in_channel_outlier_ratio"], 2)
                yield f"single weights stand out there, {ratio} times as far as in other channels"
        case "calibration_range":
            if e["beyond_share"] > 0:
                yield (
                    f"{_rare(e['beyond_share'])} of the values lie beyond the calibrated range, "
                    f"by up to {percent(e['excess'])} of it"
                )
            if e["range_ratio"] > 1.05:
                yield f"the calibrated range is {significant(e['range_ratio'], 2)} times what these images need"
        case "double_rounding":
            ratios = [value for name, value in e.items() if name.startswith("step_ratio")]
            steps = " and ".join(significant(ratio) for ratio in ratios)
            yield f"the output's step is {steps} times its inputs', and many values fall on the same side of it"
            yield f"noise is {significant(e['noise_over_roundings_alone'], 2)} times that of the roundings alone"
        case "branch_imbalance":
            yield f"one reaches {significant(e['branch_ratio'], 2)} times as far as another, and they share a grid"
        case "wasted_range":
            yield f"it is {percent(e['wasted_share'])} of the grid"
        case "activation_outlier":
            if e["reach_over_body"] >= e["reach_over_channels"]:
                yield f"the range is {significant(e['reach_over_body'], 2)} times what 99.9 % of the values need"
            else:
                yield f"the range is {significant(e['reach_over_channels'], 2)} times what its typical channel needs"
        case "bias_shift":
            yield f"{percent(e['shift_share'])} of the noise here is the same for all images and positions"
        case "bias_overflow":
            yield f"it would take the code {significant(e['bias_codes'])}, in {count(int(e['channels']), 'channel')}"
        case "amplification":
            yield (
                f"local SQNR is {fixed(e['local_sqnr_db'], 1)} dB, and every unit of noise here becomes "
                f"{significant(e['gain'])} at the output, far more than at other layers"
            )
        case "no_single_cause":
            yield f"local SQNR is {fixed(e['local_sqnr_db'], 1)} dB; nothing that was tried removes half of the noise"


def shift_sentences(results: Results, bits: int) -> Iterator[str]:
    """Bias shift in all of the network (layer-wise paper, section 4.4): where, and what it does to sums."""
    locals_ = {name: local for name, local in results.locals.get(bits, {}).items() if local.noise > 0}
    if not locals_:
        return
    shares = {name: local.shift_share for name, local in locals_.items()}
    worst = sorted(shares, key=lambda name: -shares[name])[:_EXAMINED]
    middle = percent(float(np.median([*shares.values()])))
    yield (
        f"Mean shift at {bits} bits: half of the layers have more than {middle} of their local noise in it, "
        f"most `{'`, `'.join(worst)}` ({', '.join(percent(shares[name]) for name in worst)})."
    )
    depthwise = _depthwise(results)
    inside = [share for name, share in shares.items() if name in depthwise]
    outside = [share for name, share in shares.items() if name not in depthwise]
    if len(inside) >= _EXAMINED and len(outside) >= _EXAMINED:
        stand_out = mannwhitneyu(inside, outside, alternative="greater").pvalue < _CERTAIN
        if stand_out:
            medians = percent(float(np.median(inside))), percent(float(np.median(outside)))
            yield f"Depthwise layers stand out with a median of {medians[0]}, against {medians[1]} of the others."
    whole = results.whole[results.whole["bits"] == bits]
    if not whole.empty and whole["noise"].iloc[0] > 0 and whole["noise_sum"].iloc[0] > 0:
        ratio = float(whole["noise"].iloc[0] / whole["noise_sum"].iloc[0])
        if ratio > 1:
            yield (
                f"{percent(1 - 1 / ratio)} of the whole network's noise is correlated between layers: it is "
                f"{significant(ratio, 2)} times the sum of single layers."
            )


def _rare(share: float) -> str:
    return f"{significant(100 * share, 2)} %"


def _where(finding: Finding) -> str:
    """Which site the noise enters at."""
    if not finding.shares:
        return ""
    shares = [item for item in sorted(finding.shares.items(), key=lambda item: -item[1]) if item[1] >= _HEARD]
    return f"Noise by site: {', '.join(f'{role} {percent(share)}' for role, share in shares)}."


def _test(results: Results, finding: Finding) -> str:
    """What the counterfactual removed."""
    assert finding.removed is not None
    assert finding.change is not None
    noise, low, high = finding.removed.noise
    decimals = degradation_decimals(results)
    value, worst, best = finding.removed.degradation
    unit = degradation_unit(results).strip(" ()") or results.metric
    return (
        f"Tested: with {finding.change}, {percent(noise)} of the noise goes "
        f"({percent(max(low, -9.99))} to {percent(high)}), and {fixed(value, decimals)} {unit} "
        f"({confidence(results)} interval {interval(worst, best, decimals)})."
    )


def findings_section(results: Results) -> Section | None:
    """The page's part on causes; None where nobody looked for any."""
    if not results.diagnosed:
        return None
    bits = max(results.diagnosed)
    drawn = list(dict.fromkeys(finding.layer for finding in ordered(results) if finding.bits == bits))
    charts = [gain_chart(results, bits)]
    for layer in drawn[:_EXAMINED]:
        charts += channel_charts(results, layer, bits)
    return Section(WHY, "Why", statements=tuple(findings_sentences(results)), charts=tuple(charts))


def gain_chart(results: Results, bits: int) -> Chart:
    """What the network makes of an error, against the error: intrinsic and extrinsic part of every layer's noise."""
    cells = results.cells[results.cells["bits"] == bits].set_index("name")
    guilty = {finding.layer for finding in results.findings if finding.bits == bits}
    points: dict[str, list[Point]] = {"guilty": [], "depthwise": [], "other": []}
    depthwise = _depthwise(results)
    for name, local in results.locals.get(bits, {}).items():
        if name not in cells.index or local.noise <= 0 or local.signal <= 0:
            continue
        cell = cells.loc[name]
        title = (
            f"{name}\nlocal SQNR {fixed(local.sqnr_db, 1)} dB\nnetwork noise {significant(cell['noise'])}\n"
            f"mean shift {percent(local.shift_share)} of local noise"
        )
        kind = "guilty" if name in guilty else "depthwise" if name in depthwise else "other"
        points[kind].append(Point(local.noise / local.signal, cell["noise"] / local.noise, title=title))
    groups = (
        Group("examined", tuple(points["guilty"]), Tone("worse")),
        Group("depthwise", tuple(points["depthwise"]), Tone("better")),
        Group("other layers", tuple(points["other"]), Tone("noise")),
    )
    return Chart(
        f"Local noise and gain at {bits} bits",
        Axis("local noise over local signal", logarithmic=True),
        Axis("gain: output noise over local noise", logarithmic=True),
        groups,
        note="Right: the layer itself is quantized badly. Top: the rest of the network makes much of it.",
    )


def _depthwise(results: Results) -> set[str]:
    """Convolutions with one input channel per group."""
    shapes = results.layers.set_index("name")["weight_shape"]
    return {
        name for name, shape in shapes.items() if isinstance(shape, tuple | list) and len(shape) > 2 and shape[1] == 1
    }


def channel_charts(results: Results, layer: str, bits: int) -> Iterator[Chart]:
    """Per output channel: the range of the weight with the grid's ends, and the mean shift of the activation."""
    distribution = results.distributions.get(layer)
    local = results.locals.get(bits, {}).get(layer)
    if distribution is not None and distribution.channel_low is not None and distribution.channel_high is not None:
        low, high = distribution.channel_low, distribution.channel_high
        channels = Group(
            "range of a channel",
            tuple(
                Point(c, (a + b) / 2, a, b, title=f"channel {c}\n{significant(a)} to {significant(b)}")
                for c, (a, b) in enumerate(zip(low, high, strict=True))
            ),
            Tone("accent"),
        )
        ends = distribution.weight_range or (float(low.min()), float(high.max()))
        lines = tuple(
            Line("ends of the grid" if i == 0 else "", ((0.0, end), (len(low) - 1.0, end)), Tone("worse"), dashed=True)
            for i, end in enumerate(ends)
        )
        yield Chart(
            f"{layer}: weights by output channel",
            Axis("output channel", whole=True),
            Axis("weight"),
            (channels,),
            lines,
        )
    if local is not None and len(local.shift) > 1:
        size = np.sqrt(local.variance)
        shifted = Group(
            "mean shift of a channel",
            tuple(
                Point(
                    c,
                    float(shift),
                    title=f"channel {c}\nshift {significant(float(shift))}\nsize {significant(float(size[c]))}",
                )
                for c, shift in enumerate(local.shift)
            ),
            Tone("accent"),
        )
        yield Chart(
            f"{layer}: mean shift of its output at {bits} bits",
            Axis("output channel", whole=True),
            Axis("mean of quantized minus float"),
            (shifted,),
            note=f"The mean shift is {percent(local.shift_share)} of the noise there.",
        )
