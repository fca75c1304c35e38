"""Activations that are differentiated from their results, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantopsy.graph.operators import CLIPS, Clip, aten, clip_between

LOW, HIGH = torch.tensor([-1.0, 0.0, 0.5]).reshape(3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1)


@pytest.mark.parametrize(
    ("clip", "function"),
    [
        (CLIPS["relu"], torch.relu),
        (CLIPS["relu6"], torch.nn.functional.relu6),
        (clip_between(LOW, HIGH), lambda x: aten.clamp.Tensor(x, LOW, HIGH)),
        (clip_between(None, HIGH), lambda x: aten.clamp.Tensor(x, None, HIGH)),
        (clip_between(LOW, None), lambda x: aten.clamp.Tensor(x, LOW, None)),
    ],
)
def test_value_and_gradient_are_autograds(clip: Clip, function) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(5, 3, 7, 7, generator=generator)).requires_grad_()
    g = torch.randn(5, 3, 7, 7, generator=generator)
    y: Tensor = function(x)
    (expected,) = torch.autograd.grad(y, x, g)
    found = clip.apply(x.detach().clone())
    assert torch.equal(found, y)
    assert torch.equal(clip.back(g.clone(), found), expected)
