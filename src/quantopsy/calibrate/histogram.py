"""A histogram that grows with its data, and so is the same however the data are cut.

R rows (grids), n values in each, B bins on either side of zero.

Bin i, from -B to B - 1, is [i w, (i + 1) w) with w a power of two, the smallest such that everything seen
has a bin. When the range grows, w doubles and neighbours merge, which loses nothing that a histogram
started with the wider bins would have known: merging two halves gives the whole, count by count.
Between B/2 and B bins are used on the longer side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Normal numbers only: narrower bins would have an inverse width that overflows.
_SMALLEST_EXPONENT = -126


@dataclass(frozen=True)
class Histogram:
    """``counts`` (R, 2 B) int64; ``zeros`` (R,) how many of them are exactly zero; ``exponent`` (R,) int32,
    the bin width being 2^exponent."""

    counts: Tensor
    zeros: Tensor
    exponent: Tensor

    @classmethod
    def of(cls, rows: Tensor, reach: Tensor, bins: int) -> Histogram:
        """The histogram of ``rows`` (R, n) float32, |rows| <= ``reach`` (R,), with ``bins`` = B."""
        exponent = (torch.frexp(reach).exponent - (bins.bit_length() - 1)).clamp(min=_SMALLEST_EXPONENT)
        exponent = torch.where(reach > 0, exponent, _SMALLEST_EXPONENT)
        inverse_width = torch.ldexp(torch.ones_like(reach), -exponent)
        # Multiplying by a power of two is exact, so every value has one bin, whatever came with it (but for
        # one so small beside the range that it vanishes: it counts as positive).
        index = (rows * inverse_width[:, None]).floor_().to(torch.int32)
        index += bins * torch.arange(1, 2 * len(rows), 2, dtype=torch.int32, device=rows.device)[:, None]
        counts = torch.bincount(index.flatten(), minlength=2 * bins * len(rows)).view(len(rows), 2 * bins)
        return cls(counts, (rows == 0).sum(1), exponent)

    def widened(self, exponent: Tensor) -> Histogram:
        """The same counts in bins of width 2^``exponent`` (R,), none narrower than now."""
        shift = (exponent - self.exponent).clamp(max=31)
        if not shift.any():
            return self
        bins = self.counts.shape[1] // 2
        index = torch.arange(-bins, bins, device=shift.device)
        index = (index >> shift.long()[:, None]) + bins
        counts = torch.zeros_like(self.counts).scatter_add_(1, index, self.counts)
        return Histogram(counts, self.zeros, exponent)

    def compact(self) -> Histogram:
        """The same with counts of 32 bits: enough for an image, half the memory."""
        return Histogram(self.counts.int(), self.zeros.int(), self.exponent)

    def repeated(self, times: int) -> Histogram:
        """As if every value had been seen ``times``."""
        return Histogram(self.counts * times, self.zeros * times, self.exponent)

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both."""
        exponent = torch.maximum(self.exponent, other.exponent)
        a, b = self.widened(exponent), other.widened(exponent)
        return Histogram(a.counts + b.counts, a.zeros + b.zeros, exponent)

    def summed(self, images: int) -> Histogram:
        """The histogram of all of ``images``, of which it holds R rows each, image by image."""
        apart = self.exponent.view(images, -1)
        wide = self.widened(apart.amax(0).expand_as(apart).flatten())
        return Histogram(
            wide.counts.view(images, -1, wide.counts.shape[1]).sum(0, dtype=torch.int64),
            wide.zeros.view(images, -1).sum(0, dtype=torch.int64),
            apart.amax(0),
        )

    @property
    def width(self) -> Tensor:
        """Bin width (R,), float32."""
        return torch.ldexp(torch.ones_like(self.exponent, dtype=torch.float32), self.exponent)

    def weighted(self, points: int) -> tuple[Tensor, Tensor]:
        """(values, weight), (R, n) each: zero, and ``points`` evenly within each bin that any row uses, and
        how often they occur, the bin's count shared among them."""
        bins = self.counts.shape[1] // 2
        counts = self.counts.double()
        counts[:, bins] -= self.zeros
        used = torch.nonzero(counts.any(0))[:, 0]
        within = (torch.arange(points, device=used.device) + 0.5) / points
        values = ((used - bins)[:, None] + within).flatten() * self.width[:, None]
        shares = counts[:, used].repeat_interleave(points, 1) / points
        return (
            torch.cat((torch.zeros_like(self.width)[:, None], values), 1),
            torch.cat((self.zeros[:, None], shares), 1),
        )
