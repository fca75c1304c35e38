"""Module paths of ONNX nodes: what the layers of a network from ONNX are called.

Torch's exporters leave the path of the module that made a node: the newer one in the node's metadata, the older one
in its name (``/layer1/layer1.0/conv1/Conv``); both in the names of weights (``layer1.0.conv1.weight``). Quantopsy's
export heads nodes with the layer's name. Elsewhere the node's own name is the layer's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quantopsy.graph.onnx.graph import Node, OnnxGraph

QUANTOPSY = "quantopsy"
_PARAMETER = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\.(weight|bias)")
_WEIGHTED = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
    "GroupNormalization", "PRelu",
}  # fmt: skip
# What a module of torch.nn can be.
_MODULES = _WEIGHTED | {
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Relu", "LeakyRelu", "Clip", "Sigmoid",
    "HardSigmoid", "HardSwish", "Tanh", "Elu", "Celu", "Selu", "Softplus", "Softsign", "Mish", "Gelu", "Softmax",
    "LogSoftmax", "LRN", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """``path``: of the module that a node belongs to; ``leaf``: whether the node is that module, and not within it."""

    path: str
    leaf: bool


def origins(graph: OnnxGraph, names: Mapping[str, str]) -> list[Origin]:
    """Where every node of ``graph`` comes from; ``names`` are those of weights, by value, before they were folded."""
    paths = {_scoped(node.name) for node in graph.nodes}
    within = {path.rpartition(".")[0] for path in paths if path}
    while any(missing := {path.rpartition(".")[0] for path in within} - within):
        within |= missing
    return [_origin(node, graph.producer, names, within) for node in graph.nodes]


def _origin(node: Node, producer: str, names: Mapping[str, str], within: set[str]) -> Origin:
    scope, _, _ = node.name.rpartition("/")
    if producer == QUANTOPSY and scope:
        return Origin(scope, True)
    owner = _owner(node, names)
    if node.scopes:
        path = node.scopes[-2] if len(node.scopes) > 1 else ""
        kind = node.classes[-2] if len(node.classes) > 1 else ""
        module = kind.startswith("torch.nn.modules") and not kind.endswith(("Sequential", "ModuleList", "ModuleDict"))
        if owner and (not path or owner == path or ".batchnorm." in kind):  # a norm that was folded has left its scope
            return Origin(owner, True)
        return Origin(path, module)
    if node.name.startswith("/"):
        path = _scoped(node.name)
        if not path:
            return Origin(owner, bool(owner))
        return Origin(path, node.op_type in _MODULES and (node.op_type in _WEIGHTED or path not in within))
    if owner or node.name:
        return Origin(owner or node.name, True)
    return Origin("", False)


def _owner(node: Node, names: Mapping[str, str]) -> str:
    """The module whose weight or bias the node reads."""
    if node.op_type in _WEIGHTED:
        for value in node.inputs[1:3]:
            found = _PARAMETER.fullmatch(names.get(value, ""))
            if found:
                return found[1]
    return ""


def _scoped(name: str) -> str:
    """``layer1.0.conv1`` from ``/layer1/layer1.0/conv1/Conv``: a part repeats the last one's end where it goes on."""
    parts: list[str] = []
    for part in name.split("/")[1:-1] if name.startswith("/") else ():
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)
