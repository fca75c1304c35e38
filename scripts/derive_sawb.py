"""Derives the coefficients of statistics-aware weight binning (SAWB, Choi et al. 2018).

    python scripts/derive_sawb.py

For each bit-width: the clip alpha with the least squared error for six standard distributions, on the 2^b
levels that divide [-alpha, alpha] evenly, and a line through

    alpha / E|w| = c1 sqrt(E[w^2]) / E|w| - c2.

The paper names the distributions (Gaussian, Laplace, uniform, logistic, triangle, von Mises) but not the
concentration of the last; 0.5 comes nearest to the published pairs.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

# Each with the end of its support, or where its tail no longer counts.
DISTRIBUTIONS = (
    (stats.norm(), 8.0),
    (stats.laplace(), 30.0),
    (stats.uniform(-1, 2), 1.0),
    (stats.logistic(), 35.0),
    (stats.triang(0.5, -1, 2), 1.0),
    (stats.vonmises(0.5), np.pi),
)
_POINTS = 40_000


def squared_error(x: np.ndarray, mass: np.ndarray, alpha: float, bits: int) -> float:
    """Of the levels +-alpha (2 k + 1) / (2^b - 1), for a symmetric distribution: ``mass`` at ``x`` > 0."""
    step = 2 * alpha / (2**bits - 1)
    nearest = np.minimum(np.floor(x / step) + 0.5, 2 ** (bits - 1) - 0.5) * step
    return float(mass @ (nearest - x) ** 2)


def optimum(distribution: stats.rv_continuous, end: float, bits: int) -> tuple[float, float]:
    """(sqrt(E[w^2]) / E|w|, best alpha / E|w|)."""
    x = (np.arange(_POINTS) + 0.5) / _POINTS * end
    mass = distribution.pdf(x)
    mass /= mass.sum()
    mean = float(mass @ x)
    grid = np.linspace(0.8, 24, 160) * mean
    nearest = int(np.argmin([squared_error(x[::8], mass[::8], alpha, bits) for alpha in grid]))
    bounds = grid[max(nearest - 1, 0)], grid[min(nearest + 1, len(grid) - 1)]
    best = optimize.minimize_scalar(lambda alpha: squared_error(x, mass, alpha, bits), bounds=bounds, method="bounded")
    return float(np.sqrt(mass @ x**2)) / mean, float(best.x) / mean


def coefficients(bits: int) -> tuple[float, float]:
    """(c1, c2)."""
    ratios, clips = zip(*(optimum(distribution, end, bits) for distribution, end in DISTRIBUTIONS), strict=True)
    slope, intercept = np.polyfit(ratios, clips, 1)
    return float(slope), -float(intercept)


if __name__ == "__main__":
    for bits in range(2, 9):
        c1, c2 = coefficients(bits)
        print(f"    {bits}: ({c1:.3f}, {c2:.3f}),")
