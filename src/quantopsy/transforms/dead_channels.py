"""Nearly dead channels made truly so: a constant needs no weights.

Folding a batch norm with a tiny running variance blows up the weights of a channel that hardly ever moves. They
stretch the tensor's range and say nothing. C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError
from quantopsy.graph.network import Layer, Network
from quantopsy.transforms.draft import Draft, other_reader, tensor_readers
from quantopsy.transforms.scale_classes import CLAMPS, HOMOGENEOUS, in_layout, matrices
from quantopsy.transforms.transform import decode, encode

TOLERANCE = 1e-3
"""Share of a tensor's range that the values of a dead channel span: a quarter of an 8-bit step."""


@dataclass(frozen=True, eq=False)
class DeadChannels:
    """``constants``: by layer (C,) what its dead channels give from now on, NaN of those that live.

    The weights of a dead channel become 0, its bias the constant. How far that moves the float outputs is measured
    by :func:`quantopsy.transforms.transform.check_function`.
    """

    constants: Mapping[str, Tensor]
    name: ClassVar[str] = "dead_channels"
    exact: ClassVar[bool] = False

    def apply(self, network: Network) -> Network:
        """``network`` without the weights of dead channels.

        Raises :class:`QuantopsyError` for a layer that is not there, is another, or shares its weight.
        """
        draft = Draft(network)
        for name, constant in self.constants.items():
            layer = network.layer(name)
            why = _refusal(network, layer)
            if why is None and len(constant) != _outputs(network, layer):
                why = f"{len(constant)} constants for {_outputs(network, layer)} channels"
            if why is not None:
                raise QuantopsyError(f"dead channels of layer {name!r}", why, "leave it out")
            weight = network.tensors[str(layer.weight)]
            groups, out, into, _ = matrices(layer, weight).shape
            lives = constant.isnan()
            kept = lives.reshape(groups, out, 1).expand(groups, out, into).double()
            draft.set_tensor(str(layer.weight), weight.double() * in_layout(layer, kept))
            bias = torch.zeros(len(constant)) if layer.bias is None else network.tensors[layer.bias]
            draft.add_to_bias(layer, torch.where(lives, 0.0, constant.double() - bias))
        return draft.network()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "constants": encode(self.constants)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls(decode(data["constants"]))


def find_dead_channels(
    network: Network,
    ranges: Mapping[str, tuple[Tensor, Tensor]],
    *,
    tolerance: float = TOLERANCE,
    layers: Iterable[str] = ("*",),
) -> DeadChannels:
    """The channels that hardly move: high - low <= ``tolerance`` times the whole tensor's range.

    ``ranges``: by value the least and greatest number of every channel, (C,) each. The constant is their middle.
    Channels behind an activation that cannot give it as it is (below zero behind a leaky relu, anything behind a
    sigmoid) are left. Raises :class:`QuantopsyError` for a pattern that matches no layer.
    """
    found = {}
    for layer in network.match(layers):
        if _refusal(network, layer) is not None or layer.output not in ranges:
            continue
        low, high = ranges[layer.output]
        whole = float(high.max() - low.min())
        constant = (low + high) / 2
        dead = (high - low <= tolerance * whole) & _passes(network, layer, constant)
        dead &= matrices(layer, network.tensors[str(layer.weight)]).abs().amax((2, 3)).flatten() > 0
        if bool(dead.any()):
            found[layer.name] = torch.where(dead, constant, torch.nan)
    return DeadChannels(found)


def _outputs(network: Network, layer: Layer) -> int:
    groups, out, _, _ = matrices(layer, network.tensors[str(layer.weight)]).shape
    return groups * out


def _refusal(network: Network, layer: Layer) -> str | None:
    """Why the layer's channels cannot be made constant."""
    if layer.weight is None or (layer.op == "matmul" and len(layer.weight_shape or ()) != 2):
        return "it has no weight of its own"
    if layer.op == "matmul":
        return "it has no bias"
    other = other_reader(tensor_readers(network), layer, layer.weight, layer.bias)
    return None if other is None else f"{other} reads the same weight or bias"


def _passes(network: Network, layer: Layer, constant: Tensor) -> Tensor:
    """(C,) bool: whether the activation gives ``constant`` for ``constant``."""
    if layer.activation is None:
        return torch.ones_like(constant, dtype=torch.bool)
    if layer.activation in HOMOGENEOUS:
        return constant >= 0
    if layer.activation in CLAMPS:
        inside = torch.ones_like(constant, dtype=torch.bool)
        bounds = Draft(network).bounds(layer.output)
        if bounds["min"] is not None:
            inside &= constant >= bounds["min"].flatten()
        if bounds["max"] is not None:
            inside &= constant <= bounds["max"].flatten()
        return inside
    return torch.zeros_like(constant, dtype=torch.bool)
