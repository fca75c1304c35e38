"""The sweep as arrays: a row per bit-width, a column per layer, and how far its colours reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantopsy.analysis.results import Results
from quantopsy.report.tables import with_marks
from quantopsy.report.wording import INFINITY, fixed

POINTS_LIMIT = 5.0
"""Degradation at which colour saturates when the metric is in points (Figure 3 of the layer-wise paper)."""


@dataclass(frozen=True)
class Grid:
    """Arrays of shape (R rows of bits, L layers): NaN (or False) where a cell was not measured.

    The finest bit-width is the first row, as columns of numbers read: harm grows downwards.
    """

    bits: tuple[int, ...]
    layers: tuple[int, ...]
    names: tuple[str, ...]
    degradation: np.ndarray
    degradation_low: np.ndarray
    degradation_high: np.ndarray
    noise: np.ndarray
    noise_stderr: np.ndarray
    sqnr_db: np.ndarray
    screened: np.ndarray
    rough: np.ndarray  # screened with too much noise for a first-order prediction


def grid(results: Results) -> Grid:
    """The cells of ``results`` arranged by bit-width and topological order."""
    rows = sorted(results.bits, reverse=True)
    columns = results.layers["layer"].tolist()

    cells = with_marks(results.cells)

    def column(name: str) -> np.ndarray:
        table = cells.pivot(index="bits", columns="layer", values=name)
        return table.reindex(index=rows, columns=columns).to_numpy(dtype=float)

    return Grid(
        bits=tuple(rows),
        layers=tuple(columns),
        names=tuple(results.layers["name"].tolist()),
        degradation=column("degradation"),
        degradation_low=column("degradation_low"),
        degradation_high=column("degradation_high"),
        noise=column("noise"),
        noise_stderr=column("noise_stderr"),
        sqnr_db=column("sqnr_db"),
        screened=column("screened") == 1,
        rough=column("rough") == 1,
    )


def degradation_limit(results: Results) -> float:
    """Degradation at which colour saturates: 5 points; without points, a robust scale.

    That is the 95th percentile of the absolute degradations, rounded up to 1, 2 or 5 times a power of
    ten, so that one guilty layer does not wash out the rest.
    """
    if results.unit == "points":
        return POINTS_LIMIT
    size = np.abs(results.cells["degradation"].to_numpy(dtype=float))
    size = size[np.isfinite(size)]
    reach = float(np.percentile(size, 95)) if size.size else 0.0
    if reach <= 0:
        reach = float(size.max()) if size.size and size.max() > 0 else 1.0
    power = 10.0 ** math.floor(math.log10(reach))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= reach * (1 - 1e-9))


def noise_limits(results: Results) -> tuple[float, float]:
    """log10 of the noise at which colour begins and ends: at most eight decades below the largest."""
    noise = results.cells["noise"].to_numpy(dtype=float)
    noise = noise[np.isfinite(noise) & (noise > 0)]
    if noise.size == 0:
        return (0.0, 1.0)
    top = math.log10(noise.max())
    bottom = max(math.log10(noise.min()), top - 8)
    return (bottom, top if top > bottom else bottom + 1)


def cell_text(value: float, limit: float) -> str:
    """A degradation short enough for a cell: decimals as the colours resolve, none from twice the limit."""
    if not math.isfinite(value):
        return ""
    decimals = max(0, 1 - math.floor(math.log10(limit)))
    if abs(value) >= 2 * limit:
        decimals = max(0, decimals - 1)
    text = fixed(value, decimals)
    return "0" if float(f"{value:.{decimals}f}") == 0 else text


def sqnr_text(value: float) -> str:
    """An SQNR in whole dB for a cell; infinite where there is no noise."""
    if math.isnan(value):
        return ""
    return INFINITY if math.isinf(value) else fixed(value, 0)
