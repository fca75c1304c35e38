"""One operator as an ONNX model, in ONNX Runtime or in ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator


def one_operator(
    op: str, inputs: dict[str, np.ndarray], output: int = TensorProto.UINT8, domain: str = "", **attributes: Any
) -> ModelProto:
    """A graph of ``op`` with all ``inputs`` given at run time."""
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    node = helper.make_node(op, list(inputs), ["y"], domain=domain, **attributes)
    graph = helper.make_graph([node], "one", infos, [helper.make_tensor_value_info("y", output, None)])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def by_runtime(model: ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Its result in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def by_reference(model: ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Its result by ONNX's own implementation."""
    return ReferenceEvaluator(model).run(None, inputs)[0]


def named(values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs by position."""
    return {f"i{place}": value for place, value in enumerate(values)}
