"""A network's outputs as one vector per image: what noise and distances are measured on. B images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def output_tensors(outputs: Sequence[Any]) -> list[Tensor]:
    """The floating outputs: those that noise is measured on."""
    return [value for value in outputs if isinstance(value, Tensor) and value.is_floating_point()]


def squared_norms(outputs: Sequence[Any], reference: Sequence[Any] | None = None) -> Tensor:
    """(B,) float64: squared l2 norm per image of the outputs, or of their distance to ``reference``.

    Noise of layer-wise paper, section 3.1 and Algorithm 1, before the mean over images; several
    outputs count as one long vector.
    """
    total: Tensor | None = None
    others = output_tensors(reference) if reference is not None else [None] * len(output_tensors(outputs))
    for tensor, other in zip(output_tensors(outputs), others, strict=True):
        difference = (tensor if other is None else tensor - other).flatten(1)
        part = difference.float().square().sum(1, dtype=torch.float64)
        total = part if total is None else total + part
    assert total is not None
    return total
