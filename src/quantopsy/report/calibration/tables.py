"""The tables of a study of a calibration set, as text: the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from quantopsy.analysis.calibration.growth import chance
from quantopsy.analysis.calibration.result import CalibrationStudy
from quantopsy.report.calibration.words import decimals, share
from quantopsy.report.wording import fixed, percent, significant

Rows = tuple[tuple[str, ...], list[tuple[str, ...]], str]
"""Headings, rows, and what they mean."""

_STARS = {"evaluation": "*"}


def size_rows(study: CalibrationStudy) -> Rows:
    """A row per size: coverage, held-out images beyond, metric and noise, medians with extremes over draws."""
    rows: list[tuple[str, ...]] = []
    for (source, size), draws in study.growth.groupby(["source", "size"], sort=False):
        rows.append(
            (
                f"{_STARS.get(str(source), '')}{size}",
                _two(percent, draws["coverage"].median(), draws["coverage_worst"].min()),
                _two(share, draws["beyond"].median(), active_ends(study) * chance(int(str(size)))),
                _over_draws(draws["value"], lambda value: fixed(value, decimals(study))),
                _over_draws(draws["noise"], lambda value: significant(value, 2)),
            )
        )
    note = (
        "ranges: share of the range of all, the median activation's / the worst of any draw; beyond: held-out images "
        "outside a range / what chance makes of it; metric and noise where they were run, with extremes over draws"
    )
    if (study.growth["source"] == "evaluation").any():
        note += "; *: so many of the evaluation images, against all of them"
    return ("images", "ranges", "beyond", study.metric, "noise"), rows, note


def active_ends(study: CalibrationStudy) -> float:
    """How many ends of an activation's range are not zero, on average."""
    table = study.activations
    return float(((table["low"] < 0).astype(float) + (table["high"] > 0)).mean())


def _two(text: Callable[[float], str], first: float, second: float) -> str:
    """``a / b %``."""
    return f"{text(first).removesuffix(' %')} / {text(second)}"


def _over_draws(values: pd.Series, text: Callable[[float], str]) -> str:
    values = values.dropna()
    if values.empty:
        return ""
    if len(values) == 1:
        return text(values.iloc[0])
    return f"{text(values.median())} ({text(values.min())} to {text(values.max())})"


def activation_rows(study: CalibrationStudy) -> Rows:
    """A row per activation, those that clip most first."""
    rows: list[tuple[str, ...]] = [
        (
            str(row["activation"]),
            f"{significant(row['low'], 2)} to {significant(row['high'], 2)}",
            share(row["share"]),
            _two(share, row["images"], row["expected"]),
            share(row["excess"]),
            share(row["unused"]),
        )
        for row in study.activations.to_dict("records")
    ]
    note = (
        "clipped: of the values of held-out images; images: beyond the range / what chance makes of it; furthest: "
        "beyond the range, in units of it; unused: of the range by held-out images"
    )
    return ("activation", "range", "clipped", "images", "furthest", "unused"), rows, note


def channel_rows(study: CalibrationStudy) -> Rows:
    """A row per channel of each input, calibration / evaluation images."""
    rows: list[tuple[str, ...]] = []
    for shift in study.shifts:
        for index, channel in enumerate(shift.channels):
            name = f"{shift.name} {index}" if len(study.shifts) > 1 else str(index)
            pairs = (channel.low, channel.high, channel.mean, channel.std)
            rows.append((name, *(f"{significant(mine, 3)} / {significant(theirs, 3)}" for mine, theirs in pairs)))
    swapped = any(shift.order is not None and shift.order.swapped and not shift.order.before for shift in study.shifts)
    note = "least and greatest value of the set; medians of the images' means and standard deviations"
    if swapped:
        note += "; the calibration images' channels are put right first"
    return ("channel", "least", "greatest", "mean", "std"), rows, note
