"""Curvature of the decision with every weight, against the whole Fisher matrix."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from quantopsy.engine.curvature import mean_curvature
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network


def test_it_is_the_mean_diagonal_of_the_fisher_information() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).eval()
    x = torch.randn(6, 2, 4, 4)
    parameters = dict(module.named_parameters())
    program = compile_network(capture(module, (x,)))

    def logits(some, image):
        return functional_call(module, some, image[None])[0]

    exact = dict.fromkeys(("0", "3"), 0.0)
    for image in x:
        jacobian = jacrev(logits)(parameters, image)
        share = logits(parameters, image).detach().softmax(0)
        for name in exact:
            j = jacobian[f"{name}.weight"].detach().reshape(4, -1)
            # F = J' (diag p - p p') J
            fisher = (share[:, None] * j.square()).sum(0) - (share @ j).square()
            exact[name] += float(fisher.mean()) / len(x)
    draws = [mean_curvature(program, [(x[:4],), (x[4:],)], seed=seed) for seed in range(400)]
    for name, expected in exact.items():
        found = sum(draw[name] for draw in draws) / len(draws)
        assert found == pytest.approx(expected, rel=0.15)


def test_layers_that_share_a_weight_count_as_if_each_had_its_own() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self, first: nn.Module, second: nn.Module) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu())

    one = nn.Linear(4, 4)
    x = torch.randn(6, 4)
    shared, apart = (
        mean_curvature(compile_network(capture(Twice(one, other).eval(), (x,))), [(x,)])
        for other in (one, copy.deepcopy(one))
    )
    assert list(shared.values()) == pytest.approx(list(apart.values()))
    assert len(shared) == 2


def test_of_a_number_for_each_image_it_is_the_mean_squared_gradient() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)).eval()
    x = torch.randn(64, 5)
    program = compile_network(capture(module, (x,)))
    draws = [mean_curvature(program, [(x,)], seed=seed)["0"] for seed in range(300)]
    assert sum(draws) / len(draws) == pytest.approx(float(x.square().mean()), rel=0.15)
