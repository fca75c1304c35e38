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
