"""Outlier channel splitting: the same function, a smaller range."""

from __future__ import annotations

import json

import pytest
import torch

from quantopsy.core import QuantopsyError
from quantopsy.graph.capture import capture
from quantopsy.transforms.channel_splitting import find_channel_splitting
from quantopsy.transforms.registry import from_json
from quantopsy.transforms.transform import apply_checked


def test_the_float_function_is_preserved_and_the_original_untouched(small, images) -> None:
    network = capture(small, (images[:2],))
    before = network.fingerprint
    split, moved = apply_checked(find_channel_splitting(network, 0.1), network, [(images,)])
    assert moved < 1e-5
    assert network.fingerprint == before
    assert split.fingerprint != before


def test_an_outlier_is_halved_and_channels_are_counted(small, images) -> None:
    with torch.no_grad():
        small.left.weight[2, 5] = 20.0
    network = capture(small, (images[:2],))
    split = find_channel_splitting(network, 0.1, patterns=("left",)).apply(network)
    layer = split.layer("left")
    assert layer.weight_shape == (8, 9, 1, 1)
    assert layer.macs == network.layer("left").macs * 9 // 8
    assert float(split.weight(layer).abs().max()) == pytest.approx(10.0, rel=0.02)
    assert split.layer("head") == network.layer("head")


def test_from_json_comes_the_identical_network(small, images) -> None:
    network = capture(small, (images[:2],))
    found = find_channel_splitting(network, 0.2, bits=4)
    read = from_json(json.loads(json.dumps(found.to_json())))
    assert read == found
    assert read.apply(network).fingerprint == found.apply(network).fingerprint


def test_depthwise_layers_are_left_and_nothing_to_split_is_refused(small, images) -> None:
    network = capture(small, (images[:2],))
    split = find_channel_splitting(network, 0.1).apply(network)
    assert split.layer("depthwise.0") == network.layer("depthwise.0")
    with pytest.raises(QuantopsyError, match="no matching layer is a convolution without groups"):
        find_channel_splitting(network, 0.1, patterns=("depthwise.0",))
    with pytest.raises(QuantopsyError, match="not a share of the channels"):
        find_channel_splitting(network, 0.0)
    made = {"name": "channel_splitting", "splits": {"depthwise.0": {"ratio": 0.1, "step": 0.0}}}
    with pytest.raises(QuantopsyError, match=r"layer 'depthwise\.0': it is no convolution without groups"):
        from_json(made).apply(network)
