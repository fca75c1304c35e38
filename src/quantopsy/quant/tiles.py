"""Elementwise kernels run tile by tile, so that their passes meet in the cache.

A chain of in-place operations reads and writes the tensor once per operation. Over tiles of 8 MiB the
passes after the first find their data in the last-level cache. Smaller tiles would be a little faster on an
idle machine, but every operation on one is a barrier between threads, which costs milliseconds where other
processes want the cores too: 200 of them took 20 times as long.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 1 << 21


def tiled(kernel: Callable[..., object], x: Tensor, *parameters: Tensor) -> Tensor:
    """``kernel(out, x, *parameters)`` applied to tiles; returns ``out``, with the strides of ``x``.

    ``kernel`` writes to its first argument. ``parameters`` broadcast to ``x``.
    """
    out = torch.empty_like(x)
    if x.numel() <= TILE or x.device.type != "cpu":
        kernel(out, x, *parameters)
        return out
    # So a tile is one block and the innermost loop is long.
    order = memory_order(x)
    source, target = x.permute(order), out.permute(order)
    if all(parameter.numel() == 1 for parameter in parameters):
        if source.is_contiguous() and target.is_contiguous():
            source, target = source.view(-1), target.view(-1)
        laid = [parameter.reshape(()) for parameter in parameters]
    else:
        laid = [
            parameter.reshape((1,) * (x.ndim - parameter.ndim) + parameter.shape).permute(order)
            for parameter in parameters
        ]
    rows = max(1, TILE * source.shape[0] // source.numel())
    for start in range(0, source.shape[0], rows):
        stop = start + rows
        cut = [p[start:stop] if p.ndim and p.shape[0] > 1 else p for p in laid]
        kernel(target[start:stop], source[start:stop], *cut)
    return out


def in_memory_order(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, elementwise, on ``x`` laid out as it lies in memory: for functions that would copy
    anything but a contiguous tensor."""
    order = memory_order(x)
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    return function(x.permute(order)).permute(inverse)


def memory_order(x: Tensor) -> list[int]:
    """The dimensions of ``x`` as they lie in memory, outermost first: permuted so, a dense tensor is contiguous."""
    if x.is_contiguous():
        return list(range(x.ndim))
    return sorted(range(x.ndim), key=lambda dim: x.stride(dim) if x.shape[dim] > 1 else 0, reverse=True)
