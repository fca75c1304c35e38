"""Running a network step by step: a step is a layer with its activation, or one movement of values.

Compiling once to plain closures keeps the cost of Python small beside a layer of a small image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import CLIPS, IN_PLACE, MOVEMENTS, Clip, aten, clip_between

Values = dict[str, Any]


class Lookup(Protocol):
    """Anything that gives a value by its name."""

    def __getitem__(self, name: str, /) -> Any: ...


Compute = Callable[[Lookup], Any]


@dataclass(frozen=True)
class Step:
    """Computes the value ``writes`` from the values ``reads``.

    ``weight`` and ``bias`` are the names under which ``compute`` looks those of the layer up, so that a caller can
    lay quantized ones over them. ``operation`` and ``activate`` are the two halves of a layer, out of
    place, for whoever differentiates them; ``target`` and ``arguments`` are what the operation calls.
    ``clip`` is the activation where it is one that its result can be differentiated from.
    """

    index: int
    writes: str
    reads: tuple[str, ...]
    compute: Compute
    operation: Compute
    activate: Callable[[Lookup, Any], Any] | None
    target: Any
    arguments: Callable[[Lookup], Sequence[Any]]
    layer: Layer | None = None
    weight: str | None = None
    bias: str | None = None
    clip: Clip | None = None

    def activated(self, values: Lookup, result: Any) -> Any:
        """The operation's ``result`` behind the activation function, where there is one."""
        return result if self.activate is None else self.activate(values, result)


