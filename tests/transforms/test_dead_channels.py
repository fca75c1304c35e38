"""Nearly dead channels: no weights, the same constant."""

from __future__ import annotations

import json

import pytest
import torch
from random_net import pictures
from torch import nn

from quantopsy.core import QuantopsyError
from quantopsy.engine.channel_statistics import channel_statistics
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.transforms.dead_channels import DeadChannels, find_dead_channels
from quantopsy.transforms.registry import from_json
from quantopsy.transforms.transform import check_function

IMAGES = (pictures(20, 8),)


def network_with(activation: nn.Module) -> Network:
    """Channel 0 is never above zero before the activation, channel 1 hardly moves, the others live."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        first.weight[0] *= 50
        first.bias[0] = -500
        first.weight[1] *= 1e-6
        first.bias[1] = 0.7
    return capture(nn.Sequential(first, activation, second).eval(), (pictures(2, 8),))


def ranges(network: Network) -> dict:
    """Extremes of every channel."""
    seen = channel_statistics(compile_network(network), [IMAGES])
    return {name: (channels.low, channels.high) for name, channels in seen.items()}


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0.0, 0.8)])
def test_a_channel_that_hardly_moves_loses_its_weights_and_keeps_its_value(activation) -> None:
    network = network_with(activation)
    found = find_dead_channels(network, ranges(network))
    assert list(found.constants) == ["0"]
    constant = found.constants["0"]
    assert constant[:2].tolist() == pytest.approx([0.0, 0.7], abs=1e-3)
    assert bool(constant[2:].isnan().all())
    after = found.apply(network)
    assert after.tensors["0.weight"][:2].abs().max() == 0
    assert torch.equal(after.tensors["0.weight"][2:], network.tensors["0.weight"][2:])
    assert after.tensors["0.weight"].abs().max() < network.tensors["0.weight"].abs().max() / 10
    assert 0 < check_function(network, after, [IMAGES]) < 1e-3


def test_an_activation_that_does_not_give_its_argument_keeps_the_channel() -> None:
    network = network_with(nn.SiLU())
    assert find_dead_channels(network, ranges(network)).constants == {}


def test_folding_a_batch_norm_of_a_dead_channel_is_undone() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
    with torch.no_grad():
        convolution.weight[2] = 1e-9  # the variance is next to nothing, the weight is not after folding
        norm.running_var[2] = 1e-12
        norm.weight[2], norm.eps = 30.0, 1e-14
        norm.bias[2] = -10.0
    network = capture(nn.Sequential(convolution, norm, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), (pictures(2, 8),))
    found = find_dead_channels(network, ranges(network))
    assert found.constants["0"].isnan().tolist() == [True, True, False, True]
    assert check_function(network, found.apply(network), [IMAGES]) < 1e-6


def test_from_json_comes_the_identical_network_and_another_is_refused() -> None:
    network = network_with(nn.ReLU())
    found = find_dead_channels(network, ranges(network))
    read = from_json(json.loads(json.dumps(found.to_json())))
    assert read.apply(network).fingerprint == found.apply(network).fingerprint
    with pytest.raises(QuantopsyError, match="dead channels of layer '2': 4 constants for 2 channels"):
        type(found)({"2": torch.zeros(4)}).apply(network)
    with pytest.raises(QuantopsyError, match="layer 'zero': there is none of that name"):
        find_dead_channels(network, ranges(network), layers=["zero"])


class Tied(nn.Module):
    """What a layer gives, and its own weight and bias as factors of it."""

    def __init__(self, role: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.role = nn.Linear(6, 6), role

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return y * self.first.bias if self.role == "bias" else torch.matmul(y.relu().unsqueeze(1), self.first.weight)


@pytest.mark.parametrize("role", ["bias", "weight"])
def test_a_tensor_that_something_else_reads_is_left_alone(role: str) -> None:
    x = torch.rand(2, 6)
    network = capture(Tied(role).eval(), (x,))
    low, high = torch.full((6,), 0.5), torch.full((6,), 0.5)
    high[0] = 2.0
    assert find_dead_channels(network, {network.layer("first").output: (low, high)}).constants == {}
    with pytest.raises(QuantopsyError, match=r"mul\w* reads the same weight or bias"):
        DeadChannels({"first": torch.full((6,), 0.5)}).apply(network)
