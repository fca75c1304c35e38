"""AdaRound against every rounding there is, and against rounding to the nearest."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_sequential import engine_of, layers_of, noise
from torch import nn

from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.adaround import Effort, round_weights
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.sequential import correct_biases
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network


def weight_only(module: nn.Module, x: torch.Tensor, spec: Spec) -> tuple[ExactEngine, Plan, str]:
    program = compile_network(capture(module, (x[:2],)))
    name = program.network.layers[0].name
    plan = Plan.of({Site(name, "weight"): spec})
    return ExactEngine(program, calibrate(program, [(x,)], wanted_statistics(program.network, [plan]))), plan, name


def test_it_finds_the_best_of_all_roundings() -> None:
    torch.manual_seed(1)
    module = nn.Linear(8, 1).eval()
    # Inputs that go together: there the sum of rounding errors counts, not each.
    x = torch.randn(256, 1) + 0.1 * torch.randn(256, 8)
    engine, plan, name = weight_only(module, x, Spec(bits=3, symmetric=True))
    layer = engine.program.network.layers[0]
    assert layer.weight is not None
    found = round_weights(engine, plan, [(x,)], {name}, Effort(steps=400))[Site(name, "weight")]
    weight = engine.program.network.tensors[layer.weight]
    scale = engine.calibration.weight_qparams(layer, plan[Site(name, "weight")], weight).scale
    down = (weight / scale).floor()

    def error(up: torch.Tensor) -> float:
        y = x @ ((((down + up).clamp(-4, 3)) * scale - weight).T)
        return float((y - y.mean(0)).square().mean())

    every = [error(torch.tensor([bits], dtype=torch.float32)) for bits in itertools.product((0, 1), repeat=8)]
    own = error(engine.calibration.given[found.rounding].float())
    assert own == pytest.approx(min(every))
    assert error((weight / scale).round() - down) > 10 * own  # as rounding to the nearest would have it


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), lambda: nn.Conv2d(6, 6, 3, groups=6, dilation=2)]
)
def test_what_is_better_on_patches_is_better_on_whole_maps(make) -> None:
    torch.manual_seed(1)
    convolution = make()
    # Neighbours and channels that go together, as in images.
    x = nn.functional.avg_pool2d(torch.randn(8, 1, 16, 16), 5, 1) * 5 + 0.2 * torch.randn(8, 6, 12, 12)
    spec = Spec(bits=3, granularity="per_channel", symmetric=True, signed=True)
    engine, plan, name = weight_only(convolution.eval(), x, spec)
    found = round_weights(engine, plan, [(x,)], {name}, Effort(steps=300))
    # Every place is as likely as another, so that what is better on patches is better on whole maps.
    assert noise(engine, found, x) < 0.7 * noise(engine, plan, x)


def test_a_whole_network_gains_and_the_plan_says_what_it_needs(small, images) -> None:
    engine, plan = engine_of(small, images, bits=3)
    found = round_weights(engine, plan, [(images,)], layers_of(engine), Effort(steps=200))
    assert noise(engine, found, images) < 0.8 * noise(engine, plan, images)
    for site, spec in found.sites:
        for text in (spec.rounding, spec.correction):
            assert not text.startswith("given") or text in engine.calibration.given, site


class Alternating(nn.Module):
    """Layers that AdaRound does not know in front of ones that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown, self.known = nn.ConvTranspose2d(4, 8, 3), nn.Conv2d(8, 8, 3)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2), nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.unknown, self.known, self.up):
            x = layer(x).relu()
        return self.head(x)


def test_no_shift_is_made_good_twice() -> None:
    torch.manual_seed(0)
    x = torch.rand(32, 4, 6, 6)
    engine, plan = engine_of(Alternating().eval(), x, bits=3)
    layers = layers_of(engine)
    found = round_weights(engine, plan, [(x,)], layers, Effort(steps=100, patches=1024))
    assert found[Site("unknown", "weight")].rounding == "nearest"
    assert all(found[Site(name, "weight")].correction.startswith("given") for name in layers)
    corrected = correct_biases(engine, plan, [(x,)], layers)
    assert noise(engine, found, x) < noise(engine, corrected, x)
    again = correct_biases(engine, found, [(x,)], layers)
    for name in layers:
        before, after = (engine.calibration.given[p[Site(name, "weight")].correction] for p in (found, again))
        torch.testing.assert_close(before, after, atol=0.03, rtol=0)


class Places(nn.Module):
    """Linear layers along the last of several dimensions, with activations that know their place."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes, self.prelu, self.bounded = nn.Linear(8, 16), nn.PReLU(4), nn.Linear(16, 6)
        self.register_buffer("most", torch.linspace(0.1, 0.6, 6).reshape(1, 1, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.slopes(x))
        return self.bounded(x.unflatten(1, (2, 2))).clamp(max=self.most)


def test_activations_behind_linear_layers_may_differ_by_channel_and_by_position() -> None:
    torch.manual_seed(0)
    module = Places().eval()
    module.prelu.weight.data.uniform_()
    x = torch.randn(64, 4, 8)
    engine, plan = engine_of(module, x, bits=3)
    assert engine.program.network.layer("bounded").activation == "clamp"
    found = round_weights(engine, plan, [(x,)], layers_of(engine), Effort(steps=100, patches=512))
    # A slope by position is nothing that a patch at some position could be given.
    assert found[Site("slopes", "weight")].rounding == "nearest"
    assert found[Site("bounded", "weight")].rounding != "nearest"
