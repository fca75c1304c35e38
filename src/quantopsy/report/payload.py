"""What the page's script draws, as plain JSON values: measured numbers, and their text where words need it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from quantopsy.analysis.results import Distribution, Results
from quantopsy.report.distributions import histogram_of, ranges_of
from quantopsy.report.grid import cell_text, degradation_limit, noise_limits, sqnr_text
from quantopsy.report.sections import sections
from quantopsy.report.tables import headline_bits, ranked
from quantopsy.report.wording import (
    BEYOND_LINEAR,
    SCREENED,
    cell_interval,
    cell_verdict,
    confidence,
    degradation_decimals,
    degradation_unit,
    drawn,
    fixed,
    percent,
    predicted,
    shape,
    si,
    significant,
    with_interval,
)


def payload(results: Results) -> dict[str, Any]:
    """All that the interactive part of the page needs; no value is NaN or infinite."""
    bottom, top = noise_limits(results)
    limit = degradation_limit(results)
    places = max(0, -math.floor(math.log10(limit)))
    return {
        "metric": results.metric,
        "unit": degradation_unit(results),
        "suffix": f" {results.unit}" if results.unit else "",
        "bits": sorted(results.bits, reverse=True),
        "start": _start(results),
        "limits": {
            "degradation": [fixed(-limit, places), "0", f"{fixed(limit, places)} or more"],
            "noise": [significant(10**power, 2) for power in (bottom, (bottom + top) / 2, top)],
        },
        "robust": results.unit != "points",
        "layers": [_layer(row, results) for _, row in results.layers.iterrows()],
        "cells": _cells(results, limit, bottom, top),
        "level": confidence(results),
        "screened": SCREENED,
        "rough": BEYOND_LINEAR,
        "charts": {name: chart.to_json() for section in sections(results) for name, chart in section.by_id.items()},
    }


def _start(results: Results) -> dict[str, int]:
    """The bit-width and the layer that the page opens with: the worst where the verdict begins."""
    bits = headline_bits(results)
    worst = ranked(results, bits)
    first = worst["layer"].iloc[0] if len(worst) else results.layers["layer"].iloc[0]
    return {"bits": bits, "layer": int(first)}


def _layer(row: pd.Series, results: Results) -> dict[str, Any]:
    return {
        "layer": int(row["layer"]),
        "name": str(row["name"]),
        "op": str(row["op"]),
        "activation": _text(row["activation"]),
        "source": _text(row["source"]),
        "weight": _shape(row["weight_shape"]),
        "output": _shape(row["output_shape"]),
        "macs": drawn(row["macs"]),
        "macs_text": si(float(row["macs"])),
        "parameters": si(float(row["parameters"])),
        **_distribution(results.distributions.get(row["name"], Distribution())),
    }


def _distribution(distribution: Distribution) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "ranges": [
            {"edge": edge, "low": low, "high": high, "text": f"{significant(low)} to {significant(high)}"}
            for edge, low, high in ranges_of(distribution)
        ]
    }
    histogram = histogram_of(distribution)
    if histogram is not None:
        shown["histogram"] = {
            "edges": _numbers(distribution.weight_edges),
            "counts": _numbers(histogram.counts),
            "low": histogram.low,
            "high": histogram.high,
            "ends": [significant(histogram.low), significant(histogram.high)],
            "text": (
                f"The central 99 % of the weights take up {percent(histogram.central_share)} of the range from "
                f"{significant(histogram.low)} to {significant(histogram.high)}."
            ),
        }
    low, high = distribution.channel_low, distribution.channel_high
    if low is not None and high is not None and len(low):
        shown["channels"] = {
            "low": _numbers(low),
            "high": _numbers(high),
            "ends": [significant(float(np.min(low))), significant(float(np.max(high)))],
            "text": _channel_text(np.asarray(low, dtype=float), np.asarray(high, dtype=float)),
        }
    return shown


def _channel_text(low: np.ndarray, high: np.ndarray) -> str:
    reach = np.maximum(np.abs(low), np.abs(high))
    widest, median = int(reach.argmax()), float(np.median(reach))
    if median == 0:
        return f"Channel {widest} of {len(reach)} reaches farthest, to {significant(float(reach[widest]))}."
    return (
        f"Channel {widest} of {len(reach)} reaches farthest, to {significant(float(reach[widest]))}: "
        f"{significant(float(reach[widest]) / median, 2)} times the median channel's {significant(median)}."
    )


def _cells(results: Results, limit: float, bottom: float, top: float) -> list[dict[str, Any]]:
    decimals = degradation_decimals(results)
    return [
        {
            "layer": int(cell["layer"]),
            "bits": int(bits),
            "rank": rank,
            "noise": drawn(cell["noise"]),
            "stderr": drawn(cell["noise_stderr"]),
            "degradation": drawn(cell["degradation"]),
            "low": drawn(cell["degradation_low"]),
            "high": drawn(cell["degradation_high"]),
            "sqnr": drawn(cell["sqnr_db"]),
            "share": drawn(cell["noise_share"]),
            "agreement": drawn(cell["agreement"]),
            "samples": drawn(cell["samples"]),
            "guilty": bool(cell["guilty"]),
            "improves": bool(cell["improves"]),
            "screened": bool(cell["screened"]),
            "rough": bool(cell["rough"]),
            "tint": _clipped(cell["degradation"] / limit),
            "noise_tint": _noise_tint(cell["noise"], bottom, top),
            "texts": {
                "cell": cell_text(cell["degradation"], limit),
                "noise_cell": sqnr_text(cell["sqnr_db"]),
                "degradation": predicted(fixed(cell["degradation"], decimals), cell["screened"]),
                "interval": cell_interval(cell, decimals),
                "lost": predicted(
                    with_interval(cell["degradation"], cell["degradation_low"], cell["degradation_high"], decimals),
                    cell["screened"],
                ),
                "noise": predicted(significant(cell["noise"]), cell["screened"]),
                "stderr": significant(cell["noise_stderr"], 2),
                "sqnr": sqnr_text(cell["sqnr_db"]),
                "share": percent(cell["noise_share"]),
                "agreement": fixed(100 * cell["agreement"], 1),
                "verdict": cell_verdict(cell),
                "method": str(cell["method"]) + (", rough" if cell["rough"] else ""),
            },
        }
        for bits in results.bits
        for rank, (_, cell) in enumerate(ranked(results, bits).iterrows())
    ]


def _noise_tint(noise: float, bottom: float, top: float) -> float | None:
    if not math.isfinite(noise):
        return None
    return 0.0 if noise <= 0 else max(0.0, _clipped((math.log10(noise) - bottom) / (top - bottom)) or 0.0)


def _clipped(share: float) -> float | None:
    return round(min(1.0, max(-1.0, float(share))), 3) if math.isfinite(share) else None


def _numbers(values: np.ndarray | None) -> list[float | None]:
    return [] if values is None else [drawn(value) for value in np.asarray(values, dtype=float)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _shape(sizes: Any) -> str:
    return shape(tuple(sizes)) if isinstance(sizes, list | tuple) else ""
