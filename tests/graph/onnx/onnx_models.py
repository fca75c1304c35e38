"""What tests of reading ONNX share: small files written by hand, and other software that runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from quantopsy.graph.onnx import OnnxModule, load_onnx

NEWEST = onnx.defs.onnx_opset_version()
NEWEST_OF_RUNTIME = 25  # onnxruntime 1.31 promises no more
TYPES = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("int64"): TensorProto.INT64}

Nodes = Sequence[onnx.NodeProto]


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> onnx.NodeProto:
    """A node named after its operator."""
    return helper.make_node(op_type, inputs, outputs, name=f"the {op_type}", **attributes)


def model_of(
    nodes: Nodes,
    shape: Sequence[int | str] = ("n", 4, 6, 6),
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 21,
) -> onnx.ModelProto:
    """A model of one input ``x``."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def opened(model: onnx.ModelProto, folder: Path) -> OnnxModule:
    """``model`` through a file."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return load_onnx(path)


def read_as(model: onnx.ModelProto, folder: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs by our reading."""
    with torch.no_grad():
        found = opened(model, folder)(*map(torch.from_numpy, inputs))
    return [value.numpy() for value in (found if isinstance(found, tuple) else (found,))]


def by_reference(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs by ONNX's own reference implementation."""
    return ReferenceEvaluator(model).run(None, _feed(model, inputs))


def by_runtime(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, _feed(model, inputs))


def _feed(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {info.name: x for info, x in zip(model.graph.input, inputs, strict=True)}


def values(*shape: int, seed: int = 0) -> np.ndarray:
    """Random reals."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(*numbers: int) -> np.ndarray:
    """Shapes, axes and the like."""
    return np.array(numbers, np.int64)
