"""The checks of a gate in sentences; what limits them besides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from math import ceil

import pandas as pd

from quantopsy.analysis.gate.candidate import Candidate
from quantopsy.analysis.gate.differences import RangeChange, SpecChange
from quantopsy.analysis.gate.judge import Check, Judged
from quantopsy.report.compared.words import cautions as comparison_cautions
from quantopsy.report.wording import (
    MISSING,
    Writer,
    count,
    fixed,
    interval,
    interval_decimals,
    percent,
    predicted,
    si,
    signed,
    significant,
)

NAMED = 3
"""Layers or sites that a sentence names; the document has them all."""


def heading(judged: Judged) -> str:
    """What is held against what."""
    old, new = judged.old, judged.new
    bits = f", weights at {old.bits} bits" if old.bits is not None and old.bits == new.bits else ""
    return f"{new.label} in the place of {old.label}{bits}"


def outcome(judged: Judged) -> str:
    """``passed`` or ``failed``, and of how many checks."""
    tally = [sum(check.status == status for check in judged.checks) for status in ("passed", "failed", "skipped")]
    told = f"{tally[0]} passed, {tally[1]} failed, {tally[2]} skipped"
    return f"{'PASSED' if judged.passed else 'FAILED'}: {told}"


def sentence(check: Check, judged: Judged) -> str:
    """What a check found, and what follows from it."""
    return f"{_facts(check, judged)}{_judgement(check, judged)}"


def found(check: Check, judged: Judged) -> str:
    """The number alone, with its interval."""
    if check.value is None or (isinstance(check.value, float) and math.isnan(check.value)):
        return MISSING
    write = _writer(check, judged)
    if check.interval is not None:
        between = interval(check.interval.low, check.interval.high, write.decimals) or MISSING
        return f"{predicted(signed(check.value, write.decimals), check.predicted)} ({between})"
    return _amount(check, check.value, write)


def limit(check: Check, judged: Judged) -> str:
    """The limit, as short as a table wants it."""
    if check.limit is None:
        return "none"
    if check.rule == "paired":
        return "yes"
    return _amount(check, check.limit, _writer(check, judged), of_limit=True)


def cautions(judged: Judged) -> list[str]:
    """What limits the comparison."""
    return list(_cautions(judged))


def site(change: SpecChange | RangeChange) -> str:
    """A site as people call it: its layer, its role, and the channel of a grid."""
    channel = getattr(change, "channel", None)
    return f"{change.layer} {change.role}" + ("" if channel is None else f" [{channel}]")


def spec_words(change: SpecChange) -> str:
    """What became of a site's spec."""
    if change.before is None:
        return "float before"
    if change.after is None:
        return "float now"
    return ", ".join(f"{name} {getattr(change.before, name)} → {getattr(change.after, name)}" for name in change.what)


def _facts(check: Check, judged: Judged) -> str:
    old, new = judged.old, judged.new
    if check.lacking:
        return check.lacking
    if check.interval is not None:
        return f"{_measure(check, old, new)} {_estimate(check, judged)}"
    if check.rule == "paired":
        images = check.images or 0
        return f"both were measured on the same {count(images, 'image')}" if images else "no image is common to both"
    if check.rule == "min_coverage":
        before = f", {_share(check.before)} before" if check.before is not None else ""
        left = f"; float are {_some(check.names)}" if check.names else ""
        return f"{_share(check.value)} of the MACs are quantized{before}{left}"
    if check.rule == "max_size_growth":
        return f"the weights take {si(old.bytes, 'B')} → {si(new.bytes, 'B')} ({_grown(check.value)})"
    if check.rule == "max_scale_change":
        return _range_facts(judged)
    if check.rule == "max_changed_specs":
        listed = "; ".join(f"{site(change)}: {spec_words(change)}" for change in judged.specs[:NAMED])
        more = f"; and {len(judged.specs) - NAMED} more" if len(judged.specs) > NAMED else ""
        return f"{count(len(judged.specs), 'site')} changed" + (f" ({listed}{more})" if listed else "")
    return _layer_facts(check, judged)


def _measure(check: Check, old: Candidate, new: Candidate) -> str:
    if check.rule == "max_noise_growth_db":
        return "noise over signal of the whole network changes by"
    metric = new.metric or old.metric or "the metric"
    if check.rule == "max_loss":
        return f"{metric} of {new.label} is worse than its own float network's by"
    return f"{metric} of {new.label} is worse than that of {old.label} by"


def _estimate(check: Check, judged: Judged) -> str:
    assert check.interval is not None
    write = _writer(check, judged)
    told = check.interval
    sure = "significant" if told.low > 0 or told.high < 0 else "not significant"
    between = f"{100 * told.level:.4g} % interval {interval(told.low, told.high, write.decimals) or MISSING}"
    images = check.images or 0
    over = f"paired over {count(images, 'image')}" if images else "each over its own images"
    over = "predicted by a screen, not run" if check.predicted else over
    return f"{write.amount(told.value)} ({between}, {over}; {sure})"


