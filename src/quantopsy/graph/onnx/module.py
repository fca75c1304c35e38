"""An ONNX graph as a module of torch: captured like any other, its layers named after where its nodes come from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from quantopsy.core import QuantopsyError
from quantopsy.core.errors import first_line
from quantopsy.graph.onnx import sizes
from quantopsy.graph.onnx.graph import Input, Node, OnnxGraph, UnsupportedError
from quantopsy.graph.onnx.names import origins
from quantopsy.graph.onnx.operators import READERS
from quantopsy.graph.onnx.values import Constant, Value

LARGEST_VALUE = 2**30
"""Elements of one value of one image; a file that asks for more is refused before anything is allocated."""

LARGEST_CONSTANTS = 2**28
"""Elements of all constants that are computed when a file is read."""

# As many images as no other dimension is: which dimension counts images is seen from it. Nothing is computed with it.
_MANY = 65521

# A module that is one of torch's own gives its path to the layer; see quantopsy.graph.capture.
_LEAF, _INNER = "torch.nn.modules.onnx", "onnx"


class OnnxModule(nn.Module):
    """The function of an ONNX file over any number of images.

    Takes the file's inputs in its order, or by name; gives its output, or a tuple of several. Where the file fixes the
    number of images, a Reshape to that number in front, of a value with one row an image, keeps the images apart: it
    takes any number then. Raises :class:`QuantopsyError` naming the node for whatever does not run.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        nodes, constants, names = _folded(graph)
        nodes = _with_bias(nodes, constants, graph.outputs)
        self.file, self.inputs, self.outputs = graph.file, graph.inputs, graph.outputs
        self._origins = origins(replace(graph, nodes=tuple(nodes)), names)
        self._constants = {name: constants[name] for node in nodes for name in node.inputs if name in constants}
        self._constants |= {name: constants[name] for name in graph.outputs if name in constants}
        self._tensor_names = _unique(self._constants)
        self.tensors = nn.Module()
        for index, array in enumerate(self._constants.values()):
            self.tensors.register_buffer(f"t{index}", torch.from_numpy(array))
        self.nodes = nn.ModuleList(_NodeModule(node) for node in nodes)
        self._nodes = nodes
        self._last_reader = {name: index for index, node in enumerate(nodes) for name in node.inputs}
        firsts = {value.shape[0] for value in graph.inputs if value.shape}
        self._fixed = firsts.pop() if len(firsts) == 1 else None
        self._free: set[int] = set()
        self._looked_at: set[tuple[tuple[int, ...], ...]] = set()
        known = [value.shape[1:] for value in graph.inputs if value.shape and None not in value.shape[1:]]
        if len(known) == len(graph.inputs):
            self._look(tuple(known))  # type: ignore[arg-type]
        self.eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The file's output, or a tuple of them."""
        given = [*inputs, *self.in_order(named)]
        if not torch.compiler.is_exporting():
            self._check(given)
        constants = {
            name: Constant(array, getattr(self.tensors, f"t{index}"))
            for index, (name, array) in enumerate(self._constants.items())
        }
        found = self._walk(dict(zip(self._names, given, strict=True)), constants)
        outputs = tuple(value.tensor if isinstance(value, Constant) else value for value in found)
        return outputs[0] if len(outputs) == 1 else outputs

    def in_order(self, named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Inputs by name, in the file's order; a name that is no identifier has ``_`` for what is none of one."""
        return tuple(named[name] for name in map(_identifier, self._names) if name in named)

    def label(self, graph: fx.Graph, tensors: MutableMapping[str, Tensor]) -> None:
        """Give the file's names to what ``torch.export`` made of this module: module paths, nodes, weights, inputs."""
        keys = {f"tensors.t{index}": name for index, name in enumerate(self._tensor_names)}
        for node in graph.nodes:
            if node.op == "get_attr" and node.target in keys:
                key, node.target = node.target, keys[node.target]
                if key in tensors:
                    tensors[node.target] = tensors.pop(key)
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            part = str(stack[-1][0]).split(".") if stack else []
            if len(part) == 2 and part[0] == "nodes":
                index = int(part[1])
                made, origin = self._nodes[index], self._origins[index]
                kind = _LEAF if origin.leaf else _INNER
                node.meta["nn_module_stack"] = {"": (origin.path, kind)} if origin.path else {}
                node.meta["stack_trace"] = made.trace
                node.meta["onnx_node"] = made.name or next(filter(None, made.outputs), "")
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        for node, name in zip(placeholders, map(_identifier, self._names), strict=True):
            if node.name != name and node.name.startswith("inputs_"):
                node._rename(name)

    @property
    def _names(self) -> list[str]:
        return [value.name for value in self.inputs]

    def _check(self, given: Sequence[Tensor]) -> None:
        """Raise where ``given`` are not the file's inputs."""
        if len(given) != len(self.inputs):
            raise QuantopsyError(
                f"model {self.file!r}",
                f"it takes {len(self.inputs)} inputs ({', '.join(self._names[:8])}), the data give {len(given)}",
                "give a tensor for each, in this order or by name",
            )
        for value, x in zip(self.inputs, given, strict=True):
            _check_input(value, x)
        shapes = tuple(tuple(x.shape[1:]) for x in given)
        if shapes not in self._looked_at:
            self._look(shapes)

    def _look(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Walk through with shapes alone: what would be too large is refused, what counts images is found."""
        for value, shape in zip(self.inputs, shapes, strict=True):
            if math.prod(shape) > LARGEST_VALUE:
                raise QuantopsyError(
                    f"input {value.name!r} of {self.file!r}", f"its images have shape {list(shape)}", "check the file"
                )
        with torch.device("meta"), torch.no_grad():
            given: dict[str, Value] = {
                value.name: torch.empty(_MANY, *shape, dtype=getattr(torch, value.dtype))
                for value, shape in zip(self.inputs, shapes, strict=True)
            }
            constants = {name: Constant(array, _like(array)) for name, array in self._constants.items()}
            self._walk(given, constants, self._inspect)
        self._looked_at.add(shapes)

    def _inspect(self, node: Node, results: Sequence[Value]) -> None:
        for value in results:
            if isinstance(value, Tensor):
                count = value.numel() // _MANY if value.shape[:1] == (_MANY,) else value.numel()
                if count > LARGEST_VALUE:
                    raise node.error(
                        f"its result has shape {[dim if dim != _MANY else 'images' for dim in value.shape]}",
                        "check the file's sizes",
                    )

    def _walk(
        self,
        env: dict[str, Value],
        constants: Mapping[str, Constant],
        inspect: Callable[[Node, Sequence[Value]], None] | None = None,
    ) -> list[Any]:
        """The outputs; ``inspect`` sees every node with its results, and notes which Reshape counts images."""
        for index, (node, module) in enumerate(zip(self._nodes, self.nodes, strict=True)):
            operands = [constants.get(name, env.get(name)) if name else None for name in node.inputs]
            if inspect is not None and _counts_images(node, operands, self._fixed):
                self._free.add(index)
            if index in self._free:
                x, shape = operands[:2]
                operands[1] = sizes.sizes([x.shape[0], *shape.array.tolist()[1:]])  # type: ignore[union-attr]
            results = module(*operands)
            if inspect is not None:
                inspect(node, results)
            env.update((name, value) for name, value in zip(node.outputs, results, strict=False) if name)
            for name in node.inputs:
                if self._last_reader[name] == index and name not in self.outputs:
                    env.pop(name, None)
        found = [constants.get(name, env.get(name)) for name in self.outputs]
        for name, value in zip(self.outputs, found, strict=True):
            if not isinstance(value, Tensor | Constant):
                raise QuantopsyError(
                    f"model {self.file!r}", f"its output {name!r} is no tensor", "leave it out of the file's outputs"
                )
        return found


class _NodeModule(nn.Module):
    """One node, a module of its own so that what it calls is found under it in the captured graph."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def forward(self, *operands: Value | None) -> tuple[Value, ...]:
        return _computed(self.node, operands)


def _computed(node: Node, operands: Sequence[Value | None]) -> tuple[Value, ...]:
    """The node's results; raises :class:`QuantopsyError` naming it."""
    try:
        result = NotImplemented
        if any(isinstance(x, np.ndarray) for x in operands) and not any(isinstance(x, Tensor) for x in operands):
            result = sizes.compute(node, [_as_sizes(x) for x in operands])
        if result is NotImplemented:
            result = READERS[node.op_type](node, *operands)
        results = result if isinstance(result, tuple) else (result,)
        if len(results) < len(node.outputs) and any(node.outputs[len(results) :]):
            raise UnsupportedError("more than one result")
        return results
    except UnsupportedError as reason:
        raise node.error(f"not read: {reason}", "replace it in the model, or give the PyTorch network") from None
    except QuantopsyError:
        raise
    except Exception as error:
        if torch.compiler.is_exporting():
            raise
        raise node.error(
            f"it does not run ({first_line(error)})", "check the shapes of its operands in the file"
        ) from error


def _as_sizes(operand: Value | None) -> np.ndarray | None:
    if isinstance(operand, Constant):
        return operand.array.astype(object)
    return operand if isinstance(operand, np.ndarray) else None


def _counts_images(node: Node, operands: Sequence[Value | None], fixed: int | None) -> bool:
    """Whether the node is a Reshape from one row an image to the file's own number of rows in front.

    Both shapes having the images in front, what is behind has as many values of an image before and after, and rows
    stay images in their order.
    """
    if node.op_type != "Reshape" or fixed is None:
        return False
    x, shape = operands[:2]
    return (
        isinstance(x, Tensor)
        and x.shape[:1] == (_MANY,)
        and isinstance(shape, Constant)
        and shape.array.ndim == 1
        and shape.array[:1].tolist() == [fixed]
    )


def _check_input(value: Input, x: Tensor) -> None:
    shape = tuple(x.shape[1:])
    if x.dim() == 0 or x.shape[0] == 0:
        raise QuantopsyError(f"input {value.name!r}", "it has no images", "give a batch of images")
    if value.shape is not None and (
        len(value.shape) != x.dim()
        or any(want not in (None, dim) for want, dim in zip(value.shape[1:], shape, strict=True))
    ):
        wanted = tuple("any" if dim is None else dim for dim in value.shape[1:])
        raise QuantopsyError(
            f"input {value.name!r}",
            f"images of shape {shape} where the file takes ({', '.join(map(str, wanted))})",
            "resize the images, or export the model at that size",
        )
    if x.dtype != getattr(torch, value.dtype):
        kind = str(x.dtype).removeprefix("torch.")
        raise QuantopsyError(
            f"input {value.name!r}", f"the data are {kind}, the file takes {value.dtype}", f"give {value.dtype}"
        )


def _folded(graph: OnnxGraph) -> tuple[list[Node], dict[str, np.ndarray], dict[str, str]]:
    """Nodes that depend on the inputs, all constants, and by constant the name of the weight that it was made from."""
    constants, nodes = dict(graph.constants), []
    names = {name: name for name in constants}
    made = 0
    for node in graph.nodes:
        if not all(name in constants for name in node.inputs if name):
            nodes.append(node)
            continue
        arrays = [constants[name] if name else None for name in node.inputs]
        with torch.no_grad():
            with torch.device("meta"):
                shaped = _computed(node, [None if a is None else Constant(a, _like(a)) for a in arrays])
            made += sum(value.numel() for value in shaped if isinstance(value, Tensor))
            if made > LARGEST_CONSTANTS:
                raise node.error("it makes too large a constant", "check the file's sizes")
            results = _computed(node, [None if a is None else Constant(a, torch.from_numpy(a)) for a in arrays])
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                constants[name] = _stored(node, value)
                names[name] = names.get(node.inputs[0], name) if node.inputs else name
    return nodes, constants, names


def _like(array: np.ndarray) -> Tensor:
    """A tensor of shape and type alone."""
    return torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype)


def _stored(node: Node, value: Value) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.contiguous().numpy()
    if isinstance(value, Constant):
        return value.array
    try:
        return np.array(value.tolist())
    except (TypeError, ValueError) as error:
        raise node.error(f"it does not run ({error})", "check its operands in the file") from error


def _with_bias(nodes: Sequence[Node], constants: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[Node]:
    """``nodes`` with an Add of a constant vector behind a product with a constant matrix taken into the product.

    A linear layer over more than two dimensions is written so.
    """
    readers = Counter(name for node in nodes for name in node.inputs)
    products = {
        node.outputs[0]: index
        for index, node in enumerate(nodes)
        if node.op_type == "MatMul" and node.inputs[1] in constants and constants[node.inputs[1]].ndim == 2
    }
    found: list[Node | None] = list(nodes)
    for index, node in enumerate(nodes):
        if node.op_type != "Add":
            continue
        for value, bias in (node.inputs, node.inputs[::-1]):
            if value not in products or readers[value] != 1 or value in outputs or bias not in constants:
                continue
            product = nodes[products[value]]
            if constants[bias].shape == constants[product.inputs[1]].shape[1:]:
                found[products[value]] = None
                found[index] = replace(product, inputs=(*product.inputs[:2], bias), outputs=node.outputs)
                break
    return [node for node in found if node is not None]


def _unique(names: Mapping[str, Any]) -> list[str]:
    """Names that can be printed, no two the same."""
    found: dict[str, None] = {}
    for name in names:
        base = "".join(c if c.isprintable() else "?" for c in name)[:200]
        candidate, count = base, 0
        while candidate in found:
            count += 1
            candidate = f"{base}_{count}"
        found[candidate] = None
    return list(found)


def _identifier(name: str) -> str:
    """``name`` as torch can call an argument."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
    return f"input_{plain}" if not plain or plain[0].isdigit() else plain
