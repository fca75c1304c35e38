"""Expected squared errors of quantization for a known distribution (PWLQ sections 3.1 and 3.2).

m largest magnitude, p breakpoint, b bits (of each piece, for piecewise), F cumulative distribution function;
all in the units of the data, the errors in their square.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Real = TypeVar("Real", float, Tensor)


def step_error(bits: int) -> float:
    """``C(b) = 1 / (12 (2^b - 1)^2)``: the squared error of ``bits`` over a range of 1."""
    return 1 / (12 * (2**bits - 1) ** 2)


def uniform_error(bits: int, low: Real, high: Real) -> Real:
    """PWLQ equation (2): ``C(b) (high - low)^2``."""
    return (high - low) ** 2 * step_error(bits)


def piecewise_error(bits: int, m: Real, p: Real, F: Callable[[Real], Real]) -> Real:
    """PWLQ equation (4): ``C(b) {(m - p)^2 [F(-p) + 1 - F(p)] + p^2 [F(p) - F(-p)]}``."""
    outside, inside = F(-p) + 1 - F(p), F(p) - F(-p)
    return ((m - p) ** 2 * outside + p**2 * inside) * step_error(bits)


def symmetric_piecewise_error(bits: int, m: Real, p: Real, F: Callable[[Real], Real]) -> Real:
    """PWLQ equation (5), for F(-r) = 1 - F(r): ``C(b) {(m - p)^2 + m (2p - m) [2 F(p) - 1]}``."""
    return ((m - p) ** 2 + m * (2 * p - m) * (2 * F(p) - 1)) * step_error(bits)
