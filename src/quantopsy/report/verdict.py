"""The verdict in words: sentences that hold by their intervals, for page and terminal alike.

Layer names stand between backticks. Every sentence says only what its numbers support: a loss is a loss
where the interval excludes zero, and a layer is guilty under the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from quantopsy.analysis.results import Results
from quantopsy.report.tables import headline_bits, ranked, whole_network
from quantopsy.report.wording import (
    CONFIDENCE,
    count,
    degradation_decimals,
    fixed,
    interval,
    percent,
    significant,
    with_interval,
)

_NAMED = 3
"""Layers that a sentence names; the table has the rest."""

_MOST_NOISE = 0.8
"""Share of the noise that "most of it" stands for."""

_ONE_SIDE = 0.025
"""Chance that a 95 % interval lies above zero although there is nothing."""


def verdict(results: Results) -> list[str]:
    """What was found, then what limits it."""
    return [*statements(results), *cautions(results)]


def statements(results: Results) -> list[str]:
    """What was found: the whole network, the guilty layers, where the noise is, whether layers add up."""
    bits = headline_bits(results)
    cells = ranked(results, bits)
    whole = _whole_at(results, bits)
    sentences = [_whole_sentence(results, bits, whole)] if whole is not None else [_float_sentence(results)]
    sentences += _guilty_sentences(results, bits, cells, whole)
    sentences += _noise_sentences(bits, cells)
    sentences += _improving_sentences(results, bits, cells)
    if whole is not None:
        sentences += _additivity_sentences(results, bits, whole)
    sentences += _other_bits_sentences(results, bits)
    return sentences


def cautions(results: Results) -> list[str]:
    """What limits the findings: a stopped run, screened or unmeasured cells, a useless baseline, warnings."""
    return [*_progress_cautions(results), *_baseline_cautions(results), *results.warnings]


class _Writer:
    """Numbers of one ``Results`` in words."""

    def __init__(self, results: Results) -> None:
        self.decimals = degradation_decimals(results)
        self.unit = " points" if results.unit == "points" else f" {results.unit}" if results.unit else ""
        self.percent = " %" if results.unit == "points" else ""

    def amount(self, value: float) -> str:
        """A degradation with its unit."""
        return f"{fixed(value, self.decimals)}{self.unit}"

    def lost(self, row: Any) -> str:
        """A row's degradation and its interval."""
        low, high = row["degradation_low"], row["degradation_high"]
        return with_interval(row["degradation"], low, high, self.decimals)

    def level(self, value: float) -> str:
        """A value of the metric."""
        return f"{fixed(value, self.decimals)}{self.percent}"

    def between(self, low: float, high: float) -> str:
        """``95 % interval a to b``."""
        return f"{CONFIDENCE} interval {interval(low, high, self.decimals)}"


def _whole_at(results: Results, bits: int) -> Any | None:
    table = whole_network(results)
    rows = table[table["bits"] == bits]
    return None if rows.empty or not math.isfinite(rows["degradation"].iloc[0]) else rows.iloc[0]


def _has_interval(row: Any) -> bool:
    return bool(math.isfinite(row["degradation_low"]) and math.isfinite(row["degradation_high"]))


def _quantization(results: Results, bits: int) -> str:
    """``8-bit per-tensor quantization``."""
    scheme = results.settings.get("scheme")
    return " ".join(word for word in (f"{bits}-bit", scheme, "quantization") if isinstance(word, str) and word)


def _float_sentence(results: Results) -> str:
    write = _Writer(results)
    span = interval(results.float_low, results.float_high, write.decimals)
    known = f" ({CONFIDENCE} interval {span})" if span else ""
    return (
        f"Float {results.metric} is {write.level(results.float_value)}{known} "
        f"on {count(results.samples, 'image')}; the whole network was not measured quantized."
    )


