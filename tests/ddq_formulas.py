"""Formulas of DDQ (sections 2.2 and 2.3) as they are printed: slow, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor


def kronecker(gates: Tensor) -> Tensor:
    """``U = U_1 (x) ... (x) U_b`` with ``U_i = g_i I + (1 - g_i) 1``, (2^b, 2^b): 2^s all-one blocks."""
    identity, ones = torch.eye(2, dtype=gates.dtype, device=gates.device), gates.new_ones(2, 2)
    U = gates.new_ones(1, 1)
    for gate in gates:
        U = torch.kron(U, gate * identity + (1 - gate) * ones)
    return U


def uniform_levels(bits: int, low: Tensor, high: Tensor) -> Tensor:
    """``k (high - low) / (2^b - 1) + low`` (DDQ equation (4) at its start), the shape of ``low`` and 2^b."""
    steps = torch.arange(2**bits, dtype=torch.float64, device=low.device) / (2**bits - 1)
    return (low.double()[..., None] + steps * (high - low).double()[..., None]).float()


def symmetric_levels(bits: int, clip: Tensor) -> Tensor:
    """[-1, ..., -1 / (2^(b-1) - 1), -0, +0, ..., 1] c (DDQ equation (1)), (..., 2^b)."""
    half = torch.arange(2 ** (bits - 1), dtype=torch.float64, device=clip.device) / (2 ** (bits - 1) - 1)
    return (torch.cat((-half.flip(0), half)) * clip.double()[..., None]).float()


def stored_levels(q: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    """``R()`` of DDQ equation (4): levels ``q`` (..., L) as they are stored with b_q = ``bits``, on a uniform
    grid from ``low`` to ``high`` (...,). With b_q below b some of them merge."""
    step = (high - low)[..., None] / (2**bits - 1)
    low = low[..., None]
    return ((q - low) / step).round().clamp(0, 2**bits - 1) * step + low
