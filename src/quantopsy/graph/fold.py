"""Batch norms folded into the layer before them.

With y = gamma (x - mu) / sqrt(var + eps) + beta behind a layer with weight w and bias b:
w_fold = gamma w / sqrt(var + eps),  b_fold = beta + (b - mu) gamma / sqrt(var + eps)
(Practical approach, equations 5 to 7, with the misprint corrected.)
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor, fx

from quantopsy.graph.operators import CONVOLUTIONS, LINEARS, TRANSPOSED, aten

_WEIGHT = "folded_weight"


def took_batch_norm(weight: str | None) -> bool:
    """Whether the layer whose weight is the tensor called ``weight`` has a batch norm folded into it."""
    return weight is not None and weight.endswith(_WEIGHT)


def fold_batch_norms(graph: fx.Graph, tensors: MutableMapping[str, Tensor]) -> None:
    """Fold every batch norm of ``graph`` in place; one with nothing to fold into becomes affine.

    The affine form is a batch norm of mean 0 and variance 1, so that its weight and bias are the
    per-channel scale and shift.
    """
    for node in list(graph.nodes):
        if node.target is not aten.batch_norm.default:
            continue
        scale, shift = _affine(node, tensors)
        before = node.args[0]
        assert isinstance(before, fx.Node)
        if _can_take(before, node, tensors):
            _scale_layer(graph, before, tensors, scale, shift, prefix=node.name)
            node.replace_all_uses_with(before)
            graph.erase_node(node)
        else:
            _make_affine(graph, node, tensors, scale, shift)


def _tensor(argument: object, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return tensors[str(argument.target)] if isinstance(argument, fx.Node) else None


def _affine(node: fx.Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale and shift in float64: rounding once, at the end, keeps folded equal to float."""
    gamma, beta, mean, variance = (_tensor(argument, tensors) for argument in node.args[1:5])
    assert mean is not None
    assert variance is not None
    eps = float(node.args[7])  # type: ignore[arg-type]
    scale = torch.rsqrt(variance.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    return scale, shift


def _can_take(layer: fx.Node, norm: fx.Node, tensors: Mapping[str, Tensor]) -> bool:
    if layer.target not in CONVOLUTIONS and layer.target not in TRANSPOSED and layer.target not in LINEARS:
        return False
    if len(layer.users) > 1 or _tensor_name(layer, 1) not in tensors:
        return False
    if len(layer.args) > 2 and layer.args[2] is not None and _tensor_name(layer, 2) not in tensors:
        return False
    # A linear layer over more than two dimensions keeps its channels last, a batch norm second.
    return layer.target not in LINEARS or len(norm.meta["val"].shape) == 2


def _tensor_name(node: fx.Node, position: int) -> str:
    argument = node.args[position]
    return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else ""


def _scale_layer(
    graph: fx.Graph,
    layer: fx.Node,
    tensors: MutableMapping[str, Tensor],
    scale: Tensor,
    shift: Tensor,
    prefix: str,
) -> None:
    weight_name = _tensor_name(layer, 1)
    weight = tensors[weight_name].double()
    if layer.target in TRANSPOSED:  # (C_in, C_out / groups, ...): a group's inputs meet its own outputs
        groups = int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]
        by_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        factor = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        folded = (by_group * factor).reshape(weight.shape)
    else:
        folded = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    old_bias = _tensor(layer.args[2], tensors) if len(layer.args) > 2 else None
    bias = shift if old_bias is None else shift + old_bias.double() * scale
    dtype = tensors[weight_name].dtype
    # New names: another layer may share the weight that is folded here.
    path = weight_name.rpartition(".")[0] or prefix
    arguments = list(layer.args) + [None] * (3 - len(layer.args))
    for position, kind, value in ((1, _WEIGHT, folded), (2, "folded_bias", bias)):
        name = f"{path}.{prefix}_{kind}"
        tensors[name] = value.to(dtype)
        with graph.inserting_before(layer):
            arguments[position] = graph.get_attr(name)
    layer.args = tuple(arguments)


def _make_affine(
    graph: fx.Graph, node: fx.Node, tensors: MutableMapping[str, Tensor], scale: Tensor, shift: Tensor
) -> None:
    dtype = next(t.dtype for a in node.args[1:5] if (t := _tensor(a, tensors)) is not None)
    values = {"scale": scale, "shift": shift, "mean": torch.zeros_like(scale), "variance": torch.ones_like(scale)}
    attributes = []
    for kind, value in values.items():
        name = f"{node.name}.{kind}"
        tensors[name] = value.to(dtype)
        with graph.inserting_before(node):
            attributes.append(graph.get_attr(name))
    node.args = (node.args[0], *attributes, False, 0.0, 0.0, False)
