"""AdaRound over blocks of layers, against layer by layer and against every rounding of two layers together."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_sequential import engine_of, layers_of, noise
from torch import nn

from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.adaround import Effort, round_weights
from quantopsy.engine.blocks import MOST, blocks, round_blocks
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network


class Residual(nn.Module):
    """Two residual blocks, then a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.chain = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x + self.b(self.a(x).relu())).relu()
        x = (x + self.d(self.c(x).relu())).relu()
        return self.chain(x).mean((2, 3))


def test_a_residual_block_is_a_block_and_a_chain_is_cut_into_some() -> None:
    torch.manual_seed(0)
    program = compile_network(capture(Residual().eval(), (torch.randn(2, 4, 8, 8),)))
    names = [[step.layer.name for step in block if step.weight] for block in blocks(program, program.network.names)]
    assert names[:2] == [["a", "b"], ["c", "d"]]
    assert [len(found) for found in names[2:]] == [MOST, 6 - MOST]
    assert [step.index for block in blocks(program, ()) for step in block] == list(range(len(program.steps)))


def test_the_number_of_images_is_no_value_between_blocks() -> None:
    class Flattened(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            images = x.shape[0]
            x = (x + self.b(self.a(x).relu())).relu()
            x = (x + self.d(self.c(x).relu())).relu()
            return x.view(images, -1).cumsum(1)  # which takes a decomposition

    torch.manual_seed(0)
    program = compile_network(capture(Flattened().eval(), (torch.randn(2, 4, 8, 8),)))
    names = [[step.layer.name for step in block if step.weight] for block in blocks(program, program.network.names)]
    assert names[:2] == [["a", "b"], ["c", "d"]]


def test_two_layers_together_are_among_the_best_of_all_their_roundings() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 3, bias=False)).eval()
    x = torch.randn(128, 1) + 0.2 * torch.randn(128, 4)
    program = compile_network(capture(module, (x[:2],)))
    sites = [Site(name, "weight") for name in program.network.names]
    plan = Plan.of(dict.fromkeys(sites, Spec(bits=3, symmetric=True)))
    engine = ExactEngine(program, calibrate(program, [(x,)], wanted_statistics(program.network, [plan])))
    choices = []
    for site in sites:
        weight = program.network.tensors[program.network.layer(site.layer).weight]
        grid = engine.calibration.weight_qparams(program.network.layer(site.layer), plan[site], weight)
        down = (weight / grid.scale).floor()
        ups = itertools.product((0, 1), repeat=weight.numel())
        choices.append([((down + torch.tensor(up).reshape(weight.shape)).clamp(-4, 3) * grid.scale).T for up in ups])
    wanted = module(x).detach()
    every = sorted(float((x @ a @ b - wanted).square().sum(1).mean()) for a in choices[0] for b in choices[1])
    found = round_blocks(engine, plan, [(x,)], set(program.network.names), Effort(steps=400))
    assert every[0] <= noise(engine, found, x) <= every[len(every) // 25]
    assert noise(engine, plan, x) > 2 * noise(engine, found, x)


def test_blocks_gain_and_lose_nothing_that_layers_had_gained() -> None:
    torch.manual_seed(0)
    module, x = Residual().eval(), torch.nn.functional.avg_pool2d(torch.randn(32, 4, 10, 10), 3, 1) * 3
    spec = Spec(bits=3, symmetric=True, granularity="per_channel")
    program = compile_network(capture(module, (x[:2],)))
    plan = Plan.of({Site(layer.name, "weight"): spec for layer in program.network.layers if layer.weight})
    engine = ExactEngine(program, calibrate(program, [(x,)], wanted_statistics(program.network, [plan])))
    batches, names = [(x[:16],), (x[16:],)], set(program.network.names)
    by_layer = round_weights(engine, plan, batches, names, Effort(steps=300))
    by_block = round_blocks(engine, by_layer, batches, names, Effort(steps=300))
    assert noise(engine, by_block, x) <= 1.02 * noise(engine, by_layer, x)
    assert noise(engine, by_layer, x) < noise(engine, plan, x)
    assert noise(engine, round_blocks(engine, plan, batches, names, Effort(steps=300)), x) < noise(engine, plan, x)
    assert {spec.correction for _, spec in by_block.sites} == {spec.correction for _, spec in by_layer.sites}


def test_a_whole_network_with_grids_on_activations(small, images) -> None:
    engine, plan = engine_of(small, images, bits=3)
    by_layer = round_weights(engine, plan, [(images,)], layers_of(engine), Effort(steps=100))
    found = round_blocks(engine, by_layer, [(images,)], layers_of(engine), Effort(steps=100))
    assert noise(engine, found, images) < noise(engine, plan, images)
    for site, spec in found.sites:
        assert not spec.rounding.startswith("given") or spec.rounding in engine.calibration.given, site
    # What nobody asked for stays.
    assert round_blocks(engine, plan, [(images,)], (), Effort(steps=1)) == plan


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_roundings(small, images, seed) -> None:
    found = []
    for _ in range(2):
        engine, plan = engine_of(small, images, bits=3)
        found.append(round_blocks(engine, plan, [(images,)], layers_of(engine), Effort(steps=20, seed=seed)))
    assert found[0] == found[1]


def test_when_time_is_up_the_rest_stays_as_it_is(small, images) -> None:
    engine, plan = engine_of(small, images, bits=3)
    layers, up = layers_of(engine), iter([False, *[True] * 99])
    some = round_weights(engine, plan, [(images,)], layers, Effort(steps=5), over=lambda: next(up))
    assert sum(spec.rounding != "nearest" for _, spec in some.sites) <= 1
    assert round_blocks(engine, plan, [(images,)], layers, Effort(steps=5), over=lambda: True) == plan


def test_a_layer_that_is_not_rounded_stands_behind_one_that_is() -> None:
    """A transposed convolution keeps its weight on its grid, which a pass without gradients has made before."""
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 3, 1)
    module = nn.Sequential(convolution, nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2), nn.ReLU(), linear).eval()
    x = torch.randn(16, 3, 8, 8)
    engine, plan = engine_of(module, x, bits=3)
    assert noise(engine, plan, x) > 0
    found = round_blocks(engine, plan, [(x,)], layers_of(engine), Effort(steps=50))
    assert noise(engine, found, x) < noise(engine, plan, x)
    assert found[Site("2", "weight")] == plan[Site("2", "weight")]
