"""ONNX files in OpenVINO on a CPU; the only importer of it.

Its plug-in reads QuantizeLinear and DequantizeLinear, finds the places where integers do, and fuses them itself. It is
told to compute the rest in float32: on processors with bfloat16 or float16 arithmetic it would take that by
default, and what departs would be the float part's.

Raises :class:`QuantopsyError` when imported without OpenVINO.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quantopsy.core import QuantopsyError
from quantopsy.export.onnx.runtime import Kernels, shared_out
from quantopsy.graph.network import Network

try:
    import openvino
    from openvino.properties import hint, inference_num_threads
    from openvino.properties.intel_cpu import denormals_optimization
except ImportError as error:
    raise QuantopsyError("OpenVINO", f"it cannot be imported ({error})", 'pip install "quantopsy[openvino]"') from error

DEVICE = "CPU"
NAME = "OpenVINO"
_MULTIPLY = frozenset(["Convolution", "Deconvolution", "FullyConnected", "MatMul"])
_NODE = re.compile(r"(.*)/(?:Conv|ConvTranspose|Gemm|MatMul)(?:_\d+)?(?:/.*)?$")  # layer1.0.conv1/Conv/WithoutBiases


class Session:
    """A model compiled for this CPU, run as ONNX Runtime's sessions are."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()

    def run(self, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of those ``names``, or all in order."""
        found = self._request.infer(dict(feed))
        wanted = self.compiled.outputs if names is None else [self.compiled.output(name) for name in names]
        return [np.array(found[port]) for port in wanted]


def open_session(model: onnx.ModelProto | str | Path, *, optimised: bool = True, threads: int = 1) -> Session:
    """``model`` compiled for this CPU, what is no integer kernel in float32.

    ``optimised``: whether layers between QuantizeLinear and DequantizeLinear become integer kernels; otherwise they
    compute in float32 what the graph says. Raises :class:`QuantopsyError` with OpenVINO's own words where it refuses
    the model.
    """
    settings: dict[Any, Any] = {
        hint.inference_precision: openvino.Type.f32,
        hint.execution_mode: hint.ExecutionMode.ACCURACY,
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        hint.dynamic_quantization_group_size: 0,
        inference_num_threads: threads,
        denormals_optimization: False,
        "LP_TRANSFORMS_MODE": optimised,
    }
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(source), DEVICE, settings)
    except Exception as error:  # all its errors are RuntimeErrors of many lines
        words = " ".join(str(error).split())
        raise QuantopsyError(NAME, f"it does not load the model ({words[-200:]})", "see docs/export.md") from error
    return Session(compiled)


def kernels(model: onnx.ModelProto | str | Path, network: Network) -> Kernels:
    """Which layers of ``network`` multiply in integers, read from OpenVINO's runtime model.

    An operation there lists the nodes of the file that went into it (``originalLayersNames``). It multiplies in
    integers where its ``runtimePrecision`` is and the kernel (``primitiveType``) takes integers: weights alone that are
    kept in 8 bits and widened give the first without the second.
    """
    found: set[str] = set()
    for operation in open_session(model).compiled.get_runtime_model().get_ops():
        about = {key: value.astype(str) for key, value in operation.get_rt_info().items()}
        in_integers = about["runtimePrecision"] in ("i8", "u8") and about["primitiveType"].upper().endswith("_I8")
        if in_integers and about["layerType"] in _MULTIPLY:
            found |= {match[1] for node in about["originalLayersNames"].split(",") if (match := _NODE.match(node))}
    return shared_out(found, network)
