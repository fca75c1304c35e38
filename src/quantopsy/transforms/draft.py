"""A network while it is being changed: a copy of its graph, and tables that may be written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import ACTIVATIONS, aten


class Draft:
    """Starts as a copy of ``network``, which stays as it is; :meth:`network` is what was made of it."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.graph = fx.Graph()
        self.graph.output(self.graph.graph_copy(network.graph, {}))
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.tensors = dict(network.tensors)
        self.layers = {layer.name: layer for layer in network.layers}

    def network(self) -> Network:
        """The changed network, without tensors that nothing reads any more."""
        self.graph.lint()
        used = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        layers = tuple(
            replace(layer, parameters=sum(tensors[name].numel() for name in self._constants(layer)))
            for layer in self.layers.values()
        )
        return replace(self._network, graph=self.graph, tensors=tensors, layers=layers)

    def set_tensor(self, name: str, value: Tensor) -> None:
        """Another value for a tensor, in the type that it has."""
        self.tensors[name] = value.to(self.tensors[name].dtype)

    def add_to_bias(self, layer: Layer, change: Tensor) -> None:
        """Add (C,) ``change`` to the layer's bias, which it gets where it has none."""
        if layer.bias is not None:
            self.set_tensor(layer.bias, self.tensors[layer.bias].double() + change)
            return
        assert layer.weight is not None
        node = self.nodes[layer.node]
        name = f"{layer.weight.rpartition('.')[0] or layer.node}.{layer.node}_bias"
        self.tensors[name] = change.to(self.tensors[layer.weight].dtype)
        with self.graph.inserting_before(node):
            bias = self.graph.get_attr(name)
        node.args = (*node.args[:2], bias, *node.args[3:])
        self.layers[layer.name] = replace(layer, bias=name)

    def set_bounds(self, value: str, bounds: Mapping[str, Tensor | None]) -> None:
        """Make the clamp that gives ``value`` one with tensors for ``bounds``, channel by channel."""
        node = self.nodes[value]
        written: list[fx.Node | None] = []
        for side, bound in bounds.items():
            if bound is None:
                written.append(None)
                continue
            name = f"{node.name}.{side}"
            self.tensors[name] = bound.float()
            with self.graph.inserting_before(node):
                written.append(self.graph.get_attr(name))
        node.target, node.args, node.kwargs = aten.clamp.Tensor, (node.args[0], *written), {}
        for layer in self.layers.values():
            if layer.output == value:
                alone = layer.node == value
                self.layers[layer.name] = replace(layer, op="clamp") if alone else replace(layer, activation="clamp")

    def bounds(self, value: str) -> dict[str, Tensor | None]:
        """The bounds ``min`` and ``max`` of the clamp that gives ``value``."""
        return {
            side: self.tensors[str(bound.target)]
            if isinstance(bound, fx.Node)
            else None
            if bound is None
            else torch.tensor(float(bound))
            for side, bound in clamp_bounds(self.nodes[value]).items()
        }

    def _constants(self, layer: Layer) -> set[str]:
        nodes = (self.nodes[layer.node], self.nodes[layer.output])
        return {str(operand.target) for node in nodes for operand in node.all_input_nodes if operand.op == "get_attr"}


def clamp_bounds(node: fx.Node) -> dict[str, Any]:
    """The bounds ``min`` and ``max`` of a clamp, relu6 or hardtanh: a number, a constant's node or None."""
    if ACTIVATIONS[node.target] == "relu6":
        return {"min": 0.0, "max": 6.0}
    names = {"min": "min", "min_val": "min", "max": "max", "max_val": "max"}
    given: dict[str, Any] = {"min": None, "max": None}
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name in names:
            value = node.args[position] if position < len(node.args) else argument.default_value
            given[names[argument.name]] = node.kwargs.get(argument.name, value)
    return given


def tensor_readers(network: Network) -> dict[str, set[fx.Node]]:
    """By key of a tensor the calls that read it: of layers, and of whatever else does, such as a transposition."""
    found: dict[str, set[fx.Node]] = {}
    for node in network.graph.nodes:
        for operand in node.all_input_nodes:
            if operand.op == "get_attr":
                found.setdefault(str(operand.target), set()).add(node)
    return found


def other_reader(readers: Mapping[str, set[fx.Node]], layer: Layer, *tensors: str | None) -> str | None:
    """What reads one of ``tensors`` beside ``layer``, by name; None where nothing does."""
    others = {node.name for key in tensors if key is not None for node in readers.get(key, ())} - {layer.node}
    return min(others, default=None)
