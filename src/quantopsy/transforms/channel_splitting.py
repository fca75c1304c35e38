"""Outlier channel splitting as a transform of a network (OCS, Zhao et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import fx

from quantopsy.calibrate import split_channels
from quantopsy.core import QuantopsyError
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import CONVOLUTIONS, LINEARS, aten


def split_outlier_channels(
    network: Network, ratio: float, *, bits: int = 8, patterns: Iterable[str] = ("*",)
) -> Network:
    """``network`` with a share ``ratio`` of the input channels of every matching layer split in two.

    The float function stays the same up to rounding: the layer reads its input through an index that
    repeats the split channels. Convolutions without groups and linear layers are split, others stay;
    the halves are made for a per-tensor grid of ``bits``. Raises :class:`QuantopsyError` for a ratio
    outside (0, 1] and where no matching layer can be split.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(network.graph, copies))
    nodes = {node.name: node for node in graph.nodes}
    tensors = dict(network.tensors)
    chosen = {layer.name for layer in network.match(patterns)}
    layers = []
    for layer in network.layers:
        node = nodes[layer.node]
        if layer.name in chosen and _splittable(layer, node):
            layers.append(_split(graph, tensors, layer, node, ratio, bits))
        else:
            layers.append(layer)
    if layers == list(network.layers):
        raise QuantopsyError(
            "channel splitting", "no matching layer is a convolution without groups or linear", "choose other layers"
        )
    graph.lint()
    return replace(network, graph=graph, tensors=tensors, layers=tuple(layers))


def _splittable(layer: Layer, node: fx.Node) -> bool:
    return layer.weight is not None and layer.groups == 1 and (node.target in CONVOLUTIONS or node.target in LINEARS)


def _split(graph: fx.Graph, tensors: dict, layer: Layer, node: fx.Node, ratio: float, bits: int) -> Layer:
    assert layer.weight is not None
    weight = tensors[layer.weight]
    # The step of the grid depends on the split weight's range: once with plain halves to learn it.
    low, high = split_channels(weight, ratio, 0.0).weight.aminmax()
    step = float(high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 1)
    found = split_channels(weight, ratio, step)
    path = layer.weight.rpartition(".")[0] or layer.node
    names = {"weight": f"{path}.{layer.node}_split_weight", "source": f"{path}.{layer.node}_split_source"}
    tensors[names["weight"]], tensors[names["source"]] = found.weight, found.source
    channel = -1 if node.target in LINEARS else 1
    with graph.inserting_before(node):
        source = graph.get_attr(names["source"])
        read = graph.call_function(aten.index_select.default, (node.args[0], channel, source))
        read.meta = dict(node.meta)
        grown = graph.get_attr(names["weight"])
    node.args = (read, grown, *node.args[2:])
    return replace(
        layer,
        inputs=(read.name,),
        weight=names["weight"],
        weight_shape=tuple(found.weight.shape),
        macs=layer.macs * found.weight.numel() // weight.numel(),
        parameters=layer.parameters + found.weight.numel() - weight.numel(),
    )
