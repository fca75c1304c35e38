"""The screen against a Jacobian that is formed in full, and against exact noise where that is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.func import jvp

from quantopsy.analysis.schemes import at_bits, full_plan, grids, single_layer
from quantopsy.core import Site, Spec
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine, squared_norms
from quantopsy.engine.screen import ScreenEngine
from quantopsy.engine.weight_gradients import per_sample_gradient, supported
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network

ROLES = ("input", "weight", "output")


def candidates(network, bits) -> dict[Site, list[Spec]]:
    """Weights at ``bits``, activations at 8."""
    plan = full_plan(network, grids("per-tensor", 8))
    return {site: [spec.with_bits(b) for b in bits] if site.role == "weight" else [spec] for site, spec in plan.sites}


def screened(module: nn.Module, images: torch.Tensor, bits, tile: int = 4, **options):
    """(engine, e by site and spec (n, P), margins)."""
    program = compile_network(capture(module, (images[:2],)))
    plan = full_plan(program.network, grids("per-tensor", 8))
    ranges = calibrate(program, [(images,)], wanted_statistics(program.network, [plan]))
    engine = ScreenEngine(program, ranges, **options)
    wanted = candidates(program.network, bits)
    parts = []
    for start in range(0, len(images), tile):
        rows = np.arange(start, min(start + tile, len(images)))
        parts.append(engine.run_tile((images[rows],), rows, wanted))
    e = {key: torch.cat([part.e[key] for part in parts]) for key in parts[0].e}
    return engine, e, torch.cat([part.margin for part in parts]), torch.cat([part.outputs[0] for part in parts])


@pytest.mark.parametrize("bits", [(4,), (3, 4, 5, 6, 7, 8)])
def test_e_of_a_weight_is_the_probe_times_the_jacobian(small, images, bits) -> None:
    """Forward-mode differentiation of the module's own code gives J d; e must be <v, J d>."""
    engine, e, _, outputs = screened(small, images, bits)
    network = engine.program.network
    layer = network.layer("left")
    weight = small.left.weight.detach()
    spec = candidates(network, bits)[Site("left", "weight")][0]
    from quantopsy.calibrate import quantized_weight

    change = quantized_weight(spec, weight) - weight

    def forward(w: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(small, {"left.weight": w}, (images,))

    _, moved = jvp(forward, (weight,), (change,))
    top = outputs.topk(2, 1).indices
    expected = (moved.gather(1, top[:, :1]) - moved.gather(1, top[:, 1:]))[:, 0].double()
    torch.testing.assert_close(e[Site("left", "weight"), spec][:, -1], expected, rtol=1e-3, atol=1e-6)
    assert layer.name == "left"


def test_random_probes_are_unbiased(small, images) -> None:
    """Over many seeds the mean of e^2 is the squared length of J d."""
    spec = Spec(bits=4)
    from quantopsy.calibrate import quantized_weight

    weight = small.left.weight.detach()
    change = quantized_weight(spec, weight) - weight
    _, moved = jvp(lambda w: torch.func.functional_call(small, {"left.weight": w}, (images,)), (weight,), (change,))
    expected = moved.double().square().sum(1).mean()
    _, e, *_ = screened(small, images, (4,), tile=12, noise_probes=200, margin=True)
    found = e[Site("left", "weight"), spec][:, :-1].square().mean()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)


def test_probes_belong_to_images_not_to_tiles(small, images) -> None:
    _, by_four, *_ = screened(small, images, (4,), tile=4)
    _, by_five, *_ = screened(small, images, (4,), tile=5)
    for key, value in by_four.items():
        torch.testing.assert_close(by_five[key], value, rtol=1e-3, atol=1e-5)


def test_the_margin_is_of_the_two_largest_outputs(small, images) -> None:
    _, _, margin, outputs = screened(small, images, (8,))
    top = outputs.topk(2, 1).values
    torch.testing.assert_close(margin, (top[:, 0] - top[:, 1]).double())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(4, 6, 1), (4, 5, 5)),
        (lambda: nn.Conv2d(4, 6, 1, stride=2), (4, 5, 5)),
        (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1, stride=2), (6, 8, 8)),
        (lambda: nn.Conv2d(6, 12, 3, groups=6), (6, 8, 8)),
        (lambda: nn.Conv2d(6, 9, 3, groups=3, dilation=2), (6, 8, 8)),
        (lambda: nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), (3, 6, 7)),
        (lambda: nn.Linear(7, 5), (7,)),
        (lambda: nn.Linear(7, 5), (3, 7)),
    ],
)
def test_per_sample_gradients_are_those_of_a_loop_over_samples(layer, shape) -> None:
    torch.manual_seed(0)
    module, x = layer(), torch.randn(3, *shape)
    program = compile_network(capture(module, (x,)))
    step = next(step for step in program.steps if step.layer is not None)
    y = module(x)
    g = torch.randn_like(y)
    arguments = step.arguments({**program.constants, **program.place((x,))})
    assert supported(step.target, arguments, 3)
    found = per_sample_gradient(step.target, arguments, arguments[0], g)
    for i in range(3):
        (expected,) = torch.autograd.grad(module(x[i : i + 1]), module.weight, g[i : i + 1])
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


def test_a_real_network_is_ranked_as_by_exact_noise(zoo) -> None:
    module = zoo.network("resnet20")
    dataset = zoo.images("resnet20", "cifar10_test", 96)
    images = torch.stack([dataset[i][0] for i in range(96)])
    engine, e, *_ = screened(module, images, (5, 8), tile=96)
    network = engine.program.network
    exact = ExactEngine(engine.program, engine.calibration)
    full = full_plan(network, grids("per-tensor", 8))
    for bits in (5, 8):
        plans = [single_layer(at_bits(full, bits), layer) for layer in network.layers]
        predicted = [float(sum(e[site, spec] for site, spec in plan.sites)[:, 0].square().mean()) for plan in plans]
        found, reference = [0.0] * len(plans), ()
        for measured in exact.run_tile((images,), [exact.prepare(plan) for plan in plans]):
            if measured.run < 0:
                reference = measured.outputs
            else:
                found[measured.run] = float(squared_norms(measured.outputs, reference).mean())
        assert spearmanr(predicted, found).statistic > 0.95
        assert 0.8 < np.median(np.array(predicted) / np.array(found)) < 1.25
