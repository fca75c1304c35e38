"""What flows along an ONNX graph: tensors, constants of the file, and sizes.

Sizes are what is computed from shapes: arrays of Python numbers, symbolic ones while a network is captured, so that
the number of images stays free through Shape, Gather, Concat and Reshape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantopsy.graph.onnx.graph import UnsupportedError


@dataclass(frozen=True)
class Constant:
    """A tensor of the file: ``array`` to look into, ``tensor`` to compute with."""

    array: np.ndarray
    tensor: Tensor


Sizes = np.ndarray
"""Of dtype object."""

Value = Tensor | Constant | Sizes


def sizes(values: Any) -> Sizes:
    """Numbers, or a (nested) sequence of numbers, as sizes."""
    if isinstance(values, np.ndarray):
        return values.astype(object)
    found = np.empty(len(values) if isinstance(values, list | tuple) else (), object)
    found[...] = values
    return found


def tensor(value: Value) -> Tensor:
    """``value`` to compute with."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Constant):
        return value.tensor
    return torch.tensor(_plain(value, "numbers").tolist())


def operand(value: Value, rank: int) -> Tensor | Any:
    """``value`` as the other operand of a tensor of ``rank`` dimensions: a number where it is one."""
    array = value.array if isinstance(value, Constant) else value
    if isinstance(array, np.ndarray) and array.size == 1 and array.ndim <= rank:
        return array.reshape(-1)[0] if array.dtype == object else array.item()
    return tensor(value)


def integers(value: Value | None, what: str) -> list[Any]:
    """``value`` as a list of integers (symbolic ones included); raises where it is computed from the image."""
    return [] if value is None else _known(value, what).reshape(-1).tolist()


def number(value: Value | None, what: str) -> Any:
    """The one number that ``value`` is; None where it is left out. Raises where it is computed from the image."""
    if value is None:
        return None
    array = _known(value, what)
    if array.size != 1:
        raise UnsupportedError(f"{what} of {array.size} numbers")
    return array.reshape(-1)[0] if array.dtype == object else array.item()


def plain_numbers(value: Value, what: str) -> np.ndarray:
    """``value`` as numbers that do not depend on how many images there are."""
    return _plain(_known(value, what), what)


def _known(value: Value, what: str) -> np.ndarray:
    if isinstance(value, Tensor):
        raise UnsupportedError(f"{what} that are computed from the image")
    return value.array if isinstance(value, Constant) else value


def _plain(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype != object:
        return array
    if any(isinstance(item, torch.SymInt | torch.SymFloat) for item in array.reshape(-1)):
        raise UnsupportedError(f"{what} that depend on the number of images")
    return np.array(array.tolist())


def static(dims: Iterable[Any], what: str) -> list[int]:
    """``dims`` as integers; raises where the number of images is among them."""
    found = list(dims)
    if any(not isinstance(dim, int) for dim in found):
        raise UnsupportedError(f"{what} that depend on the number of images")
    return found
