"""Which channels of a network may be scaled, and which of them only together.

A channel with scale s is divided by s where it is made and multiplied by s where it is read. Channels that an
addition or a pooling brings together need the same scale: they are one class. What reaches an operator that is
not scale-equivariant, f(x / s) != f(x) / s, is pinned to s = 1, as are the network's inputs and outputs.

Every channel gets a number when a layer makes it. Numbers then travel with the values: movements (reshape, concat,
pad, slice, shuffle) are simply run on the tensors of numbers, so that no rule is needed for any of them.
C channels, I and O of them into and out of a layer, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantopsy.core import QuantopsyError
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import ACTIVATIONS, MOVEMENTS, OPERATIONS, SIZES, pads_with
from quantopsy.transforms.draft import clamp_bounds, tensor_readers

_FREE = 0.0
"""The number of zeros that padding adds: they have any scale."""

HOMOGENEOUS = {"relu", "leaky_relu", "prelu"}
"""Activations with f(s x) = s f(x) for s > 0, which give x for x > 0."""

CLAMPS = {"relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"}
"""Activations that give x between bounds."""

_BY_CHANNEL = {"max_pool", "avg_pool", "adaptive_avg_pool", "upsample"}


@dataclass(frozen=True)
class Weighted:
    """A layer with a weight: the classes of the channels that it reads, (I,), and of those it makes, (O,)."""

    layer: Layer
    into: Tensor
    out: Tensor


@dataclass(frozen=True)
class Clamped:
    """A clamp between bounds that scale with what it clamps: its value, and classes that broadcast to its value."""

    value: str
    classes: Tensor


@dataclass(frozen=True)
class ScaleClasses:
    """The classes of a network, numbered below ``count``.

    ``pinned``: of classes that keep scale 1 the operator that is why. ``values``: the classes of every floating
    value, without its batch, dimensions along which they do not differ cut to 1.
    """

    count: int
    weighted: tuple[Weighted, ...]
    clamped: tuple[Clamped, ...]
    values: Mapping[str, Tensor]
    pinned: Mapping[int, str]

    def by_channel(self, value: str, channels: int) -> Tensor | None:
        """(C,) classes of a value that differ along one dimension of that length at most; None of others."""
        classes = self.values.get(value)
        if classes is None or classes.numel() not in (1, channels) or max(classes.shape, default=1) != classes.numel():
            return None
        return classes.flatten().expand(channels)


def scale_classes(network: Network) -> ScaleClasses:
    """The scale classes of ``network``, from one pass over its graph with an image of zeros."""
    return _Trace(network).classes()


def matrices(layer: Layer, weight: Tensor) -> Tensor:
    """``weight`` as (G, O / G, I / G, K): a matrix of kernels per group, outputs first."""
    if layer.op.startswith("conv_transpose"):  # (I, O / G, ...)
        return weight.reshape(layer.groups, len(weight) // layer.groups, weight.shape[1], -1).transpose(1, 2)
    if layer.op == "matmul":
        return weight.T[None, :, :, None]
    if layer.op == "batch_norm":  # each channel is a group of its own
        return weight.reshape(-1, 1, 1, 1)
    return weight.reshape(layer.groups, len(weight) // layer.groups, weight.shape[1], -1)


def in_layout(layer: Layer, factors: Tensor) -> Tensor:
    """(G, O / G, I / G) ``factors`` as a tensor that broadcasts to the layer's weight."""
    assert layer.weight_shape is not None
    if layer.op == "batch_norm":
        return factors.flatten()
    kernel = (1,) * (len(layer.weight_shape) - 2)
    if layer.op.startswith("conv_transpose"):
        factors = factors.transpose(1, 2)
    if layer.op == "matmul":
        return factors[0].T
    return factors.reshape(layer.weight_shape[:2] + kernel)


