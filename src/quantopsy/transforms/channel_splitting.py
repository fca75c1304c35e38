"""Outlier channel splitting as a transform of a network (OCS, Zhao et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, fx

from quantopsy.calibrate import split_channels
from quantopsy.core import QuantopsyError
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import CONVOLUTIONS, LINEARS, aten
from quantopsy.transforms.draft import Draft


@dataclass(frozen=True)
class Split:
    """Of a layer: the share of its input channels that is split, and the step of the grid the halves are for."""

    ratio: float
    step: float


@dataclass(frozen=True)
class ChannelSplitting:
    """``splits`` by layer; the layer reads its input through an index that repeats the split channels."""

    splits: Mapping[str, Split]
    name: ClassVar[str] = "channel_splitting"
    exact: ClassVar[bool] = True

    def apply(self, network: Network) -> Network:
        """``network`` with larger weights of a smaller range.

        Raises :class:`QuantopsyError` for a layer that is not there or cannot be split, and a ratio outside (0, 1].
        """
        draft = Draft(network)
        for name, how in self.splits.items():
            layer = network.layer(name)
            if not _splittable(layer, draft.nodes[layer.node]):
                raise QuantopsyError(
                    f"channel splitting of layer {name!r}",
                    "it is no convolution without groups and not linear",
                    "leave it out",
                )
            _split(draft, layer, how)
        return draft.network()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "splits": {name: vars(split) for name, split in self.splits.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`."""
        splits = data["splits"].items()
        return cls({name: Split(float(split["ratio"]), float(split["step"])) for name, split in splits})


def find_channel_splitting(
    network: Network, ratio: float, *, bits: int = 8, patterns: Iterable[str] = ("*",)
) -> ChannelSplitting:
    """A share ``ratio`` of the input channels of every matching layer split in two, for a per-tensor grid of ``bits``.

    Convolutions without groups and linear layers are split, others stay. Raises :class:`QuantopsyError` for a ratio
    outside (0, 1] and where no matching layer can be split.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    matching = [layer for layer in network.match(patterns) if _splittable(layer, nodes[layer.node])]
    if not matching:
        raise QuantopsyError(
            "channel splitting", "no matching layer is a convolution without groups or linear", "choose other layers"
        )
    return ChannelSplitting(
        {layer.name: Split(ratio, _step(network.tensors[str(layer.weight)], ratio, bits)) for layer in matching}
    )


def _step(weight: Tensor, ratio: float, bits: int) -> float:
    """The step of the grid depends on the split weight's range: split with plain halves to learn it."""
    low, high = split_channels(weight, ratio, 0.0).weight.aminmax()
    return float(high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 1)


def _splittable(layer: Layer, node: fx.Node) -> bool:
    return layer.weight is not None and layer.groups == 1 and (node.target in CONVOLUTIONS or node.target in LINEARS)


def _split(draft: Draft, layer: Layer, how: Split) -> None:
    assert layer.weight is not None
    node, weight = draft.nodes[layer.node], draft.tensors[layer.weight]
    found = split_channels(weight, how.ratio, how.step)
    # New names: another layer may share the weight that is split here.
    path = layer.weight.rpartition(".")[0] or layer.node
    grown, source = f"{path}.{layer.node}_split_weight", f"{path}.{layer.node}_split_source"
    draft.tensors |= {grown: found.weight, source: found.source}
    channel = -1 if node.target in LINEARS else 1
    with draft.graph.inserting_before(node):
        read = draft.graph.call_function(
            aten.index_select.default, (node.args[0], channel, draft.graph.get_attr(source))
        )
        read.meta = dict(node.meta)
        node.args = (read, draft.graph.get_attr(grown), *node.args[2:])
    draft.layers[layer.name] = replace(
        layer,
        inputs=(read.name,),
        weight=grown,
        weight_shape=tuple(found.weight.shape),
        macs=layer.macs * found.weight.numel() // weight.numel(),
    )
