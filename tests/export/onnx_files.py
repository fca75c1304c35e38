"""What tests of ONNX files share: networks of one function, plans over them, and other software that runs files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network


class Then(nn.Module):
    """A convolution, so that there is a layer, and a function of its result."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 3, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


def network_of(module: nn.Module, *inputs: Tensor) -> Network:
    """``module`` captured on two images."""
    return capture(module, tuple(x[:2] for x in inputs))


def everywhere(network: Network, weight: Spec | None = None, activation: Spec | None = None) -> Plan:
    """All sites of the network."""
    sites: dict[Site, Spec] = {}
    for layer in network.layers:
        if layer.weight is not None and weight is not None:
            sites[Site(layer.name, "weight")] = weight
        if activation is not None:
            sites[Site(layer.name, "input")] = sites[Site(layer.name, "output")] = activation
    return Plan.of(sites)


def calibrated(network: Network, plan: Plan, *inputs: Tensor) -> Calibration:
    """Ranges for ``plan`` seen on ``inputs``."""
    return calibrate(compile_network(network), [inputs], wanted_statistics(network, [plan]))


def simulated(network: Network, plan: Plan, ranges: Calibration, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What the exact engine gives under ``plan``."""
    engine = ExactEngine(compile_network(network), ranges)
    return list(engine.run_tile(inputs, [engine.prepare(plan)]))[-1].outputs


def by_runtime(model: onnx.ModelProto, *inputs: Tensor, optimised: bool = False) -> list[np.ndarray]:
    """The outputs in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, _feed(model, inputs))


def by_reference(model: onnx.ModelProto, *inputs: Tensor) -> list[np.ndarray]:
    """The outputs by ONNX's own reference implementation."""
    return ReferenceEvaluator(model).run(None, _feed(model, inputs))


def kinds(model: onnx.ModelProto) -> list[str]:
    """The operators of a model in order."""
    return [node.op_type for node in model.graph.node]


def stored(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """The initializer called ``name``."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _feed(model: onnx.ModelProto, inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    return {info.name: x.numpy() for info, x in zip(model.graph.input, inputs, strict=True)}


def pictures(count: int = 4, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    """Random images."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
