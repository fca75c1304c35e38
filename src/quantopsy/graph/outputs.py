"""A network's outputs as one vector per image: what noise and distances are measured on. B images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_measured(output: Any) -> bool:
    """Whether noise is measured on an output (B, ...): it is floating, and no number for all images such as a loss."""
    return isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 0


def output_tensors(outputs: Sequence[Any]) -> list[Tensor]:
    """The outputs that noise is measured on."""
    return [value for value in outputs if is_measured(value)]


def squared_norms(outputs: Sequence[Any], reference: Sequence[Any] | None = None) -> Tensor:
    """(B,) float64: squared l2 norm per image of the outputs, or of their distance to ``reference``.

    Noise of layer-wise paper, section 3.1 and Algorithm 1, before the mean over images; several
    outputs count as one long vector.
    """
    total: Tensor | None = None
    others = output_tensors(reference) if reference is not None else [None] * len(output_tensors(outputs))
    for tensor, other in zip(output_tensors(outputs), others, strict=True):
        difference = (tensor if other is None else tensor - other).reshape(len(tensor), -1)
        part = difference.float().square().sum(1, dtype=torch.float64)
        total = part if total is None else total + part
    assert total is not None
    return total
