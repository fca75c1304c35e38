"""The captured graph with its ordered layers: an immutable value that transforms copy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from quantopsy.core import QuantopsyError, Spec, names
from quantopsy.graph.operators import keeps_channels, moved_value


@dataclass(frozen=True)
class Layer:
    """One typical operation with the activation function behind it (layer-wise paper, section 3.1).

    ``inputs`` and ``output`` are names of values, ``weight`` and ``bias`` names of tensors of the
    network. Shapes are without the batch dimension. ``macs`` is per image. ``onnx_node`` is the name of its
    operation in the ONNX file that the network was read from.
    """

    index: int
    name: str
    op: str
    activation: str | None
    source: str | None
    node: str
    output: str
    inputs: tuple[str, ...]
    weight: str | None
    bias: str | None
    weight_axis: int
    groups: int
    weight_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...]
    macs: int
    parameters: int
    onnx_node: str | None = None

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in what a layer with weights gives, and takes."""
        return -1 if self.op in ("linear", "matmul") else 1


@dataclass(frozen=True)
class Unquantized:
    """An operator that is not understood and stays float."""

    name: str
    operator: str
    source: str | None


@dataclass(frozen=True)
class Network:
    """A float network ready for analysis: batch norms folded, layers in topological order.

    ``graph`` is an fx graph over ATen operators whose ``get_attr`` targets are keys of ``tensors``;
    neither is ever changed in place. ``input_names`` are the names of its placeholders in order;
    ``output_tree`` rebuilds the module's output from the graph's flat one. ``unfused`` are the activation functions
    that were made layers of their own.
    """

    graph: fx.Graph
    tensors: Mapping[str, Tensor]
    layers: tuple[Layer, ...]
    unquantized: tuple[Unquantized, ...]
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    output_tree: pytree.TreeSpec
    total_macs: int  # per image, of layers and of products that are not understood
    unfused: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Layer names in topological order."""
        return tuple(layer.name for layer in self.layers)

    def layer(self, name: str) -> Layer:
        """The layer called ``name``; raises with the nearest names where there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise names.unknown(name, self.names, "layer")

    def match(self, patterns: Iterable[str]) -> tuple[Layer, ...]:
        """The layers whose name matches one of ``patterns`` (shell wildcards), in order."""
        wanted = set(names.match(patterns, self.names, "layer"))
        return tuple(layer for layer in self.layers if layer.name in wanted)

    def weight(self, layer: Layer) -> Tensor | None:
        """The layer's folded weight."""
        return None if layer.weight is None else self.tensors[layer.weight]

    def zeros(self, images: int) -> tuple[Tensor, ...]:
        """Inputs of so many images, of the types that it was captured with; float32 where it has been pickled."""
        kinds = (
            node.meta["val"].dtype if "val" in node.meta else None for node in self.graph.find_nodes(op="placeholder")
        )
        return tuple(
            torch.zeros(images, *shape, dtype=kind) for shape, kind in zip(self.input_shapes, kinds, strict=True)
        )

    def module(self) -> nn.Module:
        """An ordinary module of this graph; captured again it has the same layers, under the same names."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return fx.GraphModule(dict(self.tensors), graph).eval()

    @property
    def output_leaves(self) -> tuple[Any, ...]:
        """The flat output: nodes of values that are computed, ``get_attr`` nodes of tensors, plain constants."""
        return tuple(pytree.tree_leaves(next(iter(reversed(self.graph.nodes))).args[0]))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs that are computed, in order; what is a constant needs no run."""
        return tuple(leaf.name for leaf in self.output_leaves if is_computed(leaf))

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The module's output structure from the outputs that are computed; constants are on their device."""
        computed = iter(outputs)
        device = next((value.device for value in outputs if isinstance(value, Tensor)), None)

        def value(leaf: Any) -> Any:
            if is_computed(leaf):
                return next(computed)
            return self.tensors[str(leaf.target)].to(device) if isinstance(leaf, fx.Node) else leaf

        return pytree.tree_unflatten([value(leaf) for leaf in self.output_leaves], self.output_tree)

    def flatten(self, outputs: Any) -> tuple[Any, ...]:
        """The outputs that are computed, in order, of what the module returned: the inverse of :meth:`unflatten`."""
        pairs = zip(pytree.tree_leaves(outputs), self.output_leaves, strict=True)
        return tuple(value for value, leaf in pairs if is_computed(leaf))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over operators, arguments and weights: equal for equal computations."""
        digest = hashlib.sha256(str(self.graph).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def origins(self) -> Mapping[str, str]:
        """For a value that is another one re-arranged (reshaped, padded with zeros, sliced), that other one.

        Such a value lies on its origin's grid wherever that is quantized, so both share one range.
        """
        operations = {layer.node for layer in self.layers}
        found: dict[str, str] = {}
        for node in self.graph.nodes:
            source = moved_value(node) if node.op == "call_function" and node.name not in operations else None
            if source is not None:
                found[node.name] = found.get(source.name, source.name)
        return found

    @cached_property
    def grid_sources(self) -> GridSources:
        """Which value's grid every value lies on."""
        axes = {layer.output: layer.channel_axis for layer in self.layers}
        reading = {value: layer.channel_axis for layer in reversed(self.layers) for value in layer.inputs}
        by_channel = {name: (name, 1) for name in self.input_names} | {
            name: (name, axis) for name, axis in axes.items()
        }
        for node in self.graph.nodes:
            if node.name in self.origins and node.name not in by_channel:
                source = moved_value(node)
                assert source is not None
                known = by_channel.get(source.name, (source.name, 1))
                kept = keeps_channels(node, source, known[1])
                by_channel[node.name] = known if kept else (node.name, reading.get(node.name, 1))
        return GridSources(self.origins, by_channel)

    def origin(self, value: str) -> str:
        """The value that ``value`` is re-arranged from; itself where it is none such."""
        return self.origins.get(value, value)

    @property
    def coverage(self) -> dict[str, float]:
        """How much of the network can be quantized: layers, and the share of its MACs in them."""
        macs = sum(layer.macs for layer in self.layers)
        return {
            "layers": len(self.layers),
            "weighted_layers": sum(layer.weight is not None for layer in self.layers),
            "unquantized_operators": len(self.unquantized),
            "macs": self.total_macs,
            "macs_share": macs / self.total_macs if self.total_macs else 1.0,
            "parameters": sum(layer.parameters for layer in self.layers),
        }

    def arrange(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """``inputs`` in the order of ``input_names``, with their shapes checked."""
        if isinstance(inputs, Mapping):
            missing = [name for name in self.input_names if name not in inputs]
            if missing:
                raise QuantopsyError(
                    f"input {missing[0]!r} of the network",
                    f"the data gives only {', '.join(inputs)}",
                    "name the data's tensors as the network's inputs are named",
                )
            inputs = [inputs[name] for name in self.input_names]
        if len(inputs) != len(self.input_names):
            raise QuantopsyError(
                "data",
                f"{len(inputs)} tensors an image where the network takes {len(self.input_names)}",
                f"give {', '.join(self.input_names)} (and a label) for every image",
            )
        for name, tensor, shape in zip(self.input_names, inputs, self.input_shapes, strict=True):
            if tuple(tensor.shape[1:]) != shape:
                raise QuantopsyError(
                    f"input {name!r}",
                    f"images of shape {tuple(tensor.shape[1:])} where the network was captured with {shape}",
                    "resize the images, or capture the network at that size",
                )
        return tuple(inputs)

    def __getstate__(self) -> dict[str, Any]:
        # Operators, and so graphs, refuse to be pickled: their names travel. Nodes' meta data stays behind.
        graph = [_portable((node.op, node.target, node.args, node.kwargs, node.name)) for node in self.graph.nodes]
        sources = {"grid_sources": self.grid_sources}  # it needs the meta data
        tree = pytree.tree_unflatten(range(self.output_tree.num_leaves), self.output_tree)
        return vars(self) | sources | {"graph": graph, "output_tree": tree}

    def __setstate__(self, state: dict[str, Any]) -> None:
        graph, nodes = fx.Graph(), dict[str, fx.Node]()
        for portable in state["graph"]:
            node = graph.create_node(*map_aggregate(portable, lambda a: a.find(nodes) if isinstance(a, _Named) else a))
            nodes[node.name] = node
        vars(self).update(state | {"graph": graph, "output_tree": pytree.tree_structure(state["output_tree"])})


def is_computed(leaf: Any) -> bool:
    """Whether a leaf of the output is a value that running the graph gives."""
    return isinstance(leaf, fx.Node) and leaf.op != "get_attr"


@dataclass(frozen=True)
class GridSources:
    """Which value's grid a value lies on: one re-arranged has that of the value it was.

    ``whole``: for values that others are re-arranged from, as :attr:`Network.origins`. ``by_channel``: for every value
    the one whose grids by channel it has and the axis of its channels; itself where re-arranging moved the channels.
    """

    whole: Mapping[str, str] = field(default_factory=dict)
    by_channel: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def of(self, value: str, spec: Spec) -> str:
        """The value whose grid ``value`` has with ``spec``."""
        if spec.granularity == "per_channel":
            return self.by_channel.get(value, (value, 1))[0]
        return self.whole.get(value, value)

    def axis(self, value: str) -> int:
        """Where the channels of a value are."""
        return self.by_channel.get(value, (value, 1))[1]


@dataclass(frozen=True)
class _Named:
    """What stands for a node or an operator in a pickle."""

    kind: type
    name: str

    def find(self, nodes: Mapping[str, fx.Node]) -> Any:
        return nodes[self.name] if self.kind is fx.Node else attrgetter(self.name)(torch.ops)


def _portable(value: Any) -> Any:
    def named(a: Any) -> Any:
        return _Named(type(a), str(a)) if isinstance(a, fx.Node | OpOverload) else a

    return map_aggregate(value, named)
