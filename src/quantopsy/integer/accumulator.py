"""Accumulators of a given width: what they hold of an exact sum, and how often that is not the sum.

Whether a sum fits is judged on the whole sum, bias included. For wrapping that is all there is to know: additions
modulo 2^bits may be made in any order. A saturating accumulator depends on the order of its additions; ours cuts the
whole sum, so what only partial sums exceed does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from quantopsy.core import QuantopsyError

Overflow = Literal["wrap", "saturate"]
MIN_BITS, MAX_BITS = 8, 48


@dataclass(frozen=True)
class Accumulated:
    """``sums`` (int64) as an accumulator held them, ``overflows`` of them wrongly; ``bits`` would hold all."""

    sums: Tensor
    overflows: int
    bits: int


@dataclass(frozen=True)
class Accumulator:
    """A signed register of ``bits``, in two's complement, that wraps or saturates where a sum does not fit."""

    bits: int = 32
    overflow: Overflow = "wrap"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise QuantopsyError(
                f"accumulator of {self.bits!r} bits", "not a width", f"give {MIN_BITS} to {MAX_BITS}, such as 32"
            )
        if self.overflow not in ("wrap", "saturate"):
            raise QuantopsyError(f"overflow {self.overflow!r}", "there is none of that name", "give wrap or saturate")

    @property
    def low(self) -> int:
        """-2^(bits - 1)."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """2^(bits - 1) - 1."""
        return 2 ** (self.bits - 1) - 1

    def hold(self, sums: Tensor) -> Accumulated:
        """What is left of exact ``sums`` (int64)."""
        if not sums.numel():
            return Accumulated(sums, 0, 1)
        low, high = (int(end) for end in sums.aminmax())
        bits = bits_for(low, high)
        if bits <= self.bits:
            return Accumulated(sums, 0, bits)
        overflows = int(((sums < self.low) | (sums > self.high)).sum())
        if self.overflow == "saturate":
            return Accumulated(sums.clamp(self.low, self.high), overflows, bits)
        return Accumulated((sums - self.low).remainder(2**self.bits) + self.low, overflows, bits)


def bits_for(low: int, high: int) -> int:
    """The narrowest two's complement that holds all from ``low`` to ``high``."""
    return max(max(high, 0).bit_length(), (-low - 1).bit_length() if low < 0 else 0) + 1