def _range_facts(judged: Judged) -> str:
    assert judged.ranges is not None
    worst = judged.ranges[0]
    same = sum(found.factor == 1.0 for found in judged.ranges)
    if worst.factor == 1.0:
        return f"all {count(len(judged.ranges), 'grid')} have the range they had"
    return (
        f"the range that changed most is {site(worst)}: {_span(worst.before)} → {_span(worst.after)}, a factor of "
        f"{significant(worst.factor)}; {same} of {len(judged.ranges)} sites are as they were"
    )


def _layer_facts(check: Check, judged: Judged) -> str:
    difference = judged.difference
    assert difference is not None
    layers, told = difference.layers, f"corrected for {count(judged.layers.looks, 'look')}" if judged.layers else ""
    better = ((layers["verdict"] == "better") | (layers["noise_verdict"] == "better")) & ~layers["name"].isin(
        list(check.names)
    )
    verbs = "loses more or is" if len(check.names) == 1 else "lose more or are"
    worse = f"{count(len(check.names), 'layer')} certainly {verbs} noisier" if check.names else ""
    listed = f": {_some(check.names)}" if check.names else "no layer certainly loses more or is noisier"
    return f"{worse}{listed} ({told}), {int(better.sum())} better, of {len(layers)}"


def _judgement(check: Check, judged: Judged) -> str:
    if check.finding == "not judged":
        return "; no limit is set"
    if check.finding == "unavailable":
        counted = "" if check.status == "skipped" else ', which counts as failed (unavailable = "fail")'
        return f"; so the limit cannot be judged{counted}"
    if check.rule == "paired":
        return "" if check.finding == "within" else ", and paired = true wants it"
    allowed = limit(check, judged)
    bound = f"at least {allowed}" if check.rule == "min_coverage" else f"at most {allowed}"
    if check.finding == "within":
        return f"; {bound} is kept"
    if check.finding == "beyond":
        return f"; {bound} is broken"
    needed = _needed(check)
    taken = "passed" if check.status == "passed" else "failed"
    told = f", about {needed} images could" if needed else ""
    return f"; {bound} can neither be confirmed nor denied by these images{told}: counted as {taken}"


def _needed(check: Check) -> int | None:
    """Images with which the same difference would decide: an interval narrows with the root of their number."""
    if check.interval is None or not check.images or check.limit is None:
        return None
    away = check.limit - check.interval.value
    reach = check.interval.high - check.interval.value if away > 0 else check.interval.value - check.interval.low
    if away == 0 or not math.isfinite(reach):
        return None
    wanted = check.images * (reach / away) ** 2
    return ceil(float(f"{wanted:.2g}"))


def _cautions(judged: Judged) -> Iterator[str]:
    old, new = judged.old, judged.new
    if judged.layers is not None and judged.difference is not None:
        yield from (line.replace("`", "") for line in comparison_cautions(judged.difference, judged.layers))
    else:
        if judged.only_old or judged.only_new:
            yield (
                f"Layers of one alone are not compared: {_some(judged.only_old) or 'none'} of {old.label}, "
                f"{_some(judged.only_new) or 'none'} of {new.label}."
            )
        if not any(check.images for check in judged.checks if check.rule == "paired"):
            yield "They were not paired image by image: a recipe says what its own proof came to, on its own images."
    if old.model != new.model and old.metric == new.metric and not math.isnan(old.float_value):
        write = _writer(judged.checks[0], judged)
        values = f"{write.value(old.float_value)} → {write.value(new.float_value)}"
        yield f"The float networks are not the same: {old.metric} {values}."


def _writer(check: Check, judged: Judged) -> Writer:
    """How the metric's values are written: as finely as the intervals at hand tell them."""
    if check.rule == "max_noise_growth_db":
        return Writer(2, "dB", judged.level)
    told = [c.interval for c in judged.checks if c.interval is not None and c.rule != "max_noise_growth_db"]
    unit = judged.old.unit or judged.new.unit
    low, high = (pd.Series([getattr(found, end) for found in told], dtype=float) for end in ("low", "high"))
    return Writer(interval_decimals(low, high, unit), unit, judged.level)


def _amount(check: Check, value: float, write: Writer, *, of_limit: bool = False) -> str:
    if check.rule == "min_coverage":
        return _share(value)
    if check.rule == "max_size_growth":
        return f"{100 * value:+.4g} %" if value else "+0 %"
    if check.rule == "max_scale_change":
        return f"{value:.4g}" if of_limit else significant(value)
    if check.rule in ("max_changed_layers", "max_changed_specs"):
        return f"{int(value)}"
    if check.rule == "paired":
        return count(int(value), "image")
    if not of_limit:
        return write.amount(value)
    return (
        f"{value:.4g} {write.unit.removesuffix('s') if value == 1 and write.unit == 'points' else write.unit}".rstrip()
    )


def _share(value: float | None) -> str:
    return MISSING if value is None else percent(value) if value < 0.9 else f"{fixed(100 * value, 2)} %"


def _grown(value: float | None) -> str:
    return "as before" if not value else f"{signed(100 * value, 1)} %"


def _span(ends: tuple[float, float]) -> str:
    return f"[{significant(ends[0])}, {significant(ends[1])}]"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
