"""Where the two regions of a piecewise grid should meet (PWLQ sections 3.2 and 5.1.1).

R grids (rows), n values in each; m the largest magnitude (R,), p the breakpoint (R,), F and f a symmetric
distribution function and its density. Every solver maps (sample, m, bits per piece) to p; all but the
three-stage search stay within (0, m / 2], where Lemma 1 makes the problem convex.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

from quantopsy.quant import piecewise
from quantopsy.quant.sample import Sample

Solver = Callable[[Sample, Tensor, int], Tensor]
Density = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]

_FEWEST = 1e-3  # of m: a breakpoint at zero would leave the inner region no width


def gaussian_approximation(sample: Sample, m: Tensor, _: int) -> Tensor:
    """PWG: ``p = sigma ln(0.8614 m' + 0.6079)``, m' = m / sigma.

    The paper prints the right-hand side as p / m; minimising its equation (5) shows that it is p in units
    of the standard deviation.
    """
    sigma = _spread(sample, m)
    return _within(sigma * torch.log(0.8614 * m / sigma + 0.6079), m)


def laplacian_approximation(sample: Sample, m: Tensor, _: int) -> Tensor:
    """PWL: ``p = sigma (0.8030 sqrt(m') - 0.3167)``, m' = m / sigma; see :func:`gaussian_approximation`."""
    sigma = _spread(sample, m)
    return _within(sigma * (0.8030 * (m / sigma).sqrt() - 0.3167), m)


def gaussian_bisection(sample: Sample, m: Tensor, _: int) -> Tensor:
    """The root of PWLQ equation (7) for a Gaussian of the data's standard deviation, cut off at m."""
    sigma = _spread(sample, m)
    return _within(sigma * bisect(m / sigma, GAUSSIAN), m)


def laplacian_bisection(sample: Sample, m: Tensor, _: int) -> Tensor:
    """The root of PWLQ equation (7) for a Laplacian of the data's standard deviation, cut off at m."""
    sigma = _spread(sample, m)
    return _within(sigma * bisect(m / sigma, LAPLACIAN), m)


def bisect(m: Tensor, density: Density) -> Tensor:
    """p in (0, m / 2] where ``p - 2m + 2m F(p) + m (2p - m) f(p)``, PWLQ equation (7) without its positive
    factor, changes sign. F and f are those of ``density``, of standard deviation 1, cut off at m."""
    cumulative, probability = density
    m = m.double()
    mass = 2 * cumulative(m) - 1
    low, high = torch.zeros_like(m), m / 2
    for _ in range(60):
        p = (low + high) / 2
        F, f = 0.5 + (cumulative(p) - 0.5) / mass, probability(p) / mass
        rising = p - 2 * m + 2 * m * F + m * (2 * p - m) * f > 0
        low, high = torch.where(rising, low, p), torch.where(rising, p, high)
    return (low + high) / 2


def empirical_minimum(sample: Sample, m: Tensor, _: int) -> Tensor:
    """The exact minimum over (0, m / 2] of PWLQ equation (4) with F the data's own distribution.

    Between neighbouring magnitudes F is constant, say a share G within [-p, p], and the error
    (m - p)^2 (1 - G) + p^2 G is a parabola with its minimum at p = m (1 - G): one candidate an interval.
    """
    magnitude, order = sample.values.abs().sort(1)
    if sample.weight is None:
        steps = torch.arange(1, magnitude.shape[1] + 1, dtype=torch.float64, device=magnitude.device)
        share = (steps / magnitude.shape[1]).expand_as(magnitude)
    else:
        share = sample.weight.gather(1, order).double().cumsum(1)
        share = share / share[:, -1:].clamp(min=1)
    m = m[:, None].double()
    start = torch.nn.functional.pad(magnitude.double(), (1, 0))
    end = torch.cat((start[:, 1:], m), 1)
    G = torch.nn.functional.pad(share, (1, 0))
    p = torch.minimum(torch.maximum(m * (1 - G), start), end)
    p = torch.minimum(p, m / 2)
    # Where an interval lies beyond m / 2 its G does not belong to the clipped p.
    error = torch.where(start <= m / 2, (m - p) ** 2 * (1 - G) + p**2 * G, torch.inf)
    return _within(p.gather(1, error.argmin(1, keepdim=True))[:, 0], m[:, 0])


def three_stage_search(sample: Sample, m: Tensor, bits: int) -> Tensor:
    """PWS: the p / m with the least squared quantization error on the data, in three stages:
    [0.1 : 0.1 : 1.0], then +-0.1 by 0.01, then +-0.01 by 0.001 (PWLQ section 5.1.1).

    As in the paper, the search reaches beyond m / 2, up to m.
    """
    unit = torch.linspace(-1, 1, 21, device=m.device)
    stages = (torch.arange(1, 11, device=m.device) / 10, 0.1 * unit, 0.01 * unit)
    best = torch.zeros_like(m)
    values, weight = sample.values, sample.weight
    rows = max(1, _TILE // values.shape[1])
    for start in range(0, len(m), rows):
        part = slice(start, start + rows)
        magnitude = values[part].abs()
        counts = None if weight is None else weight[part].to(magnitude.dtype)
        buffer = torch.empty_like(magnitude)
        ratio = best[part]
        for offsets in stages:
            candidates = (ratio[:, None] + offsets).clamp(_FEWEST, 1)
            errors = torch.stack(
                [_error(magnitude, counts, buffer, m[part], p, bits) for p in (candidates * m[part, None]).T],
                1,
            )
            ratio = candidates.gather(1, errors.argmin(1, keepdim=True))[:, 0]
        best[part] = ratio
    return best * m


# Values, so that a tile stays in the second-level cache over all candidates, and torch runs every operation
# on it in one thread: thousands of barriers between threads cost more than the second thread brings.
_TILE = 1 << 15


def _error(magnitude: Tensor, counts: Tensor | None, buffer: Tensor, m: Tensor, p: Tensor, bits: int) -> Tensor:
    """Sum of squared errors (R,) of the grid with breakpoint ``p`` (R,); ``buffer`` is overwritten."""
    inner, outer = (scale[:, None] for scale in piecewise.scales(m, p, bits))
    ratio = piecewise.step_ratio(inner, outer)
    piecewise.snap_tile(buffer, magnitude, inner, ratio, outer, least=0, most=2**bits - 1)
    buffer.sub_(magnitude)
    return torch.linalg.vecdot(buffer, buffer if counts is None else buffer * counts)


def _spread(sample: Sample, m: Tensor) -> Tensor:
    """Root mean square: the standard deviation about zero, where the grid has its middle."""
    square = sample.mean(sample.values.double() ** 2)
    return torch.where(square > 0, square.sqrt(), 1.0).to(m.dtype)


def _within(p: Tensor, m: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(p, _FEWEST * m), m / 2)


GAUSSIAN: Density = (
    torch.special.ndtr,
    lambda x: torch.exp(-(x**2) / 2) / sqrt(2 * torch.pi),
)
LAPLACIAN: Density = (
    lambda x: 1 - torch.exp(-sqrt(2) * x) / 2,  # for x >= 0, which is all that is asked
    lambda x: torch.exp(-sqrt(2) * x) / sqrt(2),
)

SOLVERS: dict[str, Solver] = {
    "pws": three_stage_search,
    "pwg": gaussian_approximation,
    "pwl": laplacian_approximation,
    "gaussian_bisection": gaussian_bisection,
    "laplacian_bisection": laplacian_bisection,
    "empirical": empirical_minimum,
}
