"""Free levels, and gates that set the bit-width: the forward part of DDQ (sections 2.2 and 2.3).

b bits at most, s = sum of gates bits in effect; q (..., 2^b) levels, ascending; U (2^b, 2^b) of the gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantopsy.core import Spec
from quantopsy.quant import uniform
from quantopsy.quant.levels import LevelsQParams, own_tables
from quantopsy.quant.power_of_two import power_of_two_levels
from quantopsy.quant.quantizer import Quantizer
from quantopsy.quant.sample import Sample
from quantopsy.quant.uniform import UniformQParams


def compose(q: Tensor, gates: Tensor) -> Tensor:
    """``U^T q / Z_U`` (DDQ equation (3)), the same shape as ``q``: runs of 2^(b-s) levels become their mean.

    ``U = U_1 (x) ... (x) U_b`` with ``U_i = g_i I + (1 - g_i) 1``, of ``gates`` (b,) in descending order. Computed
    factor by factor, b 2^b operations, without the matrix; differentiable in ``q`` and ``gates``.
    ``Z_U = 2^(b-s)``, the size of a block: the paper's text prints its inverse.
    """
    for i, gate in enumerate(gates):
        pairs = q.unflatten(-1, (2**i, 2, -1))
        q = (gate * pairs + (1 - gate) * pairs.sum(-2, keepdim=True)).flatten(-3)
    return q / 2 ** (1 - gates).sum()


def of_uniform(grid: UniformQParams, bits: int) -> LevelsQParams:
    """The 2^``bits`` levels of a uniform ``grid``, in units of its scale; the lowest several times where it has fewer.

    What they round to is what the grid does, but for values halfway between two, which go to the lower one.
    """
    codes = torch.arange(grid.qmin, grid.qmax + 1, device=grid.scale.device)
    codes = torch.cat((codes[:1].expand(2**bits - len(codes)), codes))
    levels = (codes - grid.zero_point[..., None]).float()
    return LevelsQParams(levels, grid.scale, axis=grid.axis, group_size=grid.group_size)


def _fit(spec: Spec, _: Sample, low: Tensor, high: Tensor) -> LevelsQParams:
    if QUANTIZER.option(spec, "start") == "power_of_two":
        levels = _padded(power_of_two_levels(spec.bits, bool(spec.signed)), spec.bits).to(low.device)
        return own_tables(_gated(spec, levels.double() * torch.maximum(-low, high).double()[:, None]))
    # In units of the step levels are whole numbers, which any b_q >= b stores exactly.
    grid = uniform.from_range(spec, low, high, axis=0)
    levels = of_uniform(grid, spec.bits).levels
    # A range too small for a normal step has been given the step 1.
    degenerate = grid.scale > high.clamp(min=0) - low.clamp(max=0)
    return LevelsQParams(torch.where(degenerate[:, None], 0.0, _gated(spec, levels)), grid.scale, axis=0)


def _gated(spec: Spec, levels: Tensor) -> Tensor:
    """``levels`` (R, 2^b) with as many gates open as the spec's option says, all for 0."""
    gates = torch.ones(spec.bits, dtype=levels.dtype, device=levels.device)
    gates[int(QUANTIZER.option(spec, "open_gates")) or spec.bits :] = 0
    return compose(levels, gates)


def _padded(levels: Tensor, bits: int) -> Tensor:
    """2^b entries, zero repeated as often as it takes, as the -0 and +0 of DDQ equations (1) and (2)."""
    below, rest = levels[levels < 0], levels[levels >= 0]
    return torch.cat((below, torch.zeros(2**bits - len(levels)), rest))


QUANTIZER = Quantizer(
    name="learned",
    summary="levels that training moves, and gates that set how many (DDQ); starts from a known grid",
    fit=_fit,
    options={"start": ("uniform", "power_of_two"), "open_gates": (0, 1, 2, 3, 4, 5, 6, 7, 8)},
    max_bits=8,
)