@dataclass(frozen=True)
class Program:
    """A network compiled for one device.

    ``constants`` are its tensors, on the device and in the memory format that convolutions like.
    ``outputs`` are those that are computed. ``last_reader`` is the index of the last step that reads a
    value; outputs of the network are read by the end, ``len(steps)``.
    """

    network: Network
    device: torch.device
    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    last_reader: Mapping[str, int]
    producer: Mapping[str, int] = field(default_factory=dict)

    def place(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Values:
        """The network's inputs as values on the device, channels last."""
        arranged = self.network.arrange(inputs)
        return {
            name: channels_last(tensor.to(self.device, non_blocking=True))
            for name, tensor in zip(self.network.input_names, arranged, strict=True)
        }

    def release(self, step: Step, *stores: Values) -> None:
        """Take out of ``stores`` what nothing behind ``step`` reads."""
        for name in step.reads:
            if self.last_reader[name] == step.index:
                for values in stores:
                    values.pop(name, None)

    def forward(
        self,
        values: Values,
        observe: Callable[[Step, Values], None] | None = None,
        keep: bool = False,
    ) -> tuple[Any, ...]:
        """The flat outputs of the float network, as :meth:`Network.unflatten` takes them.

        ``values`` holds the inputs and is used up: a value is released behind its last reader, or
        with ``keep`` stays for whoever runs parts of the network again. ``observe`` sees every step
        with the values it read and wrote, before they are released.
        """
        for step in self.steps:
            values[step.writes] = step.compute(Overlay(values, self.constants))
            if observe is not None:
                observe(step, values)
            if not keep:
                self.release(step, values)
        return tuple(values[name] for name in self.outputs)


class Overlay:
    """Look-up in ``first``, then in ``second``: what a step needs of a mapping, at its lowest cost."""

    __slots__ = ("first", "second")

    def __init__(self, first: Lookup, second: Lookup) -> None:
        self.first, self.second = first, second

    def __getitem__(self, name: str) -> Any:
        try:
            return self.first[name]
        except KeyError:
            return self.second[name]


def channels_last(tensor: Tensor) -> Tensor:
    """Images with their channels innermost: convolutions on CPUs and tensor cores are fastest so."""
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if tensor.dim() == 5:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor


def compile_network(network: Network, device: torch.device | str = "cpu") -> Program:
    """``network`` as steps on ``device``."""
    device = torch.device(device)
    by_node = {layer.node: layer for layer in network.layers}
    constants = {
        name: channels_last(tensor.to(device)) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in network.tensors.items()
    }
    # Names of graph values and of tensors never meet: a value's name has no dot, a tensor's gets one.
    constants = {_constant(name): tensor for name, tensor in constants.items()}
    steps: list[Step] = []
    fused: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        if node.op != "call_function" or node in fused:
            continue
        layer = by_node.get(node.name)
        compute = operation = _call(node)
        activate = clip = None
        reads = _reads(node)
        writes = node.name
        if layer is not None and layer.output != node.name:
            activation = next(user for user in node.users if user.name == layer.output)
            fused[activation] = node
            # The operation's own result is new memory that nobody else reads.
            activate = _call(activation, operand=node)
            clip = _clip(layer, activation, constants)
            compute = _then(operation, _call(activation, operand=node, in_place=node.target not in MOVEMENTS))
            writes = activation.name
        weight, bias = (None, None) if layer is None else (_named(layer.weight), _named(layer.bias))
        arguments = _resolver(tuple(node.args))
        place = len(steps), writes, reads
        steps.append(Step(*place, compute, operation, activate, node.target, arguments, layer, weight, bias, clip))
    outputs = network.output_names
    last_reader = {name: step.index for step in steps for name in step.reads}
    last_reader.update({name: len(steps) for name in outputs})
    producer = {step.writes: step.index for step in steps}
    return Program(network, device, tuple(steps), constants, outputs, last_reader, producer)


def _clip(layer: Layer, activation: fx.Node, constants: Mapping[str, Tensor]) -> Clip | None:
    if activation.target is aten.clamp.Tensor and not activation.kwargs:
        bounds = [constants[_key(bound)] if isinstance(bound, fx.Node) else None for bound in activation.args[1:]]
        return clip_between(*bounds, *[None] * (2 - len(bounds)))
    return None if layer.activation is None else CLIPS.get(layer.activation)


def _constant(name: str) -> str:
    return f"tensor.{name}"


def _named(tensor: str | None) -> str | None:
    return None if tensor is None else _constant(tensor)


def _key(node: fx.Node) -> str:
    return _constant(str(node.target)) if node.op == "get_attr" else node.name


def _reads(node: fx.Node) -> tuple[str, ...]:
    return tuple(dict.fromkeys(operand.name for operand in node.all_input_nodes if operand.op != "get_attr"))


def _call(node: fx.Node, operand: fx.Node | None = None, in_place: bool = False) -> Callable[..., Any]:
    """A closure that looks the node's operands up and calls its operator.

    With ``operand`` the closure takes that operand's value as a second argument instead.
    """
    target: Any = node.target
    if in_place:
        target = IN_PLACE.get(target, target)
    if operand is not None:
        rest = _resolver(tuple(node.args[1:]))
        kwargs = dict(node.kwargs)
        return lambda values, x: target(x, *rest(values), **kwargs)
    arguments = _resolver(tuple(node.args))
    if not node.kwargs:
        return lambda values: target(*arguments(values))
    keywords = tuple(node.kwargs)
    named = _resolver(tuple(node.kwargs.values()))
    return lambda values: target(*arguments(values), **dict(zip(keywords, named(values), strict=True)))


def _then(operation: Callable[..., Any], activation: Callable[..., Any]) -> Compute:
    return lambda values: activation(values, operation(values))


def _resolver(arguments: tuple[Any, ...]) -> Callable[[Lookup], Sequence[Any]]:
    """A closure from values to the arguments with every node replaced by its value."""
    nested = any(not isinstance(a, fx.Node) and _has_node(a) for a in arguments)
    if nested:
        return lambda values: fx.map_arg(arguments, lambda node: values[_key(node)])
    template = list(arguments)
    slots = [(i, _key(a)) for i, a in enumerate(arguments) if isinstance(a, fx.Node)]

    def resolve(values: Lookup) -> Sequence[Any]:
        resolved = list(template)
        for position, name in slots:
            resolved[position] = values[name]
        return resolved

    return resolve


def _has_node(argument: Any) -> bool:
    return any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(argument))
