"""Probes: the vectors that the screen sends back through the network.

B images, C classes, P pixels of an output map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from quantopsy.core import QuantopsyError

Loss = Callable[[Any, Tensor | None], Tensor]
"""A user's ``loss(outputs, labels)``: (B,), differentiable, of whatever the network returns."""

Kind = Literal["margin", "pixel margins", "loss", "none"]

# How many runners-up an image's decision is watched against: more hardly ever overtake.
GAPS = 15

# Margins of a map are kept as so many quantiles per image.
QUANTILES = 32


@dataclass(frozen=True)
class DecisionProbe:
    """Gradients by position of the output (None: zero) and what their change is compared with.

    ``margins`` (B, M): of classes the distance between the two largest scores, M = 1, and e is its
    change. Of a map the quantiles of that distance over pixels, M = :data:`QUANTILES`, and e has the
    root mean square of its change over pixels as standard deviation. Of a loss its value, M = 1. No
    columns where there is nothing to decide.
    """

    kind: Kind
    gradients: tuple[Tensor | None, ...]
    margins: Tensor


def random_signs(like: Tensor, images: np.ndarray, seed: int) -> Tensor:
    """Random signs (B, ...), each image's from its own seed: tiles and order do not matter."""
    size = like[0].numel()
    words = (size + 63) // 64
    bits = [np.random.Philox(key=[seed, int(image)]).random_raw(words).view(np.uint8) for image in images]
    signs = np.unpackbits(np.stack(bits), axis=1, count=size).astype(np.float32) * 2 - 1
    return torch.from_numpy(signs).reshape(like.shape).to(like)


def decision_kind(outputs: Sequence[Any]) -> Kind:
    """Which probe suits ``outputs``: the first tells, scores (B, C) or maps of scores (B, C, ...)."""
    scores = outputs[0]
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.dim() < 2 or scores.shape[1] < 2:
        return "none"
    return "margin" if scores[0, 0].numel() == 1 else "pixel margins"


def top_gaps(outputs: Sequence[Any]) -> np.ndarray:
    """(B, M) distances of each image's largest score to the next ones, ascending, of scores (B, C).

    M = min(C - 1, :data:`GAPS`), or 0 where the first output is not scores of classes.
    """
    if decision_kind(outputs) != "margin":
        return np.empty((len(outputs[0]), 0), dtype=np.float32)
    scores = outputs[0].detach().flatten(1)
    top = scores.topk(min(scores.shape[1], GAPS + 1), dim=1).values
    return (top[:, :1] - top[:, 1:]).float().cpu().numpy()


def runner_up_in_front(outputs: Sequence[Any]) -> tuple[Any, ...] | None:
    """``outputs`` with the two largest scores of the first changed over; None where it is no scores."""
    if decision_kind(outputs) == "none":
        return None
    scores = outputs[0]
    top = scores.topk(2, dim=1)
    return (scores.scatter(1, top.indices, top.values.flip(1)), *outputs[1:])


def decision_probe(outputs: Sequence[Any], images: np.ndarray, seed: int) -> DecisionProbe:
    """The probe e_top1 - e_top2 of classes; of a map the same in every pixel with random signs, over sqrt(P)."""
    kind = decision_kind(outputs)
    others = (None,) * (len(outputs) - 1)
    if kind == "none":
        return DecisionProbe(kind, (None, *others), torch.empty(len(images), 0))
    scores = outputs[0].detach()
    top = scores.topk(2, dim=1)
    probe = torch.zeros_like(scores)
    probe.scatter_(1, top.indices[:, :1], 1.0).scatter_(1, top.indices[:, 1:], -1.0)
    distance = (top.values[:, 0] - top.values[:, 1]).reshape(len(scores), -1)
    if kind == "margin":
        return DecisionProbe(kind, (probe, *others), distance)
    pixels = distance.shape[1]
    probe *= random_signs(scores[:, :1], images, seed) / pixels**0.5
    at = (torch.arange(QUANTILES, device=scores.device, dtype=distance.dtype) + 0.5) / QUANTILES
    return DecisionProbe(kind, (probe, *others), _quantiles(distance, at))


def loss_probe(loss: Loss, whole: Any, outputs: Sequence[Any], labels: Tensor | None) -> DecisionProbe:
    """The gradient of a user's ``loss`` of ``whole`` (the module's outputs, made of ``outputs``) by each output.

    Raises :class:`QuantopsyError` for a loss that fails, is not of shape (B,), or has no gradient.
    """
    leaves = [value for value in outputs if isinstance(value, Tensor) and value.requires_grad]
    try:
        values = loss(whole, labels)
    except QuantopsyError:
        raise
    except Exception as error:
        raise QuantopsyError(
            "loss", f"it failed ({type(error).__name__}: {error})", "try it on the outputs of one batch"
        ) from error
    if not isinstance(values, Tensor) or values.shape != (len(outputs[0]),):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise QuantopsyError(
            "loss", f"it returns {shape}, not one number for each image", "return a tensor (B,), say reduction='none'"
        )
    if not values.requires_grad:
        raise QuantopsyError("loss", "it has no gradient", "compute it from the outputs with differentiable operators")
    found = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    by_leaf = dict(zip(map(id, leaves), found, strict=True))
    return DecisionProbe("loss", tuple(by_leaf.get(id(value)) for value in outputs), values.detach()[:, None])


def _quantiles(x: Tensor, at: Tensor) -> Tensor:
    """Quantiles (B, M) of x (B, P) by linear interpolation, for any P (``torch.quantile`` stops at 2^24)."""
    ordered = x.sort(dim=1).values
    position = at * (x.shape[1] - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=x.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], (position - below).to(x.dtype))
