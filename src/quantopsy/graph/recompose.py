"""Activation functions that an export wrote out in smaller operators, put together again.

Each rule looks at one node and returns what to write instead of it, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx

from quantopsy.graph.operators import aten


class Rewrite(NamedTuple):
    """``target(*args)`` in the place of the node."""

    target: Any
    args: tuple[Any, ...]


def recompose(graph: fx.Graph) -> None:
    """Apply the rules until none does; operators that nobody reads any more are removed."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            for rule in RULES:
                rewrite = rule(node)
                if rewrite is None:
                    continue
                with graph.inserting_before(node):
                    new = graph.call_function(rewrite.target, rewrite.args)
                new.meta = dict(node.meta)
                node.replace_all_uses_with(new)
                graph.erase_node(node)
                changed = True
                break
        graph.eliminate_dead_code()


def _is(node: Any, *targets: Any) -> bool:
    """Whether ``node`` is one of ``targets`` as it is usual: ``alpha`` of an addition makes another function of it."""
    return isinstance(node, fx.Node) and node.target in targets and not node.kwargs


def _close(value: Any, expected: float) -> bool:
    return isinstance(value, int | float) and abs(value - expected) < 1e-6


def _operands(node: fx.Node) -> list[tuple[Any, Any]]:
    """Both orders of a commutative operator's operands."""
    left, right = node.args[:2]
    return [(left, right), (right, left)]


def _clamp_0_6_of_plus_3(node: Any) -> fx.Node | None:
    """x where ``node`` is min(max(x + 3, 0), 6)."""
    if _is(node, aten.hardtanh.default, aten.clamp.default):
        inner, bounds = node.args[0], node.args[1:3]
        if len(bounds) != 2 or not (_close(bounds[0], 0) and _close(bounds[1], 6)):
            return None
    elif _is(node, aten.relu6.default):
        inner = node.args[0]
    else:
        return None
    if _is(inner, aten.add.Tensor, aten.add.Scalar):
        for x, constant in _operands(inner):
            if isinstance(x, fx.Node) and _close(constant, 3):
                return x
    return None


def _sixth(node: Any) -> Any:
    """x where ``node`` is x / 6 or x * (1 / 6)."""
    if _is(node, aten.div.Tensor, aten.div.Scalar) and _close(node.args[1], 6):
        return node.args[0]
    if _is(node, aten.mul.Tensor, aten.mul.Scalar):
        for x, constant in _operands(node):
            if _close(constant, 1 / 6):
                return x
    return None


def _silu(node: fx.Node) -> Rewrite | None:
    """x * sigmoid(x)."""
    if _is(node, aten.mul.Tensor):
        for x, gate in _operands(node):
            if _is(gate, aten.sigmoid.default) and gate.args[0] is x:
                return Rewrite(aten.silu.default, (x,))
    return None


def _hardsigmoid(node: fx.Node) -> Rewrite | None:
    """relu6(x + 3) / 6."""
    x = _clamp_0_6_of_plus_3(_sixth(node))
    return None if x is None else Rewrite(aten.hardsigmoid.default, (x,))


def _hardswish(node: fx.Node) -> Rewrite | None:
    """x * hardsigmoid(x), or x * relu6(x + 3) / 6."""
    if _is(node, aten.mul.Tensor):
        for x, gate in _operands(node):
            if _is(gate, aten.hardsigmoid.default) and gate.args[0] is x:
                return Rewrite(aten.hardswish.default, (x,))
    product = _sixth(node)
    if _is(product, aten.mul.Tensor):
        for x, gate in _operands(product):
            if isinstance(x, fx.Node) and _clamp_0_6_of_plus_3(gate) is x:
                return Rewrite(aten.hardswish.default, (x,))
    return None


def _mish(node: fx.Node) -> Rewrite | None:
    """x * tanh(softplus(x))."""
    if _is(node, aten.mul.Tensor):
        for x, gate in _operands(node):
            if _is(gate, aten.tanh.default) and _is(gate.args[0], aten.softplus.default) and gate.args[0].args == (x,):
                return Rewrite(aten.mish.default, (x,))
    return None


def _factors(node: Any, depth: int = 2) -> list[Any]:
    """What a product of products multiplies."""
    if depth and _is(node, aten.mul.Tensor, aten.mul.Scalar):
        return [factor for operand in node.args[:2] for factor in _factors(operand, depth - 1)]
    return [node]


def _gelu(node: fx.Node) -> Rewrite | None:
    """x * (1 + erf(x / sqrt(2))) / 2, the factors in any order."""
    factors = _factors(node)
    if len(factors) != 3:
        return None
    for gate in factors:
        x = _erf_of_halved(gate)
        rest = [factor for factor in factors if factor is not gate]
        if x is not None and x in rest and any(_close(factor, 0.5) for factor in rest):
            return Rewrite(aten.gelu.default, (x,))
    return None


def _erf_of_halved(node: Any) -> fx.Node | None:
    """x where ``node`` is 1 + erf(x / sqrt(2))."""
    if not _is(node, aten.add.Tensor, aten.add.Scalar):
        return None
    for erf, one in _operands(node):
        if not (_is(erf, aten.erf.default) and _close(one, 1)):
            continue
        inner = erf.args[0]
        if _is(inner, aten.div.Tensor, aten.div.Scalar) and _close(inner.args[1], 2**0.5):
            return inner.args[0]
        if _is(inner, aten.mul.Tensor, aten.mul.Scalar):
            for x, factor in _operands(inner):
                if _close(factor, 0.5**0.5):
                    return x
    return None


RULES: tuple[Callable[[fx.Node], Rewrite | None], ...] = (_silu, _hardsigmoid, _hardswish, _mish, _gelu)