class _Trace:
    """One walk over the graph: values and the numbers of their channels."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.layers = {layer.node: layer for layer in network.layers}
        self.next = 1
        self.pairs: list[Tensor] = []  # (N, 2) numbers that are one class
        self.reasons: dict[int, str] = {}
        self.weighted: list[Weighted] = []
        self.clamped: list[Clamped] = []
        self.real: dict[fx.Node, Any] = {}
        self.numbers: dict[fx.Node, Any] = {}
        self.values: dict[str, Tensor] = {}
        self.readers = tensor_readers(network)

    def classes(self) -> ScaleClasses:
        images = iter(self.network.zeros(1))
        last = {operand: node for node in self.network.graph.nodes for operand in node.all_input_nodes}
        with torch.no_grad():
            for node in self.network.graph.nodes:
                if node.op == "placeholder":
                    self.real[node] = next(images)
                    self.numbers[node] = self._pin("the network's input", like=self.real[node])
                elif node.op == "get_attr":
                    self.real[node] = self.network.tensors[str(node.target)]
                elif node.op == "output":
                    for leaf in pytree.tree_leaves(node.args[0]):
                        if leaf in self.numbers:
                            self._unite_with(self._pin("the network's output"), self.numbers[leaf])
                else:
                    self.real[node] = self._compute(node)
                    numbers = self._numbers(node)
                    if isinstance(numbers, Tensor):
                        few = _collapsed(numbers)
                        self.values[node.name] = few[0] if few.dim() else few
                        self.numbers[node] = few.expand(numbers.shape)
                    elif numbers is not None:
                        self.numbers[node] = numbers
                for operand in node.all_input_nodes:
                    if last[operand] is node:
                        self.real.pop(operand, None)
                        self.numbers.pop(operand, None)
        return self._joined()

    def _compute(self, node: fx.Node) -> Any:
        target: Any = node.target
        try:
            return target(*self._real(node.args), **self._real(node.kwargs))
        except (RuntimeError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise QuantopsyError(
                "equalization",
                f"the network does not run on an image of zeros ({_operator(node)}: {reason})",
                "leave it out: its inputs must be floating tensors",
            ) from error

    def _joined(self) -> ScaleClasses:
        """Numbers that were brought together are one class."""
        pairs = torch.cat([*self.pairs, torch.empty(0, 2)]).long().numpy()
        graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(self.next, self.next))
        count, labels = connected_components(graph, directed=False)
        by_number = torch.from_numpy(labels).long()
        pinned: dict[int, str] = {int(by_number[int(_FREE)]): "padding with zeros"}
        for number, reason in self.reasons.items():
            pinned.setdefault(int(by_number[number]), reason)

        def named(numbers: Tensor) -> Tensor:
            return by_number[numbers.long()]

        return ScaleClasses(
            count,
            tuple(Weighted(w.layer, named(w.into), named(w.out)) for w in self.weighted),
            tuple(Clamped(c.value, named(c.classes)) for c in self.clamped),
            {name: named(numbers) for name, numbers in self.values.items()},
            pinned,
        )

    def _numbers(self, node: fx.Node) -> Any:
        """The numbers of what ``node`` gives; None of what is no floating tensor."""
        value = self.real[node]
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        if not any(leaf.is_floating_point() for leaf in leaves):
            if leaves and node.target not in SIZES:  # an index, a comparison: what it is made of must not move
                self._pin_operands(node)
            return None
        if node.target in SIZES or not any(operand in self.numbers for operand in node.all_input_nodes):
            return self._of_constant(value)
        layer = self.layers.get(node.name)
        operation = OPERATIONS[node.target].name if node.target in OPERATIONS else None
        if layer is not None and layer.weight is not None and operation is not None:
            return self._through_weight(node, layer, value)
        if operation == "concat" or (node.target in MOVEMENTS and not pads_with(node.target, node.args)):
            target: Any = node.target
            return target(*self._moving(node.args), **self._moving(node.kwargs))
        if node.target in ACTIVATIONS:
            return self._through_activation(node, value)
        if operation in _BY_CHANNEL:
            return _along(self._channels(self._read(node), 1), value, 1)
        if operation == "mean":
            return self._through_mean(node, value)
        if operation == "add":
            return self._through_addition(node, value)
        if operation == "mul":
            return self._through_product(node, value)
        return self._opaque(node, value)

    def _through_weight(self, node: fx.Node, layer: Layer, value: Tensor) -> Tensor:
        assert layer.weight is not None
        assert layer.weight_shape is not None
        if layer.op == "matmul" and len(layer.weight_shape) != 2:
            return self._opaque(node, value)
        axis = -1 if layer.op in ("linear", "matmul") else 1
        into = self._channels(self._read(node), axis)
        out = torch.arange(self.next, self.next + value.shape[axis], dtype=torch.float32)
        self.next += len(out)
        self.weighted.append(Weighted(layer, into, out))
        self._unite_shared(node, layer)
        return _along(out, value, axis)

    def _unite_shared(self, node: fx.Node, layer: Layer) -> None:
        """A tensor that several layers read is scaled once, for all of them; one that others read, not at all."""
        mine = self.weighted[-1]
        for role in ("weight", "bias"):
            tensor = getattr(layer, role)
            for reader in self.readers.get(tensor, set()) - {node}:
                other = self.layers.get(reader.name)
                if other is None or getattr(other, role) != tensor or other.op != layer.op:
                    pin = self._pin(f"{_operator(reader)}, which reads the same {role},")
                    self._unite_with(pin, mine.out)
                    self._unite_with(pin, mine.into)
                    continue
                for earlier in self.weighted[:-1]:
                    if earlier.layer is other:
                        self._unite(earlier.out, mine.out)
                        if role == "weight":
                            self._unite(earlier.into, mine.into)

    def _through_activation(self, node: fx.Node, value: Tensor) -> Tensor:
        name, x = ACTIVATIONS[node.target], self._read(node)
        others = [operand for operand in node.all_input_nodes if operand is not node.args[0]]
        if any(operand in self.numbers for operand in others):
            return self._opaque(node, value)
        if name in HOMOGENEOUS:
            return x
        if name in CLAMPS:
            if any(_nonzero(bound, self.real) for bound in clamp_bounds(node).values()):
                self.clamped.append(Clamped(node.name, _collapsed(x)[0]))
            return x
        return self._opaque(node, value)

    def _through_mean(self, node: fx.Node, value: Tensor) -> Tensor:
        x = self._read(node)
        arguments: tuple[Any, ...] = node.args
        given = arguments[1] if len(arguments) > 1 else None
        dims = [dim % x.dim() for dim in given] if given else [0]
        if 0 in dims:  # over images
            return self._opaque(node, value)
        kept = [dim for dim in range(x.dim()) if dim not in dims]
        rows = x.permute(*kept, *dims).flatten(len(kept))
        return self._united(rows.reshape(-1, rows.shape[-1])).reshape(value.shape)

    def _through_addition(self, node: fx.Node, value: Tensor) -> Tensor:
        a, b = (self._operand(operand).expand(value.shape) for operand in node.args[:2])
        return self._unite(a, b)

    def _through_product(self, node: fx.Node, value: Tensor) -> Tensor:
        """x times a constant scales as x does, and so does x times what has scale 1."""
        a, b = (self._operand(operand).expand(value.shape) for operand in node.args[:2])
        rounds = len(node.args) > 2 or node.kwargs
        if not rounds and self._is_pinned(b):
            return a
        if not rounds and self._is_pinned(a) and "div" not in str(node.target):
            return b
        return self._opaque(node, value)

    def _opaque(self, node: fx.Node, value: Any) -> Any:
        """An operator that scales do not pass."""
        pin = self._pin_operands(node)
        return pytree.tree_map(lambda v: pin.expand(v.shape) if _floating(v) else None, value)

    def _pin_operands(self, node: fx.Node) -> Tensor:
        pin = self._pin(_operator(node))
        for operand in node.all_input_nodes:
            if operand in self.numbers:
                for numbers in pytree.tree_leaves(self.numbers[operand]):
                    if numbers is not None:  # indices beside values
                        self._unite_with(pin, numbers)
        return pin

    def _read(self, node: fx.Node) -> Tensor:
        """The numbers of the first argument."""
        first = node.args[0]
        assert isinstance(first, fx.Node)
        numbers: Tensor = self.numbers[first]
        return numbers

    def _operand(self, operand: Any) -> Tensor:
        """The numbers of an operand of an addition or product: a value, a constant or a plain number."""
        if isinstance(operand, fx.Node):
            numbers = self.numbers.get(operand)
            return self._of_constant(self.real[operand]) if numbers is None else numbers
        return self._of_constant(torch.as_tensor(operand))

    def _of_constant(self, value: Any) -> Any:
        """Zeros have any scale, other constants scale 1."""
        pin = self._pin("a constant")
        return pytree.tree_map(lambda v: torch.where(v == 0, _FREE, pin) if isinstance(v, Tensor) else None, value)

    def _moving(self, arguments: Any) -> Any:
        """The arguments of a movement with numbers in the place of values; indices and sizes as they are."""

        def numbers(operand: fx.Node) -> Any:
            if operand in self.numbers:
                return self.numbers[operand]
            real = self.real[operand]
            return self._of_constant(real) if _floating(real) else real

        return fx.map_arg(arguments, numbers)

    def _real(self, arguments: Any) -> Any:
        return fx.map_arg(arguments, self.real.__getitem__)

    def _channels(self, x: Tensor, axis: int) -> Tensor:
        """(C,): one number a channel, those of its positions united."""
        rows = _collapsed(x).movedim(axis, 0)
        return self._united(rows.expand(x.shape[axis], *rows.shape[1:]).flatten(1))

    def _united(self, rows: Tensor) -> Tensor:
        """(R,): one number a row of (R, N), the others of the row being the same class."""
        first = rows.amax(1)
        self._unite(first[:, None].expand(rows.shape), rows)
        return first

    def _unite(self, a: Tensor, b: Tensor) -> Tensor:
        """Numbers in the same places become one class; returned is one of each two."""
        shape = a.shape
        repeated = [dim for dim in range(a.dim()) if a.stride(dim) == b.stride(dim) == 0]
        for dim in repeated:
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
        differ = (a != b) & (a != _FREE) & (b != _FREE)
        if differ.any():
            self.pairs.append(torch.stack((a[differ], b[differ]), 1).unique(dim=0))
        return torch.maximum(a, b).expand(shape)

    def _unite_with(self, pin: Tensor, numbers: Tensor) -> None:
        self._unite(pin.expand(numbers.shape), numbers)

    def _pin(self, reason: str, like: Tensor | None = None) -> Tensor:
        number = torch.tensor(float(self.next))
        self.reasons[self.next] = reason
        self.next += 1
        return number if like is None else number.expand(like.shape)

    def _is_pinned(self, numbers: Tensor) -> bool:
        return all(int(number) in self.reasons or number == _FREE for number in numbers.unique())


def _nonzero(bound: Any, real: Mapping[fx.Node, Any]) -> bool:
    value = real[bound] if isinstance(bound, fx.Node) else bound
    return value is not None and bool(torch.as_tensor(value).any())


def _operator(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _along(numbers: Tensor, value: Tensor, axis: int) -> Tensor:
    """(C,) ``numbers`` for every position of ``value`` along its channel axis."""
    shape = [1] * value.dim()
    shape[axis] = len(numbers)
    return numbers.reshape(shape).expand(value.shape)


def _collapsed(numbers: Tensor) -> Tensor:
    """With every dimension along which nothing differs cut to 1: what large images have most of."""
    for dim in range(numbers.dim()):
        first = numbers.narrow(dim, 0, 1)
        if numbers.stride(dim) == 0 or bool((numbers == first).all()):
            numbers = first
    return numbers.clone()
