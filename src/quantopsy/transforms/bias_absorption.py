"""Large biases moved into the next layer (DFQ, Nagel et al. 2019, section 4.1.3).

Where a channel is hardly ever below c > 0, relu(y - c) = relu(y) - c: a layer's bias can give c away, and every layer
that reads the channel gets what c made there. The channel's values then start at 0, and its range is shorter by c.
Exact as far as no value is below c, which data cannot promise. C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, fx

from quantopsy.core import QuantopsyError
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import (
    CONVOLUTIONS,
    LINEARS,
    MOVEMENTS,
    OPERATIONS,
    SIZES,
    TRANSPOSED,
    WEIGHTED_SUMS,
    pads_with,
)
from quantopsy.transforms.draft import Draft, clamp_bounds, other_reader, tensor_readers
from quantopsy.transforms.scale_classes import CLAMPS
from quantopsy.transforms.transform import decode, encode

_CARRIES = {"max_pool", "avg_pool", "adaptive_avg_pool", "mean"}
"""What gives f(x + c) = f(x) + f(c) for c constant over positions."""


@dataclass(frozen=True, eq=False)
class BiasAbsorption:
    """``absorbed``: by layer (C,) what its bias gives to the layers behind it, 0 and above.

    How far that moves the float outputs is measured by :func:`quantopsy.transforms.transform.check_function`.
    """

    absorbed: Mapping[str, Tensor]
    name: ClassVar[str] = "bias_absorption"
    exact: ClassVar[bool] = False

    def apply(self, network: Network) -> Network:
        """``network`` with biases moved; an upper bound of a clamp moves with them.

        Raises :class:`QuantopsyError` for a layer that is not there, or that something reads which cannot take it.
        """
        draft = Draft(network)
        readers = _Readers(network)
        for name, given in self.absorbed.items():
            layer = network.layer(name)
            try:
                takers = list(readers.takers(layer, given))
            except _RefusalError as error:
                raise QuantopsyError(f"bias absorption of layer {name!r}", str(error), "leave it out") from None
            draft.add_to_bias(draft.layers[name], -given.double())
            for taker, change in takers:
                draft.add_to_bias(draft.layers[taker.name], change)
            if layer.activation in CLAMPS and draft.bounds(layer.output)["max"] is not None:
                bounds = draft.bounds(layer.output)
                low, high = bounds["min"], bounds["max"]
                assert high is not None
                shifted = high.double() - _aligned(layer, given.double())
                low = None if low is None else low.expand_as(shifted).contiguous()
                draft.set_bounds(layer.output, {"min": low, "max": shifted})
        return draft.network()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "absorbed": encode(self.absorbed)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls(decode(data["absorbed"]))


def find_bias_absorption(
    network: Network, low: Mapping[str, Tensor], *, layers: Iterable[str] | None = None
) -> BiasAbsorption:
    """Of every channel c = max(0, low), where all that reads it can take it.

    ``low``: by value (C,) what each channel is hardly ever below: its least number on calibration images, or mean - 3
    standard deviations (DFQ, equation (13), has those of the batch norm). Layers with relu, relu6, a clamp from 0 or
    nothing behind them give; convolutions without padding and linear layers take, also behind pooling.

    ``layers``: patterns of the layers that give, all that can where None. Raises :class:`QuantopsyError` for a pattern
    of layers none of which can, with the reason.
    """
    readers = _Readers(network)
    found = {}
    chosen = [network.layers] if layers is None else [network.match([pattern]) for pattern in layers]
    for group in chosen:
        refusals = []
        for layer in group:
            given = low.get(layer.output)
            if given is None:
                continue
            given = given.clamp(min=0).float()
            try:
                list(readers.takers(layer, given))
            except _RefusalError as error:
                refusals.append(f"{layer.name}: {error}")
                continue
            if bool((given > 0).any()):
                found[layer.name] = given
        if layers is not None and len(refusals) == len(group):
            raise QuantopsyError("bias absorption", refusals[0], "choose other layers")
    return BiasAbsorption(found)


class _RefusalError(Exception):
    """Why a layer cannot give its bias away."""


class _Taker(NamedTuple):
    layer: Layer
    change: Tensor  # (C,) float64, what is added to its bias


class _Readers:
    """Who reads what a layer gives."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes = {node.name: node for node in network.graph.nodes}
        self.by_node = {layer.node: layer for layer in network.layers}
        self.tensors = tensor_readers(network)
        program = compile_network(network)
        values = program.place(network.zeros(1))
        with torch.inference_mode():
            program.forward(values, keep=True)
        self.numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}  # sizes

    def takers(self, layer: Layer, given: Tensor) -> Iterator[_Taker]:
        """The layers that what ``layer`` gives arrives at, and what it adds there."""
        target = self.nodes[layer.node].target
        if layer.weight is None or not (target in CONVOLUTIONS or target in LINEARS or target in TRANSPOSED):
            raise _RefusalError("it has no weight")
        if (other := other_reader(self.tensors, layer, layer.bias)) is not None:
            raise _RefusalError(f"{other} reads the same bias")
        channels = layer.output_shape[-1 if layer.op == "linear" else 0]
        if len(given) != channels:
            raise _RefusalError(f"{len(given)} numbers for {channels} channels")
        if layer.activation not in (None, "relu"):
            low = clamp_bounds(self.nodes[layer.output])["min"] if layer.activation in CLAMPS else None
            low = self.network.tensors[str(low.target)] if isinstance(low, fx.Node) else low
            if low is None or bool(torch.as_tensor(low).any()):
                raise _RefusalError(f"{layer.activation} behind it does not let an offset through")
        yield from self._behind(
            self.nodes[layer.output], _aligned(layer, given.double()).expand(1, *layer.output_shape)
        )

    def _behind(self, node: fx.Node, value: Tensor) -> Iterator[_Taker]:
        """Follow ``value``, part of what ``node`` gives, to the layers that take it."""
        for reader in node.users:
            taker = self.by_node.get(reader.name)
            operation = OPERATIONS.get(reader.target)
            others = [a for a in reader.all_input_nodes if a is not node and a.name not in self.numbers]
            if reader.target in SIZES:
                continue
            if taker is not None and taker.weight is not None and taker.op in WEIGHTED_SUMS:
                if (other := other_reader(self.tensors, taker, taker.bias)) is not None:
                    raise _RefusalError(f"layer {taker.name!r} behind it shares its bias with {other}")
                yield _Taker(taker, _arriving(self.network, reader, taker, value))
            elif pads_with(reader.target, reader.args):
                raise _RefusalError(f"{reader.name} behind it pads with a constant")
            elif not others and (reader.target in MOVEMENTS or (operation is not None and operation.name in _CARRIES)):
                call: Any = reader.target
                moved = call(value, *fx.map_arg(reader.args[1:], lambda a: self.numbers[a.name]), **reader.kwargs)
                if not isinstance(moved, Tensor):
                    raise _RefusalError(f"{reader.name} behind it divides it")
                yield from self._behind(reader, moved)
            else:
                raise _RefusalError(f"{str(reader.target).removeprefix('aten.')} behind it cannot take it")


def _aligned(layer: Layer, channels: Tensor) -> Tensor:
    """(C,) ``channels`` as a tensor that broadcasts to the layer's output, batch or none before it."""
    return channels if layer.op == "linear" else channels.reshape(-1, *(1,) * (len(layer.output_shape) - 1))


def _arriving(network: Network, node: fx.Node, layer: Layer, value: Tensor) -> Tensor:
    """(C,): what ``value`` makes of the layer's output, where that is the same at every position."""
    call: Any = node.target
    rest = [network.tensors[str(a.target)].double() if isinstance(a, fx.Node) else a for a in node.args[1:]]
    if len(rest) > 1:
        rest[1] = None  # the bias
    axis = -1 if layer.op == "linear" else 1
    rows = call(value, *rest).movedim(axis, 0).flatten(1)
    change: Tensor = rows[:, 0]
    if not torch.allclose(rows, change[:, None].expand_as(rows), rtol=1e-9, atol=1e-12):
        raise _RefusalError(f"layer {layer.name!r} behind it pads with zeros")
    return change
