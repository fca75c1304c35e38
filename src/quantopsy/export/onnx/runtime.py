"""Models in ONNX Runtime on a CPU: what they give, which kernels they run, how long it takes."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from quantopsy.core import QuantopsyError
from quantopsy.core.errors import first_line
from quantopsy.export.onnx.writer import IR_VERSION
from quantopsy.graph.network import Network

# Kernels that multiply integers and add them up in integers.
INTEGER_KERNELS = frozenset(
    [
        "QLinearConv",
        "ConvInteger",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "DynamicQuantizeMatMul",
    ]
)
SAFE_WEIGHT = 64
"""Two products of such a weight and 255 fit 16 bits: 2 x 64 x 255 < 2^15."""
_ERRORS_ONLY = 3

Inputs = Sequence[Tensor] | Mapping[str, Tensor]


class Session(Protocol):
    """A model loaded by a runtime: ONNX Runtime's own sessions are such."""

    def run(self, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> Sequence[Any]:
        """The outputs of those ``names``, or all in order."""
        ...


Opener = Callable[[onnx.ModelProto], Session]
"""Loads a model into a runtime."""


@dataclass(frozen=True)
class Kernels:
    """Which of a network's multiplying layers run in integer kernels; shares are of their MACs."""

    integer: tuple[str, ...]
    real: tuple[str, ...]
    macs_share: float


@dataclass(frozen=True)
class Latency:
    """Median seconds of one run, and its quartiles."""

    median: float
    low: float
    high: float
    runs: int


def open_session(
    model: onnx.ModelProto | str | Path, *, optimised: bool = True, threads: int = 1, save: Path | None = None,
    profile: Path | None = None, unsaturated: bool = False,
) -> onnxruntime.InferenceSession:  # fmt: skip
    """``model`` loaded for this CPU. ``save`` gets the graph that really runs, ``profile`` heads a profile's name.

    ``unsaturated`` has processors without VNNI add products up in 32 bits from the first, slower, instead of pairs in
    16 that saturate.

    Raises :class:`QuantopsyError` with the runtime's own words where it refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = str(save)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if unsaturated:
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no class of their own
        raise QuantopsyError(
            "ONNX Runtime", f"it does not load the model ({first_line(error)})", "see docs/export.md"
        ) from error


def run(session: Session, network: Network, inputs: Inputs) -> tuple[Tensor, ...]:
    """The flat outputs for one batch, ``inputs`` as the network takes them.

    Raises :class:`QuantopsyError` with the runtime's own words where it fails on them.
    """
    given = feed(network, inputs)
    try:
        outputs = session.run(None, given)
    except Exception as error:  # as where it loads a model
        words = " ".join(str(error).split())
        raise QuantopsyError("ONNX model", f"the runtime fails on it ({words[:200]})", "see docs/export.md") from error
    return tuple(torch.from_numpy(np.asarray(output)) for output in outputs)


def feed(network: Network, inputs: Inputs) -> dict[str, np.ndarray]:
    """``inputs`` by the names of the network's inputs."""
    arranged = network.arrange(inputs)
    return {name: x.contiguous().numpy() for name, x in zip(network.input_names, arranged, strict=True)}


def kernels(model: onnx.ModelProto, network: Network) -> Kernels:
    """Which layers of ``network`` multiply in integers, read from the graph that ONNX Runtime makes of ``model``.

    The nodes that were written for a layer keep its name through the runtime's fusions; a layer whose nodes lost it
    counts as computed in reals.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(model, save=path)
        optimised = onnx.load(path)
    found = {layer_of(node.name) for node in optimised.graph.node if node.op_type in INTEGER_KERNELS}
    return shared_out(found, network)


def shared_out(found: Set[str], network: Network) -> Kernels:
    """The layers of ``network`` that multiply, by whether they are among those ``found`` in integer kernels."""
    layers = [layer for layer in network.layers if layer.macs]
    total = sum(layer.macs for layer in layers)
    inside = [layer for layer in layers if layer.name in found]
    return Kernels(
        integer=tuple(layer.name for layer in inside),
        real=tuple(layer.name for layer in layers if layer.name not in found),
        macs_share=sum(layer.macs for layer in inside) / total if total else 0.0,
    )


@cache
def saturates() -> bool:
    """Whether ONNX Runtime's convolutions of unsigned inputs and signed weights lose sums on this processor.

    x86 without VNNI adds pairs of 8-bit products up in 16 bits, saturating (VPMADDUBSW). A convolution with the
    largest inputs and weights tells: its sum of 16 x 255 x 127 is code 200, and half of that where pairs saturate.
    """
    channels, make = 16, onnx.helper.make_tensor_value_info
    constants: dict[str, Any] = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "weight": np.full((channels, channels, 1, 1), 127, np.int8),
        "weight_zero": np.int8(0),
        "scale": np.float32(channels * 255 * 127 / 200),
    }
    node = onnx.helper.make_node(
        "QLinearConv", ["x", "one", "zero", "weight", "one", "weight_zero", "scale", "zero"], ["y"]
    )
    shape = [1, channels, 8, 8]
    graph = onnx.helper.make_graph(
        [node],
        "extremes",
        [make("x", onnx.TensorProto.UINT8, shape)],
        [make("y", onnx.TensorProto.UINT8, shape)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    session = open_session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION))
    return bool((np.asarray(session.run(None, {"x": np.full(shape, 255, np.uint8)})[0]) != 200).any())


def latency(sessions: Mapping[str, Session], network: Network, inputs: Inputs, *, runs: int = 20) -> dict[str, Latency]:
    """Seconds a run of each session on the same batch takes, one run of each after the other, ``runs`` times."""
    given = feed(network, inputs)
    for session in sessions.values():
        session.run(None, given)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(runs):
        for name, session in sessions.items():
            begin = time.perf_counter()
            session.run(None, given)
            times[name].append(time.perf_counter() - begin)
    return {
        name: Latency(
            statistics.median(seconds), float(np.quantile(seconds, 0.25)), float(np.quantile(seconds, 0.75)), runs
        )
        for name, seconds in times.items()
    }


def seconds_by_layer(
    model: onnx.ModelProto, network: Network, inputs: Inputs, *, runs: int = 10, threads: int = 1
) -> dict[str, float]:
    """Seconds a run spends in the kernels of each layer, the sum over its kernels of the median of ``runs``.

    "" is what belongs to no layer, such as changes of layout.
    """
    given = feed(network, inputs)
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, threads=threads, profile=Path(folder) / "profile")
        for _ in range(runs):
            session.run(None, given)
        events = json.loads(Path(session.end_profiling()).read_text())
    names = set(network.names)
    microseconds: dict[str, list[float]] = {}
    for event in events:
        node, _, kind = event["name"].rpartition("_kernel_")
        if event.get("cat") == "Node" and kind == "time":
            microseconds.setdefault(node, []).append(event["dur"])
    spent = dict.fromkeys((*network.names, ""), 0.0)
    for node, times in microseconds.items():
        layer = layer_of(node)
        spent[layer if layer in names else ""] += statistics.median(times) * 1e-6
    return spent


def layer_of(node: str) -> str:
    """The layer that a node was written for, by its name."""
    return node.rpartition("/")[0]
