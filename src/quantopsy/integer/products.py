"""Sums of products of integers, exact to the last bit: of convolutions, linear layers, matrix products.

Computed by torch's float64 kernels, which every device has. All products and partial sums are whole numbers; where
``max |x| sum |w|`` stays below 2^53 each of them is a float64, in whatever order they are added, with or without
fused multiply-add. That bound is checked for each call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError

_EXACT = 2**53

Product = Callable[[Tensor, Tensor], Tensor]


def exact_product(product: Product, x: Tensor, weight: Tensor, axis: int | None) -> Tensor:
    """``product(x, weight)``, int64, of integer tensors; bilinear, outputs along ``axis`` of the weight.

    No output takes an element of the weight twice; ``axis=None`` where any output may take all of them. Raises
    :class:`QuantopsyError` where sums could leave what float64 counts exactly.
    """
    if not x.numel() or not weight.numel():
        return product(x.double(), weight.double()).to(torch.int64)
    magnitudes = weight.to(torch.int64).abs()
    taps = magnitudes.sum() if axis is None else magnitudes.movedim(axis, 0).flatten(1).sum(1).max()
    reach = int(x.to(torch.int64).abs().max()) * int(taps)
    if reach >= _EXACT:
        raise QuantopsyError(
            "sum of products", f"it may reach {reach:.3g}, beyond 2^53", "take fewer bits for input or weight"
        )
    return product(x.double(), weight.double()).to(torch.int64)