def _whole_sentence(results: Results, bits: int, whole: Any) -> str:
    write = _Writer(results)
    what, lost = _quantization(results, bits), whole["degradation"]
    levels = (
        f"{write.level(results.float_value)} in float, {write.level(whole['value'])} quantized, "
        f"on {count(int(whole['samples']), 'image')}"
    )
    if not _has_interval(whole):
        return f"{what} changes {results.metric} by {write.amount(-lost)} (no interval is known): {levels}."
    span = write.between(whole["degradation_low"], whole["degradation_high"])
    if whole["degradation_low"] > 0:
        return f"{what} costs {write.amount(lost)} of {results.metric} ({span}): {levels}."
    if whole["degradation_high"] < 0:
        mirrored = write.between(-whole["degradation_high"], -whole["degradation_low"])
        return f"{what} improves {results.metric} by {write.amount(-lost)} ({mirrored}): {levels}."
    return (
        f"{what} costs no measurable {results.metric}: the degradation is {write.amount(lost)} and its "
        f"{span} includes zero ({levels})."
    )


def _layer(cell: Any) -> str:
    where = [str(cell["op"])]
    if isinstance(cell["source"], str) and cell["source"]:
        where.append(cell["source"])
    return f"`{cell['name']}` ({', '.join(where)})"


def _guilty_sentences(results: Results, bits: int, cells: pd.DataFrame, whole: Any | None) -> Iterator[str]:
    write = _Writer(results)
    judged = cells[(cells["method"] == "exact") & cells["degradation_low"].notna()]
    guilty = cells[cells["guilty"]]
    if judged.empty:
        yield f"No layer has been measured exactly at {bits} bits, so none can be called guilty."
        return
    if guilty.empty:
        every = len(judged) == len(results.layers)
        which = "No single layer" if every else f"None of the {count(len(judged), 'layer')} measured exactly"
        sentence = f"{which} costs {results.metric} beyond its interval at {bits} bits"
        if whole is not None and whole["degradation_low"] > 0:
            sentence += "; the loss appears only when layers are quantized together"
        yield sentence + "."
        return
    listed = "; ".join(f"{_layer(cell)} {write.lost(cell)}" for _, cell in guilty.head(_NAMED).iterrows())
    of = f"{len(guilty)} of {count(len(judged), 'layer')}"
    more = f"; and {len(guilty) - _NAMED} more" if len(guilty) > _NAMED else ""
    verb = "costs" if len(guilty) == 1 else "cost"
    unit = f", in{write.unit}" if write.unit else ""
    yield f"{of} {verb} {results.metric} beyond the interval when quantized alone{unit}: {listed}{more}."
    doubtful = guilty[~_beyond_chance(guilty, len(judged))]
    chance = _ONE_SIDE * len(judged)
    if 0 < len(doubtful) <= 2 * chance:
        yield (
            f"Of {len(judged)} such intervals about {max(1, round(chance))} would lie above zero by chance alone: "
            f"for {len(doubtful)} of the guilty only more images would tell."
        )


def _beyond_chance(guilty: pd.DataFrame, tests: int) -> pd.Series:
    """Whether the interval would still exclude zero if widened for so many ``tests`` (Bonferroni)."""
    widened = NormalDist().inv_cdf(1 - _ONE_SIDE / tests) / NormalDist().inv_cdf(1 - _ONE_SIDE)
    below = guilty["degradation"] - guilty["degradation_low"]
    return guilty["degradation"] - widened * below > 0


