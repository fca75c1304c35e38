"""J d by forward-mode differentiation in float64, for any perturbation of weights and values.

Walks the captured graph node by node and shares nothing else with the engine: no steps, no backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import jvp
from torch.utils import _pytree as pytree

from quantopsy.calibrate import quantized_weight
from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.graph.execute import Program
from quantopsy.graph.network import Layer, Network
from quantopsy.quant import fake_quantize


class Perturbed:
    """A network on ``images``, with the value that every quantizer of a plan would move."""

    def __init__(self, program: Program, ranges: Calibration, images: Tensor) -> None:
        self.network, self.ranges, self.images = program.network, ranges, images
        # The values that are rounded are those of the engine, to the last bit: a tie must fall alike.
        self.values: dict[str, Tensor] = dict(program.place((images,)))

        def keep(step: Any, values: Mapping[str, Any]) -> None:
            if isinstance(values[step.writes], Tensor):
                self.values[step.writes] = values[step.writes].clone()

        with torch.no_grad():
            program.forward(program.place((images,)), keep)

    def moved(self, *sites: tuple[Site, Spec], given: Mapping[Site, Spec] | None = None) -> tuple[Tensor, ...]:
        """J d of the network's outputs, where d are the first-order perturbations of ``sites`` together.

        What leaves a layer without weights is rounded after its inputs have been, as ``given`` says.
        """
        weights: dict[str, Tensor] = {}
        leaving: dict[str, Tensor] = {}
        entering: dict[tuple[str, str], Tensor] = {}
        for site, spec in sites:
            layer = self.network.layer(site.layer)
            if site.role == "weight":
                weight = self.network.weight(layer)
                assert weight is not None
                assert layer.weight is not None
                weights[layer.weight] = (quantized_weight(spec, weight, axis=layer.weight_axis) - weight).double()
            elif site.role == "output":
                before = (given or {}).get(Site(layer.name, "input")) if layer.weight is None else None
                leaving[layer.output] = self._change(self._result(layer, before), layer.output, spec)
            else:
                entering.update(
                    {(layer.node, value): self._change(self.values[value], value, spec) for value in layer.inputs}
                )
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        tangent = jvp(lambda eps: self._run(eps, weights, leaving, entering), (zero,), (one,))[1]
        return tuple(tangent)

    def _result(self, layer: Layer, before: Spec | None) -> Tensor:
        """What the layer makes of its inputs, put on their grids ``before``."""
        if before is None:
            return self.values[layer.output]
        found: dict[str, Any] = {
            name: fake_quantize(self.values[name], self.ranges.qparams(name, before)) for name in layer.inputs
        }
        nodes = {node.name: node for node in self.network.graph.nodes}
        for name in dict.fromkeys((layer.node, layer.output)):

            def operand(node: fx.Node) -> Any:
                return (
                    self.network.tensors[node.target]
                    if node.op == "get_attr"
                    else found.get(node.name, self.values.get(node.name))
                )

            found[name] = nodes[name].target(
                *fx.map_arg(nodes[name].args, operand), **fx.map_arg(nodes[name].kwargs, operand)
            )
        return found[layer.output]

    def _change(self, x: Tensor, value: str, spec: Spec) -> Tensor:
        return (fake_quantize(x, self.ranges.qparams(value, spec)) - x).double().contiguous()

    def _run(
        self,
        eps: Tensor,
        weights: Mapping[str, Tensor],
        leaving: Mapping[str, Tensor],
        entering: Mapping[tuple[str, str], Tensor],
    ) -> tuple[Tensor, ...]:
        found: dict[str, Any] = dict.fromkeys(self.network.input_names, self.images.double())
        outputs: tuple[Tensor, ...] = ()
        for node in self.network.graph.nodes:
            if node.op == "get_attr":
                tensor = self.network.tensors[node.target]
                tensor = tensor.double() if tensor.is_floating_point() else tensor
                found[node.name] = tensor + eps * weights[node.target] if node.target in weights else tensor
            elif node.op == "output":
                leaves = [leaf for leaf in pytree.tree_leaves(node.args[0]) if isinstance(leaf, fx.Node)]
                outputs = tuple(found[leaf.name] for leaf in leaves)
            elif node.op == "call_function":

                def entered(operand: fx.Node, reader: str = node.name) -> Any:
                    value = found[operand.name]
                    change = entering.get((reader, operand.name))
                    return value if change is None else value + eps * change

                result = node.target(*fx.map_arg(node.args, entered), **fx.map_arg(node.kwargs, entered))
                found[node.name] = result + eps * leaving[node.name] if node.name in leaving else result
        return outputs


def first_perturbed(network: Network, plan: Plan) -> list[tuple[Site, Spec]]:
    """The sites of ``plan`` that move something: no reader of a value that left its producer on the same grid."""
    producer = {layer.output: layer.name for layer in network.layers}
    kept = []
    for site, spec in plan.sites:
        if site.role == "input":
            names = [network.origin(value) for value in network.layer(site.layer).inputs]
            on_grid = [
                plan.get(Site(producer[name], "output")) == spec if name in producer else False for name in names
            ]
            assert all(on_grid) or not any(on_grid), "give a plan that treats the inputs of a layer alike"
            if all(on_grid):
                continue
        kept.append((site, spec))
    return kept
