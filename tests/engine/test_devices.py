"""What is computed together is on one device: a network of tensors that hold nothing, its program on an accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from quantopsy.core import Spec
from quantopsy.engine import adaround, blocks
from quantopsy.engine.adaround import Effort, SoftRounding
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine, LayerQuantizers
from quantopsy.engine.sequential import Arrival
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import Step, compile_network
from quantopsy.quant import UniformQParams

SPEC = Spec(bits=3, symmetric=True, signed=True, granularity="per_channel")
ON_GRID = LayerQuantizers(inputs=(), weight=SPEC, shift=None, output=None)
CUDA = torch.device("cuda:0")


@pytest.fixture
def hollow() -> Iterator[None]:
    """Tensors have a device and a shape only, and operators refuse two devices."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield


def like(tensor: Tensor, device: torch.device | str = "cpu") -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def on_an_accelerator(module: nn.Module, x: tuple[int, ...]) -> tuple[ExactEngine, Step]:
    """The engine of a network with one layer whose grid is known, and the layer's step."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        program = compile_network(capture(module.eval(), (torch.randn(x),)))
    network = replace(program.network, tensors={name: like(t) for name, t in program.network.tensors.items()})
    constants = {name: like(t, CUDA) for name, t in program.constants.items()}
    (step,) = (step for step in program.steps if step.weight)
    assert step.layer is not None
    grid = UniformQParams(torch.empty(4), torch.empty(4, dtype=torch.int32), -4, 3, axis=0)
    calibration = Calibration(encodings={(str(step.layer.weight), SPEC): grid})
    return ExactEngine(replace(program, network=network, constants=constants, device=CUDA), calibration), step


class FoundError(Exception):
    """Ends a search before it looks at values."""


@pytest.mark.parametrize(
    ("make", "shape", "inner"),
    [(lambda: nn.Linear(8, 4), (2, 8), 8), (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4)), (2, 3, 8, 8), 27)],
)
def test_roundings_of_a_layer_are_learned_where_it_runs(hollow, monkeypatch, make, shape, inner) -> None:
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        module = make()
    engine, step = on_an_accelerator(module, shape)
    seen = []

    @torch.no_grad()  # autograd would ask the device that is not there for its streams
    def solved(problem: adaround._Problem, qparams: UniformQParams, *_: object) -> Tensor:
        soft = SoftRounding.of(problem.weight, qparams)
        y = problem._activated(problem._product(problem.x_hat, soft.weight()))
        by = problem._product(problem.x, qparams.snap_by(problem.weight, soft.up))
        seen.extend([y.device, by.device])
        raise FoundError

    # Drawing places on another device needs that device.
    patches = torch.empty(16, 1, inner, device=CUDA)
    monkeypatch.setattr(adaround, "_patches", lambda *_: (patches, patches))
    monkeypatch.setattr(adaround._Problem, "solved", solved)
    assert step.layer is not None
    with pytest.raises(FoundError):
        adaround._rounding(engine, Arrival(step, step.layer, ON_GRID, (), ()), SPEC, Effort())
    assert seen == [CUDA, CUDA]


@torch.no_grad()
def test_roundings_of_a_block_are_learned_where_it_runs(hollow, monkeypatch) -> None:
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        module = nn.Linear(8, 4)
    engine, step = on_an_accelerator(module, (2, 8))
    monkeypatch.setattr(ExactEngine, "quantized_weight", lambda *_: torch.empty(4, 8, device=CUDA))
    problem = blocks._Problem(engine, (step,), {step.index: ON_GRID}, ([], []), [])
    soft = problem._soft(step)
    inputs = {step.reads[0]: torch.empty(2, 8, device=CUDA)}
    assert problem._forward(inputs, {step: soft.weight()}).device == CUDA
    assert soft.hard().device == CUDA


@pytest.mark.parametrize("channels", [(), (3,)])
def test_ends_of_a_grid_are_read_where_it_is(hollow, monkeypatch, channels) -> None:
    grid = UniformQParams(
        torch.empty(channels, device=CUDA), torch.empty(channels, dtype=torch.int32, device=CUDA), 0, 255
    )
    monkeypatch.setattr(Tensor, "__float__", lambda tensor: 0.0 if tensor.device == CUDA else 1.0)
    assert grid.outermost == (0.0, 0.0)
