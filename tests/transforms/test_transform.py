"""What all transforms share: the check of the float function, and their form in JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from quantopsy.core import QuantopsyError
from quantopsy.engine.channel_statistics import channel_statistics
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.transforms.bias_absorption import find_bias_absorption
from quantopsy.transforms.channel_splitting import find_channel_splitting
from quantopsy.transforms.dead_channels import find_dead_channels
from quantopsy.transforms.equalization import find_equalization
from quantopsy.transforms.registry import TRANSFORMS, from_json
from quantopsy.transforms.transform import (
    TOLERANCE,
    Transform,
    apply_checked,
    check_function,
    decode,
    encode,
)


@dataclass(frozen=True)
class Louder:
    """Doubles the last bias: no transform that should be called exact."""

    exact: bool
    name: ClassVar[str] = "louder"

    def apply(self, network: Network) -> Network:
        return replace(network, tensors={**network.tensors, "head.bias": 2 * network.tensors["head.bias"]})


def test_the_largest_change_of_an_image_is_measured(small, images) -> None:
    network = capture(small, (images[:2],))
    with torch.no_grad():
        y, louder = small(images), small(images) + small.head.bias
    expected = ((louder - y).norm(dim=1) / y.norm(dim=1)).max()
    found = check_function(network, Louder(False).apply(network), [(images[:7],), (images[7:],)])
    assert found == pytest.approx(float(expected), rel=1e-4)
    assert check_function(network, network, [(images,)]) == 0.0
    with pytest.raises(QuantopsyError, match="no image to check it on"):
        check_function(network, network, [])


def test_a_transform_that_says_it_is_exact_must_be(small, images) -> None:
    network = capture(small, (images[:2],))
    _, moved = apply_checked(Louder(False), network, [(images,)])
    assert moved > TOLERANCE
    with pytest.raises(QuantopsyError, match="transform 'louder': it moves the float outputs by"):
        apply_checked(Louder(True), network, [(images,)])


def test_vectors_keep_every_bit_in_json() -> None:
    vectors = {"a": torch.tensor([1 / 3, -0.0, 1e-40, float("nan"), float("inf")]), "b": torch.empty(0)}
    read = decode(encode(vectors))
    for name, vector in vectors.items():
        assert torch.equal(read[name].view(torch.int32), vector.view(torch.int32))


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_a_transform_without_its_fields_is_refused(name) -> None:
    with pytest.raises(QuantopsyError, match=f"transform '{name}': it has no field"):
        from_json({"name": name})
    field = {"equalization": "scales", "bias_absorption": "absorbed", "dead_channels": "constants",
             "channel_splitting": "splits"}[name]  # fmt: skip
    with pytest.raises(QuantopsyError, match=f"transform '{name}': a field of it has another form"):
        from_json({"name": name, field: 3})


def dead(network: Network, images: torch.Tensor) -> Transform:
    seen = channel_statistics(compile_network(network), [(images,)])
    return find_dead_channels(network, {name: (channels.low, channels.high) for name, channels in seen.items()})


def absorption(network: Network, images: torch.Tensor) -> Transform:
    seen = channel_statistics(compile_network(network), [(images,)])
    return find_bias_absorption(network, {name: channels.low for name, channels in seen.items()})


def test_transforms_follow_one_another_and_read_back_as_a_list(small, images) -> None:
    network = start = capture(small, (images[:2],))
    written = []
    for find in (
        lambda network: dead(network, images),
        find_equalization,
        lambda network: absorption(network, images),
        lambda network: find_channel_splitting(network, 0.1),
    ):
        transform = find(network)
        network, _ = apply_checked(transform, network, [(images,)])
        written.append(transform.to_json())
    assert check_function(start, network, [(images,)]) < 1e-4
    for data in json.loads(json.dumps(written)):
        start = from_json(data).apply(start)
    assert start.fingerprint == network.fingerprint
    assert start.layers == network.layers