def _noise_sentences(bits: int, cells: pd.DataFrame) -> Iterator[str]:
    by_noise = cells[cells["noise"] > 0].sort_values("noise", ascending=False)
    if len(by_noise) < 2:
        return
    reached = by_noise["noise_share"].cumsum().to_numpy()
    needed = int(np.searchsorted(reached, _MOST_NOISE)) + 1
    if needed <= max(_NAMED, len(by_noise) // 10):
        names = ", ".join(f"`{name}`" for name in by_noise["name"].head(min(needed, _NAMED)))
        listed = names if needed <= _NAMED else f"{names} and {needed - _NAMED} more"
        accounts = "accounts" if needed == 1 else "account"
        yield (
            f"{count(needed, 'layer')} of {len(by_noise)} {accounts} for {percent(reached[needed - 1])} "
            f"of the summed noise at {bits} bits: {listed}."
        )
        return
    yield (
        f"The noise at {bits} bits is spread out: it takes {needed} of {len(by_noise)} layers to account for "
        f"{percent(reached[needed - 1])} of its sum, and the loudest, `{by_noise['name'].iloc[0]}`, "
        f"has {percent(reached[0])}."
    )


def _improving_sentences(results: Results, bits: int, cells: pd.DataFrame) -> Iterator[str]:
    improving = cells[cells["improves"]].sort_values("degradation")
    if improving.empty:
        return
    write = _Writer(results)
    best = improving.iloc[0]
    span = write.between(-best["degradation_high"], -best["degradation_low"])
    one = len(improving) == 1
    subject = f"{_layer(best)} alone" if one else f"{len(improving)} layers alone"
    most = "by" if one else f"most of all {_layer(best)}, by"
    yield (
        f"Quantizing {subject} improves {results.metric} at {bits} bits, {most} "
        f"{write.amount(-best['degradation'])} ({span}): chance, or a float network that is not at its best, "
        "as after fine-tuning with quantization."
    )


def _additivity_sentences(results: Results, bits: int, whole: Any) -> Iterator[str]:
    write = _Writer(results)
    total = whole["degradation_sum"]
    if math.isfinite(total) and _has_interval(whole):
        inside = whole["degradation_low"] <= total <= whole["degradation_high"]
        span = write.between(whole["degradation_low"], whole["degradation_high"])
        if inside:
            yield (
                f"Single layers add up at {bits} bits: their degradations sum to {write.amount(total)}, inside "
                f"the whole network's {span}."
            )
        else:
            side = "below" if total < whole["degradation_low"] else "above"
            yield (
                f"Single layers do not add up at {bits} bits: their degradations sum to {write.amount(total)}, "
                f"{side} the whole network's {span}."
            )
    if whole["noise_sum"] > 0 and math.isfinite(whole["noise"]):
        ratio = whole["noise"] / whole["noise_sum"]
        if not 0.5 <= ratio <= 2:
            yield f"The whole network's noise at {bits} bits is {significant(ratio, 2)} times the sum of its layers'."


def _other_bits_sentences(results: Results, headline: int) -> Iterator[str]:
    write = _Writer(results)
    table = whole_network(results)
    rows = table[(table["bits"] != headline) & table["degradation"].notna()]
    parts = [
        f"{int(bits)} bits {fixed(lost, write.decimals)}"
        for bits, lost in zip(rows["bits"], rows["degradation"], strict=True)
    ]
    if parts:
        unit = f", in{write.unit}" if write.unit else ""
        yield f"Degradation of the whole network at other bit-widths{unit}: {', '.join(parts)}."


def _progress_cautions(results: Results) -> Iterator[str]:
    cells = results.cells
    wanted = len(results.layers) * len(results.bits)
    measured = cells["noise"].notna() | cells["degradation"].notna()
    missing = wanted - int(measured.sum())
    if not results.complete:
        sentence = "The run was stopped before every cell had every image"
        if missing > 0:
            sentence += f"; {missing} of {wanted} cells are missing"
        short = cells[measured & (cells["method"] == "exact") & (cells["samples"] < results.samples)]
        if not short.empty:
            sentence += (
                f"; {count(len(short), 'cell')} {'has' if len(short) == 1 else 'have'} fewer than the "
                f"{results.samples} images, the least {int(short['samples'].min())}"
            )
        yield sentence + ". The same command again goes on from there."
    elif missing > 0:
        yield f"{missing} of {wanted} cells were not measured; shares and sums leave them out."
    screened = int((cells["method"] == "screened").sum())
    if screened:
        which = f"All {screened}" if screened == len(cells) else f"{screened} of {len(cells)}"
        yield (
            f"{which} cells are screened: their noise and degradation are first-order predictions, not "
            "measurements, and no layer is called guilty by them."
        )


def _baseline_cautions(results: Results) -> Iterator[str]:
    if results.float_low <= 0 <= results.float_high:
        write = _Writer(results)
        yield (
            f"The float network's own {results.metric} is {write.level(results.float_value)} "
            f"({write.between(results.float_low, results.float_high)}): there is nothing to lose, so "
            "degradations say nothing. Check labels and preprocessing."
        )
