"""Tensors worth keeping, within a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

WEIGHT_CACHE_BYTES = 2**30

Key = TypeVar("Key", bound=Hashable)


class TensorCache(Generic[Key]):
    """Tensors by key, as long as all of them take at most ``limit`` bytes.

    None is ever given up for another: tiles ask for the same ones in the same order again and again,
    so that of too many the newest would always be the one that is missed. They are made outside inference mode: who
    asks next may want gradients of what is computed from them.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._kept: dict[Key, Tensor] = {}

    def get(self, key: Key, make: Callable[[], Tensor]) -> Tensor:
        """The tensor that was kept for ``key``, else what ``make`` gives, kept where there is room."""
        if key in self._kept:
            return self._kept[key]
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        if made.nbytes <= self._left:
            self._kept[key] = made
            self._left -= made.nbytes
        return made
