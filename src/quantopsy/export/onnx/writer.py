"""An ONNX graph while it is written: nodes, constants, and names that never meet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from torch import Tensor

IR_VERSION = 10  # the first with 4-bit integers


@dataclass(frozen=True)
class Value:
    """An ONNX tensor. Its shape has None where the number of images decides; ``dtype`` is numpy's type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: Any = np.float32


@dataclass(frozen=True)
class Constant:
    """A tensor of the network; with ``name`` set it is in the graph already, as it is or dequantized."""

    key: str
    tensor: Tensor
    name: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return tuple(self.tensor.shape)


Operand = Value | Constant | float


@dataclass
class OnnxWriter:
    """Collects a graph. ``scope`` heads the names of what is written next: the layer's name."""

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    scope: str = ""
    _taken: set[str] = field(default_factory=set)
    _scalars: dict[tuple[str, bytes, tuple[int, ...]], str] = field(default_factory=dict)
    _weights: dict[tuple[str, bytes, tuple[int, ...]], str] = field(default_factory=dict)
    _tensors: dict[tuple[str, bool], str] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it where it is taken."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def add(self, op_type: str, *inputs: str, result: str | None = None, **attributes: Any) -> str:
        """A node, named after the scope; the name of its output. Attributes that are None are left out."""
        name = self.unique(f"{self.scope}/{op_type}")
        output = self.unique(result or f"{name}:")
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(onnx.helper.make_node(op_type, list(inputs), [output], name=name, **given))
        return output

    def initializer(self, name: str, array: np.ndarray) -> str:
        """``array`` in the graph under a name like ``name``."""
        name = self.unique(name)
        self.initializers[name] = onnx.numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, array: np.ndarray) -> str:
        """``array``, which may be large, as :meth:`initializer`; layers that share a weight share it here too."""
        key = (str(array.dtype), hashlib.sha256(array.tobytes()).digest(), array.shape)
        if key not in self._weights:
            self._weights[key] = self.initializer(name, array)
        return self._weights[key]

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A small constant, shared by all that need the same."""
        array = np.asarray(value, dtype)
        key = (str(array.dtype), array.tobytes(), array.shape)
        if key not in self._scalars:
            self._scalars[key] = self.initializer(f"constant_{len(self._scalars)}", array)
        return self._scalars[key]

    def integers(self, values: Sequence[int]) -> str:
        """A one-dimensional int64 constant, as shapes and axes are."""
        return self.constant(list(values), np.int64)

    def name(self, operand: Operand) -> str:
        """The name of ``operand``, put into the graph where it is a constant."""
        if isinstance(operand, Value):
            return operand.name
        if isinstance(operand, Constant):
            return operand.name or self.tensor(operand)
        return self.constant(operand)

    def tensor(self, constant: Constant, *, turned: bool = False) -> str:
        """A float or index tensor of the network, once; ``turned``: transposed.

        What else is in the graph may be called as a tensor of the network is: the codes or the corrected bias of a
        layer that reads it beside another one.
        """
        key = constant.key, turned
        if key not in self._tensors:
            tensor = constant.tensor.T if turned else constant.tensor
            array = tensor.detach().cpu().contiguous().numpy()
            self._tensors[key] = self.initializer(f"{constant.key}.T" if turned else constant.key, array)
        return self._tensors[key]

    def transposed(self, weight: Constant) -> str:
        """A matrix of the network, transposed where it is stored."""
        if weight.name is not None:
            return weight.name  # whoever stored it has turned it already
        return self.tensor(weight, turned=True)

    def model(
        self,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The finished model."""

        def info(value: Value) -> onnx.ValueInfoProto:
            dims = [dim if dim is not None else "batch" for dim in value.shape]
            kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
            return onnx.helper.make_tensor_value_info(value.name, kind, dims)

        graph = onnx.helper.make_graph(
            self.nodes,
            "network",
            [info(value) for value in inputs],
            [info(value) for value in outputs],
            list(self.initializers.values()),
        )
        model = onnx.helper.make_model(
            graph,
            opset_imports=[onnx.helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSION,
            producer_name="quantopsy",
        )
        onnx.helper.set_model_props(model, metadata)
        return model
