"""Outlier channel splitting: the same function, a smaller range."""

from __future__ import annotations

import pytest
import torch

from quantopsy.core import QuantopsyError
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.transforms.channel_splitting import split_outlier_channels


def run(network, images: torch.Tensor) -> torch.Tensor:
    """The network's output."""
    program = compile_network(network)
    with torch.no_grad():
        return program.forward(program.place((images,)))[0]


def test_the_float_function_is_preserved_and_the_original_untouched(small, images) -> None:
    network = capture(small, (images[:2],))
    before = network.fingerprint
    split = split_outlier_channels(network, 0.1)
    torch.testing.assert_close(run(split, images), run(network, images), rtol=1e-5, atol=1e-6)
    assert network.fingerprint == before
    assert split.fingerprint != before


def test_an_outlier_is_halved_and_channels_are_counted(small, images) -> None:
    with torch.no_grad():
        small.left.weight[2, 5] = 20.0
    network = capture(small, (images[:2],))
    split = split_outlier_channels(network, 0.1, patterns=("left",))
    layer = split.layer("left")
    assert layer.weight_shape == (8, 9, 1, 1)
    assert layer.macs == network.layer("left").macs * 9 // 8
    assert float(split.weight(layer).abs().max()) == pytest.approx(10.0, rel=0.02)
    assert split.layer("head") == network.layer("head")


def test_depthwise_layers_are_left_and_nothing_to_split_is_refused(small, images) -> None:
    network = capture(small, (images[:2],))
    assert split_outlier_channels(network, 0.1).layer("depthwise.0") == network.layer("depthwise.0")
    with pytest.raises(QuantopsyError, match="no matching layer is a convolution without groups"):
        split_outlier_channels(network, 0.1, patterns=("depthwise.0",))
    with pytest.raises(QuantopsyError, match="not a share of the channels"):
        split_outlier_channels(network, 0.0)
