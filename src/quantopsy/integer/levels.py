"""Learned levels by codes and a table: DDQ's low-precision GEMM (section 2.2, "Efficient Inference on Hardware").

``y = q^T (U / Z_U) w_o x_q``: the binary matrix w_o adds up, for every level, the inputs whose weight is on it; U adds
the sums of levels that gates merge; the short vector q is multiplied last. L = 2^b levels, s bits in effect.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError

Product = Callable[[Tensor, Tensor], Tensor]


def level_sums(product: Product, x: Tensor, codes: Tensor, levels: int) -> Tensor:
    """(L, ...) int64: ``w_o x_q``, level by level, of centred codes ``x`` and a weight's ``codes``, 0 to L - 1."""
    return torch.stack([product(x, (codes == level).long()) for level in range(levels)])


def merge(sums: Tensor, gates: Tensor) -> tuple[Tensor, int]:
    """``U (w_o x_q)`` and s - b, so that the result times 2^(s - b) is divided by Z_U: still integers, and a shift.

    Every level gets the sum of its block of 2^(b - s), since U is block-diagonal of ones (DDQ equation (5)); ``gates``
    (b,) in descending order, 1 for open. Raises :class:`QuantopsyError` where they do not fit ``sums`` (2^b, ...).
    """
    bits, effective = len(gates), int(gates.sum())
    if len(sums) != 2**bits or bool((gates != gates.sort(descending=True).values).any()):
        raise QuantopsyError(
            f"gates {gates.tolist()}", f"not {bits} in descending order for {len(sums)} levels", "sort them"
        )
    blocks = sums.unflatten(0, (2**effective, -1))
    return blocks.sum(1, keepdim=True).expand_as(blocks).flatten(0, 1), effective - bits


def multiply_levels(sums: Tensor, q: Tensor) -> Tensor:
    """``q^T sums``: (...) from (L, ...). Levels ``q`` (L,), integers b_q bits wide or float32, by the paper's choice.

    int64 of integer levels, else float64.
    """
    if not q.is_floating_point():
        return (q.long().reshape(-1, *(1,) * (sums.dim() - 1)) * sums).sum(0)
    return torch.tensordot(q.double(), sums.double(), dims=1)


def stored_levels_product(sums: Tensor, stored: Tensor, low: float, step: float) -> Tensor:
    """(...) float64 of levels stored as ``stored`` (L,) integers on a grid, ``q = low + step stored`` (DDQ (4)).

    ``step <stored, sums> + low <1, sums>``: two integer accumulators, as for a zero point.
    """
    return step * multiply_levels(sums, stored).double() + low * sums.sum(0).double()
