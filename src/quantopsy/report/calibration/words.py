"""What a study of a calibration set found, in sentences: the verdict first, then what speaks for it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from quantopsy.analysis.calibration.result import TWICE, CalibrationStudy
from quantopsy.analysis.calibration.shift import FALSE_ALARM, Channel, Shift
from quantopsy.report.wording import MINUS, capital, count, fixed, interval, percent, significant

_NAMED = 5
"""Images and layers named in a sentence; the document has all."""

_SAME_GAIN = 0.1
"""Gains that differ from 1 by less than this are one: sets of images differ in contrast by as much."""


def lead(study: CalibrationStudy) -> str:
    """The verdict in a sentence."""
    images = count(study.images, "calibration image")
    verdict = study.verdict
    if verdict.kind == "enough":
        of = "all are needed" if verdict.needed is None else f"{verdict.needed} of them would do"
        return f"The {images} are enough: {of}."
    if verdict.kind == "too few":
        if verdict.needed is not None:
            return f"The {images} are too few: {verdict.needed} like the evaluation images would do."
        return f"The {images} are too few: give at least {2 * study.distinct}, better ten times as many."
    kind = "wrong" if verdict.kind == "wrong" else "different, without a measurable effect"
    return f"The {images} are {kind}: {differences(study)[0]}."


def statements(study: CalibrationStudy) -> list[str]:
    """What was found, most important first, without the lead."""
    return [
        *(f"{capital(reason)}." for reason in differences(study)[1:]),
        *_growth_sentences(study),
        _cost_sentence(study),
        *_cleaned_sentences(study),
        _clipping_sentence(study),
        *_selection_sentences(study),
        _alarms_sentence(study),
    ]


def cautions(study: CalibrationStudy) -> list[str]:
    """What to know besides: images that are there twice, are blank, or could not be read."""
    found, most = study.duplicates, _NAMED
    said = []
    if study.bad:
        said.append(
            f"{count(len(study.bad), 'image')} cannot be read or holds NaN, and was left out: "
            f"{_listed(study.bad, most)}."
            if len(study.bad) == 1
            else f"{len(study.bad)} images cannot be read or hold NaN, and were left out: {_listed(study.bad, most)}."
        )
    if found.equal:
        twice = sum(len(group) for group in found.equal)
        said.append(
            f"{twice} images are there more than once ({_pairs(study, found.equal)}): only {study.distinct} of "
            f"{study.images} differ."
        )
    if found.near:
        alike = sum(len(group) for group in found.near)
        said.append(
            f"{alike} images are nearly the same by what they do to the activations ({_pairs(study, found.near)}): "
            f"they count as {len(found.near)}."
        )
    for images, what in ((found.shared, "are"), (found.nearly_shared, "are, but for little,")):
        if images:
            said.append(
                f"{count(len(images), 'calibration image')} {what if len(images) > 1 else what.replace('are', 'is')} "
                f"among the evaluation images ({image_names(study, images)}): they are not held out."
            )
    if study.outliers.blank:
        said.append(
            f"{count(len(study.outliers.blank), 'image')} of one colour only: "
            f"{image_names(study, study.outliers.blank)}."
        )
    harmless = study.verdict.kind != "wrong" or not _outliers_matter(study)
    if study.outliers.images and harmless:
        said.append(
            f"{count(len(study.outliers.images), 'image')} unlike the evaluation images, though of little effect on "
            f"the ranges: {image_names(study, study.outliers.images)}."
        )
    if any(shift.order is not None and not shift.order.known for shift in study.shifts):
        said.append("The evaluation images do not tell one order of channels from another: RGB or BGR is not checked.")
    if study.evaluation < 50:
        said.append(
            f"{count(study.evaluation, 'evaluation image')}: below 50, outliers and near-duplicates are not looked for."
        )
    return said


def differences(study: CalibrationStudy) -> list[str]:
    """In what the images differ from the evaluation images, a clause each; empty where they do not."""
    reasons = [clause for shift in study.shifts for clause in shift_clauses(shift, len(study.shifts) > 1)]
    if _outliers_matter(study):
        reasons.append(_outliers_clause(study))
    if not reasons and not study.beyond.empty:
        reasons.append(_beyond_clause(study))
    return reasons


def shift_clauses(shift: Shift, named: bool) -> list[str]:
    """How the calibration images of an input differ as a whole; ``named``: there are other inputs."""
    of = f" of input `{shift.name}`" if named else ""
    clauses = []
    if shift.order is not None and shift.order.swapped:
        channels = shift.order.channels
        when = {True: " before", False: " after", None: " before or after"}[shift.order.before]
        reverse = channels == tuple(range(len(channels)))[::-1]
        what = "in reverse (BGR for RGB)" if reverse else f"in the order {', '.join(map(str, channels))}"
        clauses.append(f"the channels{of} are {what}, swapped{when} normalising (p {_p(shift.order.p_value)})")
    if shift.range_differs or (shift.location_differs and not clauses):
        clauses.append(_affine_clause(shift.channels, of))
    return clauses


def _affine_clause(channels: tuple[Channel, ...], of: str) -> str:
    mine = min(channel.low[0] for channel in channels), max(channel.high[0] for channel in channels)
    theirs = min(channel.low[1] for channel in channels), max(channel.high[1] for channel in channels)
    values = f"values{of} lie in {_range(*mine)}, those of the evaluation images in {_range(*theirs)}"
    p = _p(min(channel.range_p for channel in channels))
    if not any(channel.range_p < FALSE_ALARM for channel in channels):
        loudest = max(channels, key=lambda channel: abs(channel.brighter - 0.5) + abs(channel.wider - 0.5))
        return (
            f"images{of} are {_unlike(loudest)} than the evaluation images (mean {_number(loudest.mean[0])} against "
            f"{_number(loudest.mean[1])}, standard deviation {_number(loudest.std[0])} against "
            f"{_number(loudest.std[1])}, p {_p(loudest.location_p)})"
        )
    same = all(abs(channel.gain - 1.0) < _SAME_GAIN for channel in channels)
    if same:
        offsets = ", ".join(_number(channel.offset) for channel in channels)
        return f"a wrong mean: {values}, shifted by about {offsets} (p {p})"
    for scale, name in (((0.0, 255.0), "not normalised"), ((0.0, 1.0), "scaled to 0..1 but not normalised")):
        if _within(mine, scale) and not _within(theirs, scale):
            return f"{name}: {values} (p {p})"
        if _within(theirs, scale) and not _within(mine, scale):
            return f"normalised where the evaluation images are not: {values} (p {p})"
    gains = ", ".join(_number(channel.gain) for channel in channels)
    return f"a wrong scale: {values}, {gains} times theirs (p {p})"


def _within(ends: tuple[float, float], scale: tuple[float, float]) -> bool:
    """Whether ``ends`` are those of ``scale``, filled by more than half."""
    return ends[0] >= scale[0] and scale[1] / 2 < ends[1] <= scale[1]


def _unlike(channel: Channel) -> str:
    if abs(channel.brighter - 0.5) >= abs(channel.wider - 0.5):
        return "brighter" if channel.brighter > 0.5 else "darker"
    return "richer in contrast" if channel.wider > 0.5 else "poorer in contrast"


def _outliers_matter(study: CalibrationStudy) -> bool:
    return study.outliers.factor >= math.sqrt(TWICE)


def _outliers_clause(study: CalibrationStudy) -> str:
    outliers = study.outliers
    images = outliers.images
    many = len(images) > 1
    them = image_names(study, images)
    alone = len({setter.activation for setter in outliers.setters})
    sets = f" and set{'' if many else 's'} the range of {count(alone, 'activation')} alone" if alone else ""
    return (
        f"{count(len(images), 'image')}, {them}, {'are' if many else 'is'} unlike the evaluation images{sets}; "
        f"`{outliers.widest}` gets {significant(outliers.factor, 2)} times its range"
    )


def _beyond_clause(study: CalibrationStudy) -> str:
    beyond = study.beyond
    worst = beyond.loc[beyond["p"].idxmin()]
    others = f" and {count(len(beyond) - 1, 'other activation')}" if len(beyond) > 1 else ""
    if worst["images"] > worst["expected"]:
        return (
            f"{share(worst['images'])} of the evaluation images lie beyond the range of `{worst['activation']}`"
            f"{others}, where chance puts {share(worst['expected'])} (p {_p(worst['p'])})"
        )
    return (
        f"{share(worst['unused'])} of the range of `{worst['activation']}`{others} is used by no evaluation image "
        f"(p {_p(worst['p'])})"
    )


def _growth_sentences(study: CalibrationStudy) -> list[str]:
    run = study.growth[study.growth["value"].notna()]
    needed, source = study.verdict.needed, study.verdict.source
    what = f"{tolerance(study)} of {study.metric}"
    said = []
    if needed is not None:
        of = "all of them" if source == "calibration" else "all evaluation images"
        rows = run[(run["source"] == source) & (run["size"] == needed)]
        said.append(
            f"From {count(needed, 'image')} on, none of {len(rows)} draws certainly loses more than {what}, or has "
            f"more than twice the noise, against the ranges of {of}: the worst loses "
            f"{_lost(study, rows['loss'].max())}, and ranges cover {percent(rows['coverage'].median())} of those "
            f"(median; the worst activation {percent(rows['coverage_worst'].median())})."
        )
    failed = run[(run["source"] == "calibration") & (run["size"] < (needed or math.inf))]
    failed = failed[failed["size"] < study.distinct]
    if not failed.empty and (needed is None or source == "evaluation" or study.verdict.kind == "enough"):
        rows = failed[failed["size"] == failed["size"].max()]
        whole = study.cleaned or study.given
        said.append(
            f"With {count(int(rows['size'].iloc[0]), 'image')} the draws lose {_spread(study, rows)}, their noise is "
            f"{significant(rows['noise'].min() / whole.noise, 2)} to "
            f"{significant(rows['noise'].max() / whole.noise, 2)} times that with all."
        )
    return said


def _cost_sentence(study: CalibrationStudy) -> str:
    cost = study.cost
    return (
        f"Against ranges of the evaluation images themselves they cost {_lost(study, cost.value)} of {study.metric} "
        f"({100 * study.level:g} % interval {interval(cost.low, cost.high, decimals(study))}) and make "
        f"{significant(study.noise_ratio, 2)} times the noise; with them {study.metric} is "
        f"{fixed(study.given.value, decimals(study))}, in float {fixed(study.float_value.value, decimals(study))}."
    )


def _cleaned_sentences(study: CalibrationStudy) -> list[str]:
    if study.cleaned is None:
        return []
    return [
        f"Without {image_names(study, study.outliers.images)} {study.metric} is "
        f"{fixed(study.cleaned.value, decimals(study))} instead of {fixed(study.given.value, decimals(study))} and the "
        f"noise {significant(study.cleaned.noise / study.given.noise, 2)} times."
    ]


def _clipping_sentence(study: CalibrationStudy) -> str:
    table = study.activations
    images, expected = table["images"].mean(), table["expected"].mean()
    worst = table.iloc[0]
    said = f"An activation's range leaves out {share(images)} of the evaluation images, where chance leaves out "
    said += f"{share(expected)}"
    if worst["share"] <= 0:
        return f"{said}; no value of them is clipped."
    return (
        f"{said}; most values are clipped of `{worst['activation']}`: {share(worst['share'])}, at most by "
        f"{share(worst['excess'])} of its range."
    )


def _selection_sentences(study: CalibrationStudy) -> list[str]:
    chosen = study.selection
    if chosen is None:
        return []
    noise = pd.Series([outcome.noise for outcome in chosen.random])
    lost = pd.Series([outcome.loss.value for outcome in chosen.random])
    return [
        f"{count(len(chosen.images), 'selected image')} ({chosen.method}) reach{'es' * (len(chosen.images) == 1)} "
        f"{percent(chosen.coverage)} of the ranges (median; the worst activation {percent(chosen.coverage_worst)}), as "
        f"many random ones {percent(chosen.random_coverage)} ({percent(chosen.random_coverage_worst)}); they lose "
        f"{_lost(study, chosen.outcome.loss.value)} of {study.metric} against all images, random ones "
        f"{_lost(study, lost.median())} ({interval(lost.min(), lost.max(), decimals(study))}); their noise is "
        f"{significant(chosen.outcome.noise / _whole_noise(study), 2)} times that of all, that of random ones "
        f"{significant(noise.median() / _whole_noise(study), 2)}."
    ]


def _whole_noise(study: CalibrationStudy) -> float:
    return (study.cleaned or study.given).noise


def _alarms_sentence(study: CalibrationStudy) -> str:
    checks = "value range, brightness and contrast, order of channels, activations, odd images, images that set a range"
    result = "An alarm of a kind" if differences(study) else "Nothing else was found; an alarm of a kind"
    return f"Tested: {checks}, duplicates. {result} comes by chance in at most one of a hundred right sets."


def image_names(study: CalibrationStudy, images: Iterable[int]) -> str:
    """``3``, ``17`` and 2 others."""
    return _listed([study.names[image] for image in images], _NAMED)


def _pairs(study: CalibrationStudy, groups: tuple[tuple[int, ...], ...]) -> str:
    shown = ", ".join(" = ".join(f"`{study.names[image]}`" for image in group[:3]) for group in groups[:2])
    return shown + (", ..." if len(groups) > 2 or any(len(group) > 3 for group in groups[:2]) else "")


def _listed(names: Iterable[str], most: int) -> str:
    names = list(names)
    shown = [f"`{name}`" for name in names[:most]]
    if len(names) > most:
        return ", ".join(shown) + f" and {len(names) - most} others"
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + f" and {shown[-1]}"


def share(value: float) -> str:
    """A share in percent with two significant digits, down to a thousandth of a percent."""
    return f"{significant(100 * value, 2)} %" if value == 0 or abs(value) >= 1e-5 else "<0.001 %"


def decimals(study: CalibrationStudy) -> int:
    """Decimals of the metric, by the width of its interval."""
    half = (study.cost.high - study.cost.low) / 2
    if study.unit == "points":
        return 1 if half >= 0.1 else 2
    return max(1, min(6, 1 - math.floor(math.log10(half)))) if half > 0 else 3


def tolerance(study: CalibrationStudy) -> str:
    """The loss that is accepted, with its unit."""
    unit = study.unit.removesuffix("s" * (study.tolerance == 1))
    return f"{significant(study.tolerance, 2).removesuffix('.0')} {unit}".strip()


def _lost(study: CalibrationStudy, value: float) -> str:
    return f"{fixed(value, decimals(study))} {study.unit}".strip()


def _spread(study: CalibrationStudy, rows: pd.DataFrame) -> str:
    ends = [fixed(end, decimals(study)) for end in (rows["loss"].min(), rows["loss"].max())]
    if all(float(end.replace(MINUS, "-")) == 0 for end in ends):
        return f"next to nothing of {study.metric}"
    return f"{' '.join(filter(None, [' to '.join(ends), study.unit]))} of {study.metric}"


def _range(low: float, high: float) -> str:
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return significant(value, 3)


def _p(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else significant(value, 1)
