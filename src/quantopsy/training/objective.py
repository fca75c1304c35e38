"""What a training minimises: the labels' loss, and the divergence from the float network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from quantopsy.core import QuantopsyError
from quantopsy.graph.outputs import output_tensors
from quantopsy.metrics import logits

Loss = Callable[[Any, Tensor], Tensor]

_OWN_LOSS = "give a --loss package.module:callable (outputs, labels) -> (B,)"


def label_loss(outputs: Any, labels: Tensor) -> Tensor:
    """Cross-entropy of the first output, logits (B, C, ...), over its images or pixels: a scalar.

    Labels that are no class of the network are left out, as metrics leave them out of label maps. Raises
    :class:`QuantopsyError` for labels that are no classes, for a single class, and for labels of another shape.
    """
    scores = logits(outputs)
    if labels.is_floating_point() or scores.dim() < 2 or scores.shape[1] < 2:
        what = "are numbers, not classes" if labels.is_floating_point() else "are of classes, the output has one"
        raise QuantopsyError("labels", what, _OWN_LOSS)
    if scores.shape[0] != labels.shape[0] or scores.shape[2:] != labels.shape[1:]:
        raise QuantopsyError(
            "labels",
            f"of shape {tuple(labels.shape)} for an output of {tuple(scores.shape)}",
            _OWN_LOSS,
        )
    inside = (labels >= 0) & (labels < scores.shape[1])
    return F.cross_entropy(scores, torch.where(inside, labels, -100).long(), ignore_index=-100)


def own_loss(loss: Loss, outputs: Any, labels: Tensor) -> Tensor:
    """The mean of what the user's ``loss`` gives: a scalar. Raises :class:`QuantopsyError` where that cannot be trained
    with."""
    try:
        found = loss(outputs, labels)
    except QuantopsyError:
        raise
    except Exception as error:
        reason = f"it failed ({type(error).__name__}: {error})"
        raise QuantopsyError("loss", reason, "see that it fits the network's output and the labels") from error
    if not isinstance(found, Tensor) or not found.is_floating_point() or not found.requires_grad:
        got = f"{found.dtype} without a gradient" if isinstance(found, Tensor) else type(found).__name__
        raise QuantopsyError("loss", f"it gave {got}", "compute one number an image, (B,), of the outputs with torch")
    return found.mean()


def distillation_loss(outputs: Any, reference: Any) -> Tensor:
    """Divergence of the outputs from the float network's (Hinton et al. 2015), averaged over outputs: a scalar.

    KL(softmax(reference) || softmax(output)) over dimension 1, averaged over images and pixels, of outputs that are
    scores of classes; of others the squared distance as a share of the reference's variance, of its square where it
    does not vary, as a single number does not.
    """
    parts = []
    tensors = (output_tensors(pytree.tree_leaves(given)) for given in (outputs, reference))
    for student, teacher in zip(*tensors, strict=True):
        if student.dim() >= 2 and student.shape[1] > 1:
            wanted, found = F.log_softmax(teacher, 1), F.log_softmax(student, 1)
            parts.append((wanted.exp() * (wanted - found)).sum(1).mean())
        else:
            spread = teacher.var(correction=0)
            spread = torch.where(spread > 0, spread, teacher.square().mean())
            parts.append((student - teacher).square().mean() / spread.clamp(min=1e-12))
    return torch.stack(parts).mean()
