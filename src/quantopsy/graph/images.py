"""Where a value holds its images: most have them outermost, some fold windows or frames in with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Of what an image gives alone and among others, by the largest of its values: kernels differ by the shape of a batch.
_ALIKE = 1e-3


class ImageAxis(NamedTuple):
    """The dimension that holds images, ``rows`` of each; 0 where nothing is of an image.

    The rows of an image follow each other, or are ``apart``, each among those of the other images.
    """

    dim: int
    rows: int
    apart: bool = False

    def first(self, t: Tensor) -> Tensor:
        """``t`` with images outermost, as a view: (B rows, ...), or (B, rows, ...) where they were apart."""
        if self.apart:
            return t.unflatten(self.dim, (self.rows, -1)).movedim(self.dim + 1, 0)
        return t.movedim(self.dim, 0) if self.dim else t

    def in_front(self, t: Tensor, images: int) -> Tensor:
        """``t`` as (B rows, ...), the rows of an image together; what is of no image is every image's."""
        if not self.rows:
            return t.expand(images, *t.shape).flatten(0, 1) if t.dim() else t.expand(images)
        return self.first(t).flatten(0, 1) if self.apart else self.first(t)


def image_axis(many: Tensor, one: Tensor, images: int) -> ImageAxis | None:
    """How ``many``, of so many images, holds them, from ``one``, the same value of the first image alone.

    None where images cannot be told apart: several dimensions depend on their number, or what an image gives depends
    on the others.
    """
    if many.dim() != one.dim():
        return None
    if images == 1:
        return ImageAxis(0, len(one) if one.dim() else 0)
    dims = [dim for dim in range(one.dim()) if many.shape[dim] != one.shape[dim]]
    if not dims:
        return ImageAxis(0, 0) if _alike(many, one) else None
    dim = dims[0]
    rows = one.shape[dim]
    if len(dims) > 1 or many.shape[dim] != images * rows:
        return None
    if _alike(many.narrow(dim, 0, rows), one):
        return ImageAxis(dim, rows)
    apart = many.unflatten(dim, (rows, images)).select(dim + 1, 0)
    return ImageAxis(dim, rows, apart=True) if _alike(apart, one) else None


def _alike(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    if not a.is_floating_point():
        return torch.equal(a, b)
    size = b.nan_to_num(0, 0, 0).abs().amax() if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=_ALIKE * float(size), equal_nan=True)
