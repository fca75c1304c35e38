"""Changes of a layer that its readers undo: the float function stays the same, the grids do not.

C channels of a value, along its dimension 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, fx

from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import CONVOLUTIONS, IDENTITIES, LINEARS, SIZES, aten, pads_with

LARGEST_OF_RELU6 = 5.99
"""What a relu6 may give where it is to be linear: clear of 6, for images that nobody has looked at."""

_SCALE_EQUIVARIANT = (None, "relu", "leaky_relu", "prelu")
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "mean")
_FLATTENING = {aten.view.default, aten.reshape.default, aten.flatten.using_ints}


class RefusedError(Exception):
    """The algebra does not allow the change here."""


@dataclass(frozen=True)
class Channels:
    """What was seen of one value by channel, over images and positions: each (C,)."""

    low: Tensor
    high: Tensor
    mean: Tensor
    mean_square: Tensor

    @property
    def reach(self) -> Tensor:
        """Largest absolute value."""
        return torch.maximum(-self.low, self.high)

    @property
    def rms(self) -> Tensor:
        """Root of the mean square."""
        return self.mean_square.sqrt()


def channels_seen(network: Network, batches: Sequence[Tensor]) -> dict[str, Channels]:
    """Every value of the network by channel: its inputs, and what its steps write."""
    found: dict[str, Channels] = {}
    counts: Counter[str] = Counter()

    def look(name: str, value: Any) -> None:
        if not isinstance(value, Tensor) or value.dim() < 2:
            return
        rows = value.transpose(0, 1).flatten(1)
        new = Channels(rows.amin(1), rows.amax(1), rows.mean(1), rows.square().mean(1))
        counts[name] += len(value)
        if name in found:
            old, share = found[name], len(value) / counts[name]
            new = Channels(
                torch.minimum(old.low, new.low),
                torch.maximum(old.high, new.high),
                old.mean.lerp(new.mean, share),
                old.mean_square.lerp(new.mean_square, share),
            )
        found[name] = new

    program = compile_network(network)
    with torch.inference_mode():
        for batch in batches:
            values = program.place((batch,))
            for name in network.input_names:
                look(name, values[name])
            program.forward(values, lambda step, values: look(step.writes, values[step.writes]))
    return found


@dataclass(frozen=True)
class Change:
    """A changed network, the values that carry the change, and the layers that undo it."""

    network: Network
    values: tuple[str, ...]
    readers: tuple[Layer, ...]


def rescaled(network: Network, layer: Layer, scale: Tensor, seen: Mapping[str, Channels]) -> Change:
    """Output channels of ``layer`` times ``scale`` (C,) > 0, input channels of its readers divided by it.

    Through activations with f(s x) = s f(x), pools, concatenations and re-arrangements; through a relu6 only
    for channels that stay clear of 6 before and after, as ``seen``. Raises :class:`RefusedError` where an addition,
    a product, the network's output or another activation is reached.
    """
    return _carried(network, layer, scale, _Scale(), seen)


def shifted(network: Network, layer: Layer, shift: Tensor, seen: Mapping[str, Channels]) -> Change:
    """Output channels of ``layer`` plus ``shift`` (C,), b - sum W c in place of the bias of its readers.

    Through additions, pools and concatenations. Raises :class:`RefusedError` where an activation, zero padding
    (it would have to be shifted too), a product or the network's output is reached.
    """
    return _carried(network, layer, shift, _Shift(), seen)


def unread(network: Network, layer: Layer, channels: Tensor, seen: Mapping[str, Channels]) -> Change:
    """Nobody reads the output channels of ``layer`` where ``channels`` (C,) is 1: zeros in their readers' weights.

    Of channels that are always zero, that changes nothing. Raises :class:`RefusedError` as :func:`rescaled` does.
    """
    return _carried(network, layer, channels, _Unread(), seen)


def with_parameters(network: Network, layer: Layer, weight: Tensor, bias: Tensor | None = None) -> Network:
    """``network`` with another weight, and bias where one is given, of the same shapes at ``layer``."""
    assert layer.weight is not None
    new = {layer.weight: weight}
    if bias is not None:
        assert layer.bias is not None
        new[layer.bias] = bias
    for name, tensor in new.items():
        if sum(node.op == "get_attr" and node.target == name for node in network.graph.nodes) > 1:
            raise RefusedError(f"{name} has several readers")
        assert tensor.shape == network.tensors[name].shape
    return replace(network, tensors={**network.tensors, **new})


class _Rule(ABC):
    """How a change of channels acts on what carries it.

    ``neutral`` is no change; ``padded``: whether zeros that a reader adds need no change.
    """

    neutral: float
    padded: bool

    @abstractmethod
    def write(self, weight: Tensor, bias: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters whose layer makes the change."""

    @abstractmethod
    def read(self, weight: Tensor, bias: Tensor | None, change: Tensor) -> tuple[Tensor, Tensor | None]:
        """Parameters whose layer undoes it; ``change`` broadcasts to ``weight`` by input channel."""

    @abstractmethod
    def check(self, layer: Layer, change: Tensor, seen: Channels) -> None:
        """Raise :class:`RefusedError` unless the layer's activation lets the change pass."""

    @abstractmethod
    def added(self, operands: Sequence[Tensor]) -> Tensor:
        """The change of a sum."""


