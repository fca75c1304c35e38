"""Bias absorption: the same function where no value is below what was moved, shorter ranges."""

from __future__ import annotations

import json

import pytest
import torch
from random_net import pictures
from torch import Tensor, nn

from quantopsy.core import QuantopsyError
from quantopsy.engine.channel_statistics import channel_statistics
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.transforms.bias_absorption import find_bias_absorption
from quantopsy.transforms.registry import from_json
from quantopsy.transforms.transform import check_function

IMAGES = (pictures(20, 8),)


def lifted(*behind: nn.Module, activation: nn.Module | None = None) -> Network:
    """A convolution whose channels are far above zero, an activation, and what is ``behind``."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        first.weight.mul_(0.1)
        first.bias.copy_(torch.tensor([3.0, 1.5, 4.0, 0.0]))
    return capture(nn.Sequential(first, activation or nn.ReLU(), *behind).eval(), (pictures(2, 8),))


def lowest(network: Network, images: tuple[Tensor, ...] = IMAGES) -> dict[str, Tensor]:
    """The least number of every channel."""
    return {name: seen.low for name, seen in channel_statistics(compile_network(network), [images]).items()}


@pytest.mark.parametrize(
    ("activation", "behind"),
    [
        (nn.ReLU(), (nn.Conv2d(4, 4, 3, bias=False),)),
        (nn.ReLU6(), (nn.Conv2d(4, 8, 1, groups=2), nn.ReLU())),
        (nn.Hardtanh(0.0, 5.0), (nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))),
        (nn.ReLU6(), (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))),
        (nn.Identity(), (nn.Flatten(), nn.Linear(4 * 64, 3, bias=False))),
    ],
)
def test_what_was_never_below_an_offset_gives_it_to_the_next_layer(activation, behind) -> None:
    network = lifted(*behind, activation=activation)
    low = lowest(network)
    found = find_bias_absorption(network, low)
    assert list(found.absorbed) == ["0"]
    after = found.apply(network)
    assert check_function(network, after, [IMAGES]) < 1e-5
    # The channels now start at zero, and their ranges are shorter by what they gave.
    value = network.layers[0].output
    torch.testing.assert_close(lowest(after)[value].clamp(min=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.tensors["0.bias"], network.tensors["0.bias"] - low[value].clamp(min=0))


def test_values_below_what_was_moved_change_the_function_and_it_says_so() -> None:
    network = lifted(nn.Conv2d(4, 4, 1))
    value = network.layers[0].output
    found = find_bias_absorption(network, {value: lowest(network)[value] + 0.3})
    assert check_function(network, found.apply(network), [IMAGES]) > 1e-4
    assert found.exact is False


@pytest.mark.parametrize(
    ("behind", "activation", "message"),
    [
        ((nn.Conv2d(4, 4, 3, padding=1),), nn.ReLU(), "0: layer '2' behind it pads with zeros"),
        ((nn.ReLU6(),), nn.SiLU(), "silu behind it does not let an offset through"),
        ((nn.Conv2d(4, 4, 1),), nn.LeakyReLU(), "leaky_relu behind it does not"),
        ((nn.Conv2d(4, 4, 1),), nn.Hardtanh(), "hardtanh behind it does not"),
        ((nn.Sigmoid(), nn.Conv2d(4, 4, 1)), nn.ReLU(), r"sigmoid\.default behind it cannot take it"),
    ],
)
def test_what_cannot_take_an_offset_is_refused_where_it_was_named(behind, activation, message) -> None:
    network = lifted(*behind, activation=activation)
    assert find_bias_absorption(network, lowest(network)).absorbed == {}
    with pytest.raises(QuantopsyError, match=message):
        find_bias_absorption(network, lowest(network), layers=["0"])


def test_from_json_comes_the_identical_network() -> None:
    network = lifted(nn.Conv2d(4, 4, 1))
    found = find_bias_absorption(network, lowest(network))
    read = from_json(json.loads(json.dumps(found.to_json())))
    assert read.apply(network).fingerprint == found.apply(network).fingerprint
    with pytest.raises(QuantopsyError, match="bias absorption of layer '0': 3 numbers for 4 channels"):
        from_json({"name": "bias_absorption", "absorbed": {"0": [1, 2, 3]}}).apply(network)


@pytest.mark.parametrize(("value", "gives"), [(0.0, ["0"]), (1.0, [])])
def test_a_constant_around_the_values_takes_no_offset(value: float, gives: list[str]) -> None:
    network = lifted(nn.ConstantPad2d(1, value), nn.Flatten(), nn.Linear(4 * 100, 3))
    found = find_bias_absorption(network, lowest(network))
    assert list(found.absorbed) == gives
    assert check_function(network, found.apply(network), [IMAGES]) < 1e-5


def test_a_bias_that_something_else_reads_is_kept() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu()) * self.first.bias

    torch.manual_seed(0)
    network = capture(Read().eval(), (torch.rand(2, 6),))
    low = {network.layer("first").output: torch.ones(4)}
    assert find_bias_absorption(network, low).absorbed == {}
    with pytest.raises(QuantopsyError, match=r"mul\w* reads the same bias"):
        find_bias_absorption(network, low, layers=["first"])
