"""Weights as sums of integer tensors with real multipliers, so that integer accumulators do all the work.

``w_hat = sum_t m_t W_t``, hence ``<x_hat, w_hat> = sum_t m_t s_x <X_q - z_x, W_t>``: one accumulator for each term.

- uniform: one term, ``W = q - z``, m = s; or two, ``q`` and ones with m = -s z (PWLQ equation (13));
- piecewise: three (PWLQ equations (14) and (15)): both regions' codes and, with the breakpoint, the outer signs;
- levels of any kind: one for each level, ones where the weight is on it (DDQ section 2.2), m the level;
- groups: those terms for each group, zero outside of it.

C output channels along ``axis`` of a weight, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from quantopsy.quant import LevelsQParams, PiecewiseQParams, QParams, UniformQParams
from quantopsy.quant.grouping import aligned, group_axis


@dataclass(frozen=True)
class Term:
    """``weight`` (int64, of the layer's shape) and ``multiplier`` (float64, () or (C,)), the real of one of it."""

    weight: Tensor
    multiplier: Tensor


def terms(codes: Tensor, qparams: QParams) -> tuple[Term, ...]:
    """What ``codes`` of a weight on ``qparams`` are: ``sum_t m_t W_t = qparams.decode(codes)``."""
    if isinstance(qparams, UniformQParams):
        centred = codes.long() - aligned(qparams.zero_point, codes, qparams.axis, qparams.group_size)
        return _grouped(centred, qparams.scale, qparams)
    if isinstance(qparams, PiecewiseQParams):
        return piecewise_terms(codes, qparams)
    assert isinstance(qparams, LevelsQParams)
    return level_terms(codes, qparams)


def uniform_terms(codes: Tensor, qparams: UniformQParams) -> tuple[Term, Term]:
    """Codes as they are, and ones for the zero point: the accumulators <X_q, W_q> and <X_q, I> of PWLQ (13).

    z_w of the paper is a real offset, here ``-s zero_point``.
    """
    scale = qparams.scale.double()
    return Term(codes.long(), scale), Term(torch.ones_like(codes, dtype=torch.int64), -scale * qparams.zero_point)


def piecewise_terms(codes: Tensor, qparams: PiecewiseQParams) -> tuple[Term, ...]:
    """PWLQ equations (14) and (15): three accumulators.

    ``sign(W) W_q1`` in R1 with s_w1; ``sign(W) W_q2`` in R2 with s_w2; ``sign(W)`` in R2 with the breakpoint p.
    """
    most = 2**qparams.bits - 1
    codes = codes.long()
    signs, magnitudes = codes.sign(), codes.abs()
    outside = magnitudes > most
    inner = torch.where(outside, 0, codes)
    outer = torch.where(outside, signs * (magnitudes - most), 0)
    return (
        *_grouped(inner, qparams.inner_scale, qparams),
        *_grouped(outer, qparams.outer_scale, qparams),
        *_grouped(torch.where(outside, signs, 0), qparams.breakpoint, qparams),
    )


def level_terms(codes: Tensor, qparams: LevelsQParams) -> tuple[Term, ...]:
    """One term for each level that is not zero everywhere: ones where the code is its own (DDQ's one-hot w_o)."""
    found: list[Term] = []
    for code in range(qparams.levels.shape[-1]):
        value = qparams.levels[..., code].double() * qparams.scale.double()
        if bool((value != 0).any()):
            found.extend(_grouped((codes == code).long(), value, qparams))
    return tuple(found)


def decoded(parts: Sequence[Term], axis: int) -> Tensor:
    """``sum_t m_t W_t`` (float64)."""
    return reduce(add, (part.weight * aligned(part.multiplier, part.weight, _axis(part, axis), None) for part in parts))


def _axis(part: Term, axis: int) -> int | None:
    return axis if part.multiplier.dim() else None


def _grouped(weight: Tensor, scale: Tensor, qparams: QParams) -> tuple[Term, ...]:
    if qparams.group_size is None:
        return (Term(weight, scale.double()),)
    assert qparams.axis is not None
    other = group_axis(qparams.axis % weight.dim())
    place = torch.arange(weight.shape[other], device=weight.device) // qparams.group_size
    laid = [-1 if dim == other else 1 for dim in range(weight.dim())]
    return tuple(
        Term(torch.where((place == group).reshape(laid), weight, 0), scale[:, group].double())
        for group in range(scale.shape[1])
    )
