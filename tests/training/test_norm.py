"""A kept batch norm trains as the batch norm that was folded, and is nothing but a bias in evaluation."""

from __future__ import annotations

import pytest
import torch
from learning import pictures
from torch import nn

from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.training.network import Learning, TrainableNetwork
from quantopsy.training.norm import EPS, MOMENTUM, KeptNorm, measured_moments, reestimate
from quantopsy.training.quantizers.ste import StraightThrough


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))


def pair(x: torch.Tensor) -> tuple[Normed, TrainableNetwork]:
    """A module whose batch norm knows ``x``, and its folded network with the batch norm kept; nothing quantized."""
    torch.manual_seed(0)
    module = Normed()
    norm = module.body[1]
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    norm.momentum = None  # a plain mean
    with torch.no_grad():
        module.train()(x)
        norm.running_var *= (x[:, 0, 2:, 2:].numel() - 1) / x[:, 0, 2:, 2:].numel()
    norm.momentum = 0.1
    module.eval()
    program = compile_network(capture(module, (x[:2],)))
    moments = measured_moments(program, [(x,)])
    return module, TrainableNetwork(program, Plan(), Calibration(), moments=moments)


def test_evaluation_is_the_folded_network_to_the_bit() -> None:
    x = pictures(0, 16)
    _, network = pair(x)
    network.eval()
    folded = network.program.network
    with torch.no_grad():
        assert torch.equal(network(x), folded.unflatten(network.program.forward(network.program.place((x,)))))


def test_training_normalises_as_torch_does() -> None:
    x, batch = pictures(0, 64), pictures(1, 16)
    module, network = pair(x)
    with torch.no_grad():
        torch.testing.assert_close(network.train()(batch), module.train()(batch), rtol=1e-3, atol=1e-4)


def test_training_leads_where_the_unfolded_network_leads() -> None:
    x = pictures(0, 64)
    module, network = pair(x)
    for step in range(5):
        batch = pictures(10 + step, 16)
        for learner in (module.train(), network.train()):
            optimizer = torch.optim.SGD([p for p in learner.parameters() if p.dim() == 1], lr=0.05)
            optimizer.zero_grad()
            learner(batch).square().sum().backward()
            optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), module.eval()(x), rtol=2e-2, atol=2e-2)


def test_what_was_trained_is_folded_again() -> None:
    x = pictures(0, 32)
    _, network = pair(x)
    with torch.no_grad():
        for step in range(3):
            network.train()(pictures(step, 16))
    network.eval()
    float_network, _, _ = network.trained()
    program = compile_network(float_network)
    with torch.no_grad():
        found = float_network.unflatten(program.forward(program.place((x,))))
        torch.testing.assert_close(found, network(x), rtol=1e-5, atol=1e-5)


def test_moments_are_estimated_again() -> None:
    x = pictures(0, 32)
    _, network = pair(x)
    other = 3 * pictures(4, 32) + 1
    with torch.no_grad():
        wanted = network.train()(other)
        reestimate(network, network.run, [(other,)])
        assert any(isinstance(module, KeptNorm) for module in network.modules())
        torch.testing.assert_close(network(other), wanted, rtol=1e-3, atol=1e-3)


def test_grids_that_follow_the_data_stay_while_moments_are_estimated_again() -> None:
    x = pictures(0, 16)
    module, _ = pair(x)
    program = compile_network(capture(module, (x[:2],)))
    plan = Plan.of({Site(layer.name, "weight"): Spec(bits=4) for layer in program.network.layers if layer.weight})
    network = TrainableNetwork(program, plan, Calibration(), Learning("ste"), measured_moments(program, [(x,)]))
    with torch.no_grad():
        for quantizer in network.quantizers:
            assert isinstance(quantizer, StraightThrough)
            quantizer.observe()
        for layer in network.quantized_layers:
            if layer.weight is not None:
                layer.weight.mul_(3)
        before = [quantizer.qparams.ends for quantizer in network.quantizers]
        moments = [norm.mean.clone() for norm in network.modules() if isinstance(norm, KeptNorm)]
        reestimate(network, network.run, [(x,)])
    for (low, high), quantizer in zip(before, network.quantizers, strict=True):
        assert torch.equal(quantizer.qparams.ends[0], low)
        assert torch.equal(quantizer.qparams.ends[1], high)
    assert all(
        not torch.equal(norm.mean, mean)
        for norm, mean in zip([m for m in network.modules() if isinstance(m, KeptNorm)], moments, strict=True)
    )


@pytest.mark.parametrize("shape", [(16, 64), (8, 64, 3, 3)])
def test_running_moments_are_torch_s(shape) -> None:
    norm = KeptNorm(torch.zeros(64), torch.ones(64))
    batch_norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(64).train()
    for step in range(20):
        y = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(norm(y, torch.zeros(64)), batch_norm(y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.mean, batch_norm.running_mean)
    torch.testing.assert_close(norm.variance, batch_norm.running_var, rtol=1e-4, atol=2 * EPS)


def test_moments_that_are_estimated_again_count_images() -> None:
    norm = KeptNorm(torch.zeros(2), torch.ones(2))
    x = torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x[32:] += 5  # where all batches counted alike, the mean would be 2.5
    reestimate(norm, lambda batch: norm(batch[0], torch.zeros(2)), [(x[:32],), (x[32:],)])
    torch.testing.assert_close(norm.mean, x.mean((0, 2, 3)))
    variance = (32 * x[:32].var((0, 2, 3)) + 8 * x[32:].var((0, 2, 3))) / 40
    torch.testing.assert_close(norm.variance, variance + EPS)
    assert norm.momentum == MOMENTUM  # training may go on


def test_moments_of_half_precision_are_kept_in_float() -> None:
    norm, y = KeptNorm(torch.zeros(3), torch.ones(3)), pictures(0, 16)
    assert norm(y.bfloat16(), torch.zeros(3)).dtype == torch.bfloat16
    torch.testing.assert_close(norm.mean, MOMENTUM * y.mean((0, 2, 3)), rtol=0, atol=1e-3)