@final
class _Scale(_Rule):
    neutral, padded = 1.0, True

    def write(self, weight: Tensor, bias: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        return weight * change.reshape(-1, *[1] * (weight.dim() - 1)), bias * change

    def read(self, weight: Tensor, bias: Tensor | None, change: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight / change, bias

    def check(self, layer: Layer, change: Tensor, seen: Channels) -> None:
        if layer.activation == "relu6":
            high = seen.high[change != 1.0]
            if (torch.maximum(high, high * change[change != 1.0]) > LARGEST_OF_RELU6).any():
                raise RefusedError(f"{layer.name}: a channel would meet the bound of relu6")
        elif layer.activation not in _SCALE_EQUIVARIANT:
            raise RefusedError(f"{layer.name}: {layer.activation} is not scale-equivariant")

    def added(self, operands: Sequence[Tensor]) -> Tensor:
        del operands
        raise RefusedError("an addition, whose other operand is not scaled")


@final
class _Shift(_Rule):
    neutral, padded = 0.0, False

    def write(self, weight: Tensor, bias: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        return weight, bias + change

    def read(self, weight: Tensor, bias: Tensor | None, change: Tensor) -> tuple[Tensor, Tensor | None]:
        if bias is None:
            raise RefusedError("a reader without a bias")
        return weight, (bias.double() - (weight.double() * change).flatten(1).sum(1)).to(bias.dtype)

    def check(self, layer: Layer, change: Tensor, seen: Channels) -> None:
        del change, seen
        if layer.activation is not None:
            raise RefusedError(f"{layer.name}: {layer.activation} of something shifted")

    def added(self, operands: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(operands)).sum(0)


@final
class _Unread(_Rule):
    neutral, padded = 0.0, True

    def write(self, weight: Tensor, bias: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        del change
        return weight, bias

    def read(self, weight: Tensor, bias: Tensor | None, change: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight * (1.0 - change), bias

    def check(self, layer: Layer, change: Tensor, seen: Channels) -> None:
        """Anything goes that nobody reads."""

    def added(self, operands: Sequence[Tensor]) -> Tensor:
        del operands
        raise RefusedError("an addition, whose sum is read")


def _carried(network: Network, layer: Layer, change: Tensor, rule: _Rule, seen: Mapping[str, Channels]) -> Change:
    """Walk forward from ``layer``, in the order of the graph, to the layers that undo the change."""
    weight, bias = _parameters(network, layer)
    node = next(node for node in network.graph.nodes if node.name == layer.node)
    if node.target not in CONVOLUTIONS and node.target not in LINEARS:
        raise RefusedError(f"{layer.name} is a {layer.op}")
    if bias is None:
        raise RefusedError(f"{layer.name} has no bias")
    rule.check(layer, change, seen[layer.output])
    changed = with_parameters(network, layer, *rule.write(weight, bias, change))
    carried = {layer.output: change}
    readers = []
    by_node = {other.node: other for other in network.layers}
    for node in network.graph.nodes:
        if node.target in SIZES or not any(operand.name in carried for operand in node.all_input_nodes):
            continue
        reader = by_node.get(node.name)
        if reader is not None and (node.target in CONVOLUTIONS or node.target in LINEARS):
            changed = _undone(changed, reader, node, carried[node.args[0].name], rule)
            readers.append(reader)
        elif reader is not None:
            carried[reader.output] = _through(reader, node, carried, rule, seen)
        else:
            carried[node.name] = _moved(node, carried, rule, seen)
    return Change(changed, tuple(carried), tuple(readers))


def _parameters(network: Network, layer: Layer) -> tuple[Tensor, Tensor | None]:
    if layer.weight is None:
        raise RefusedError(f"{layer.name} has no weight")
    return network.tensors[layer.weight], None if layer.bias is None else network.tensors[layer.bias]


def _undone(network: Network, reader: Layer, node: fx.Node, change: Tensor, rule: _Rule) -> Network:
    weight, bias = _parameters(network, reader)
    rows = change.reshape(reader.groups, -1).repeat_interleave(len(weight) // reader.groups, 0)
    if rows.shape != weight.shape[:2]:
        raise RefusedError(f"{reader.name} does not read channels")
    if not rule.padded and _pads(node, position=4):
        raise RefusedError(f"{reader.name} pads with zeros")
    return with_parameters(network, reader, *rule.read(weight, bias, rows[(...,) + (None,) * (weight.dim() - 2)]))


def _through(
    layer: Layer, node: fx.Node, carried: Mapping[str, Tensor], rule: _Rule, seen: Mapping[str, Channels]
) -> Tensor:
    """The change behind a layer without weights."""

    def operand(value: Any) -> Tensor:
        if value.name in carried:
            return carried[value.name]
        return torch.full_like(seen[value.name].low, rule.neutral)

    if layer.op in _POOLS:
        if not rule.padded and layer.op == "avg_pool" and _pads(node, position=3):
            raise RefusedError(f"{layer.name} pads with zeros")
        passed = operand(node.args[0])
    elif layer.op == "concat" and (node.args[1] if len(node.args) > 1 else 0) == 1:
        passed = torch.cat([operand(value) for value in node.args[0]])  # type: ignore[union-attr]
    elif node.target is aten.add.Tensor and not node.kwargs and len({len(seen[v].low) for v in layer.inputs}) == 1:
        passed = rule.added([operand(value) for value in node.args[:2]])
    else:
        raise RefusedError(f"{layer.name} is a {layer.op}")
    rule.check(layer, passed, seen[layer.output])
    return passed


def _moved(node: fx.Node, carried: Mapping[str, Tensor], rule: _Rule, seen: Mapping[str, Channels]) -> Tensor:
    """The change of a value that is another one re-arranged."""
    pad = pads_with(node.target, node.args)
    if node.op == "output" or (pad is not None and (pad != 0.0 or not rule.padded)):
        raise RefusedError(f"it reaches {node.name}")
    if pad is None and node.target not in {*IDENTITIES, *_FLATTENING, aten.slice.Tensor}:
        raise RefusedError(f"it reaches {node.name}")
    change = carried[node.all_input_nodes[0].name]
    count = len(seen[node.name].low)
    if count != len(change) and (count % len(change) or node.target not in _FLATTENING):
        raise RefusedError(f"{node.name} mixes channels")
    return change.repeat_interleave(count // len(change))


def _pads(node: fx.Node, position: int) -> bool:
    """Whether a convolution or pool pads, its padding being the argument at ``position``."""
    if node.target in LINEARS or len(node.args) <= position:
        return False
    padding = node.args[position]
    return any(padding) if isinstance(padding, list | tuple) else padding not in (0, "valid")
