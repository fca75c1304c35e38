"""Per-sample weight gradients against a loop over samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from quantopsy.engine import weight_gradients
from quantopsy.engine.weight_gradients import per_sample_gradients, supported
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "pointwise": (lambda: nn.Conv2d(4, 6, 1), (4, 5, 5)),
    "pointwise without bias": (lambda: nn.Conv2d(4, 6, 1, bias=False), (4, 5, 4)),
    "strided pointwise": (lambda: nn.Conv2d(4, 6, 1, stride=2), (4, 5, 6)),
    "unevenly strided pointwise": (lambda: nn.Conv2d(4, 6, 1, stride=(1, 3)), (4, 5, 8)),
    "padded pointwise": (lambda: nn.Conv2d(4, 6, 1, padding=1), (4, 5, 5)),
    "grouped pointwise": (lambda: nn.Conv2d(4, 6, 1, groups=2), (4, 5, 5)),
    "depthwise 1 x 1": (lambda: nn.Conv2d(6, 6, 1, groups=6), (6, 5, 5)),
    "depthwise 3 x 3": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), (6, 8, 7)),
    "strided depthwise 3 x 3": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1, stride=2), (6, 8, 8)),
    "dilated depthwise 3 x 3": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=2, dilation=2), (6, 9, 8)),
    "depthwise 5 x 5": (lambda: nn.Conv2d(6, 6, 5, groups=6, padding=2), (6, 8, 9)),
    "depthwise 5 x 5, no padding": (lambda: nn.Conv2d(6, 6, 5, groups=6), (6, 8, 9)),
    "strided depthwise 5 x 5": (lambda: nn.Conv2d(6, 6, 5, groups=6, padding=2, stride=2), (6, 10, 11)),
    "depthwise 5 x 5 of stride 3": (lambda: nn.Conv2d(6, 6, 5, groups=6, padding=1, stride=3), (6, 12, 13)),
    "dilated depthwise 5 x 5": (lambda: nn.Conv2d(6, 6, 5, groups=6, padding=4, dilation=2), (6, 10, 10)),
    "strided and dilated depthwise 5 x 5": (
        lambda: nn.Conv2d(6, 6, 5, groups=6, padding=3, dilation=2, stride=2),
        (6, 13, 12),
    ),
    "depthwise 7 x 7": (lambda: nn.Conv2d(4, 4, 7, groups=4, padding=3), (4, 9, 8)),
    "strided depthwise 7 x 7": (lambda: nn.Conv2d(4, 4, 7, groups=4, padding=3, stride=2), (4, 9, 12)),
    "depthwise 3 x 7": (lambda: nn.Conv2d(4, 4, (3, 7), groups=4, padding=(1, 3), stride=(2, 1)), (4, 9, 8)),
    "depthwise 5 x 5 of a large image": (lambda: nn.Conv2d(2, 2, 5, groups=2, padding=2), (2, 70, 66)),
    "depthwise, two outputs a channel": (lambda: nn.Conv2d(6, 12, 3, groups=6), (6, 8, 8)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3, dilation=2), (6, 8, 8)),
    "dense, 3 input channels": (lambda: nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), (3, 6, 7)),
    "strided dense, 3 input channels": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 9, 8)),
    "dilated dense, 3 input channels": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=(2, 1)), (3, 9, 8)),
    "dense, 8 input channels": (lambda: nn.Conv2d(8, 4, 3, padding=1, stride=(2, 1)), (8, 6, 7)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear of a sequence": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear of a map": (lambda: nn.Linear(7, 5, bias=False), (2, 3, 7)),
}


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_they_are_those_of_a_loop_over_samples_for_every_probe(name, images, monkeypatch) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    module, x = make(), torch.randn(max(2, images), *shape)
    program = compile_network(capture(module, (x,)))
    x = x[:images]
    step = next(step for step in program.steps if step.layer is not None)
    y = module(x)
    probes = [torch.randn_like(y), torch.randn_like(y)]
    arguments = step.arguments({**program.constants, **program.place((x,))})
    assert supported(step.target, arguments, images)
    found = per_sample_gradients(step.target, arguments, probes)
    assert len(found) == 2
    for gradients, probe in zip(found, probes, strict=True):
        assert gradients.shape == (images, *module.weight.shape)
        for i in range(images):
            (expected,) = torch.autograd.grad(module(x[i : i + 1]), module.weight, probe[i : i + 1])
            torch.testing.assert_close(gradients[i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["depthwise 3 x 3", "strided depthwise 3 x 3"])
def test_pieces_that_stay_in_cache_give_the_same(name, monkeypatch) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    module, x = make(), torch.randn(5, *shape)
    program = compile_network(capture(module, (x,)))
    step = next(step for step in program.steps if step.layer is not None)
    arguments = step.arguments({**program.constants, **program.place((x,))})
    probe = torch.randn_like(module(x))
    (whole,) = per_sample_gradients(step.target, arguments, [probe])
    monkeypatch.setattr(weight_gradients, "_CACHED", 2 * x[0].numel())
    (pieces,) = per_sample_gradients(step.target, arguments, [probe])
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)


def test_what_would_not_fit_or_is_not_known_is_not_supported(monkeypatch) -> None:
    for module, shape in ((nn.Conv1d(3, 4, 3), (3, 9)), (nn.ConvTranspose2d(3, 4, 3), (3, 6, 6))):
        x = torch.randn(2, *shape)
        program = compile_network(capture(module, (x,)))
        step = next(step for step in program.steps if step.layer is not None)
        assert not supported(step.target, step.arguments({**program.constants, **program.place((x,))}), 2)
    x = torch.randn(2, 7)
    program = compile_network(capture(nn.Linear(7, 5), (x,)))
    step = next(step for step in program.steps if step.layer is not None)
    arguments = step.arguments({**program.constants, **program.place((x,))})
    monkeypatch.setattr(weight_gradients, "LARGEST", 2 * 35)
    assert supported(step.target, arguments, 2)
    assert not supported(step.target, arguments, 3)
