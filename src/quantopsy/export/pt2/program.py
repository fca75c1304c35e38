"""A network under a plan as a program of ``torch.export``.

What is quantized, and where, is what the exact engine does with the same plan. A :class:`Form` says by which operators
a weight is made of its codes and a value is put on its grid.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from quantopsy.core import Plan, Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine, LayerQuantizers
from quantopsy.graph.execute import channels_last, compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import aten
from quantopsy.quant import QParams

EXAMPLES = 2  # images to trace with; their number stays free


class Form(Protocol):
    """How quantization is written. Methods raise :class:`QuantopsyError` for what it cannot express."""

    as_engine: bool
    """Whether to compute to the bit as the engine does: images channels last, and the shift of a corrected bias taken
    from the layer's result. Else layouts are as they come, and the shift is in the bias."""

    def weight(self, calibration: Calibration, layer: Layer, spec: Spec, weight: Tensor) -> nn.Module:
        """A module without arguments that gives the quantized weight."""

    def activation(self, layer: Layer, role: str, qparams: QParams) -> nn.Module:
        """A module that puts a value on its grid."""


def exported(network: Network, plan: Plan, calibration: Calibration, form: Form) -> torch.export.ExportedProgram:
    """``network`` under ``plan``, ranges from ``calibration``, written in ``form``.

    Operators are pure, those of the network ATen's as it was captured with; inputs keep their names; the number of
    images is free. Raises :class:`QuantopsyError` as ``form`` does.
    """
    return traced(network, _Writer(network, plan, calibration, form).module())


def traced(network: Network, module: nn.Module) -> torch.export.ExportedProgram:
    """``module``, which takes what ``network`` does, as a program."""
    examples = network.zeros(EXAMPLES)
    images = torch.export.Dim("images", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export deprecates parts of itself
        program = torch.export.export(module, examples, dynamic_shapes=tuple({0: images} for _ in examples))
        program = program.run_decompositions({})  # an empty table only makes in-place operators pure
    for node in program.graph.nodes:
        # Lines and classes of this package, where the user's are wanted, and half of the file for small networks.
        for key in ("stack_trace", "nn_module_stack", "torch_fn", "from_node", "custom"):
            node.meta.pop(key, None)
    return program


class _Writer:
    """Copies a network's graph, with quantizers as modules of their own, for torch.export to trace."""

    def __init__(self, network: Network, plan: Plan, calibration: Calibration, form: Form) -> None:
        self.network, self.calibration, self.form = network, calibration, form
        program = compile_network(network)
        prepared = ExactEngine(program, calibration).prepare(plan)
        self.layers = {layer.node: layer for layer in network.layers}
        self.quantizers = {
            step.layer.name: prepared.quantizers[step.index]
            for step in program.steps
            if step.layer is not None and step.index in prepared.quantizers
        }
        self.outputs = {layer.output: layer for layer in network.layers if layer.name in self.quantizers}
        self.graph = fx.Graph()
        self.parts: dict[str, Any] = {}  # modules and tensors by the names that nodes call them
        self.values: dict[fx.Node, fx.Node] = {}

    def module(self) -> nn.Module:
        """The copy."""
        for node in self.network.graph.nodes:
            if node.op == "get_attr":
                continue  # written where it is read: a weight that is quantized is not
            if node.op == "output":
                leaves = [
                    self._value(leaf) if isinstance(leaf, fx.Node) else leaf for leaf in self.network.output_leaves
                ]
                self.graph.output(pytree.tree_unflatten(leaves, self.network.output_tree))
                continue
            copy = self._layer(node) if node.name in self.layers else self._copy(node, {})
            layer = self.outputs.get(node.name)
            if layer is not None and (grid := self.quantizers[layer.name].output) is not None:
                copy = self._on_grid(layer, "output", copy, grid)
            self.values[node] = copy
        return fx.GraphModule(self.parts, self.graph).eval()

    def _copy(self, node: fx.Node, over: dict[fx.Node, fx.Node]) -> fx.Node:
        copy = self.graph.node_copy(node, lambda operand: over.get(operand) or self._value(operand))
        if node.op == "placeholder" and self.form.as_engine:
            rank = 1 + len(self.network.input_shapes[self.network.input_names.index(node.name)])
            laid = {4: torch.channels_last, 5: torch.channels_last_3d}.get(rank)
            if laid is not None:
                return self.graph.call_function(aten.contiguous.default, (copy,), {"memory_format": laid})
        return copy

    def _value(self, node: fx.Node) -> fx.Node:
        if node not in self.values:
            tensor = self.network.tensors[str(node.target)]
            self.values[node] = self._tensor(str(node.target), channels_last(tensor) if self.form.as_engine else tensor)
        return self.values[node]

    def _layer(self, node: fx.Node) -> fx.Node:
        """A layer's operation on its grids."""
        layer = self.layers[node.name]
        quantizers = self.quantizers.get(layer.name)
        if quantizers is None:
            return self._copy(node, {})
        over = {}
        grids = dict(quantizers.inputs)
        for operand in node.all_input_nodes:
            if operand.name in grids:
                over[operand] = self._on_grid(layer, "input", self.values[operand], grids[operand.name])
            elif operand.op == "get_attr" and operand.target == layer.weight and quantizers.weight is not None:
                over[operand] = self._weight(layer, quantizers)
        if quantizers.shift is None:
            return self._copy(node, over)
        if self.form.as_engine:
            taken = self._tensor(f"{layer.name}.shift", quantizers.shift)
            return self.graph.call_function(aten.sub.Tensor, (self._copy(node, over), taken))
        shift = quantizers.shift.flatten()
        corrected = -shift if layer.bias is None else self.network.tensors[layer.bias] - shift
        bias = self._tensor(f"{layer.name}.corrected_bias", corrected)
        if layer.bias is not None:
            return self._copy(node, over | {node.all_input_nodes[2]: bias})
        copy = self._copy(node, over)
        copy.args = (*copy.args[:2], bias, *copy.args[3:])
        return copy

    def _weight(self, layer: Layer, quantizers: LayerQuantizers) -> fx.Node:
        assert layer.weight is not None
        assert quantizers.weight is not None
        name = f"{layer.name}.quantized_weight"
        weight = self.network.tensors[layer.weight]
        self.parts[name] = self.form.weight(self.calibration, layer, quantizers.weight, weight)
        return self.graph.call_module(name)

    def _on_grid(self, layer: Layer, role: str, value: fx.Node, qparams: QParams) -> fx.Node:
        name = f"{layer.name}.{role}_grid_{len(self.parts)}"
        self.parts[name] = self.form.activation(layer, role, qparams)
        return self.graph.call_module(name, (value,))

    def _tensor(self, name: str, tensor: Tensor) -> fx.Node:
        self.parts[name] = tensor
        return self.graph.get_attr(name)
