"""Qparams held by a module: their tensors move with it and are saved with it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from quantopsy.quant import QParams

Grid = TypeVar("Grid", bound=QParams)


class GridState(nn.Module, Generic[Grid]):
    """A place for qparams whose tensors are buffers."""

    def __init__(self, qparams: Grid) -> None:
        super().__init__()
        self._layout = qparams
        for name, value in _tensors(qparams).items():
            self.register_buffer(name, value.detach().clone())

    @property
    def value(self) -> Grid:
        """The qparams with the buffers as they are now."""
        buffers: dict[str, Any] = dict(self.named_buffers())
        return replace(self._layout, **buffers)

    @value.setter
    def value(self, qparams: Grid) -> None:
        for name, value in _tensors(qparams).items():
            getattr(self, name).copy_(value)


def _tensors(qparams: QParams) -> dict[str, Tensor]:
    values = {field.name: getattr(qparams, field.name) for field in fields(qparams)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
