"""Qparams held by a module: their tensors move with it and are saved with it."""

from __future__ import annotations

from dataclasses import fields, replace

from torch import Tensor, nn

from quantopsy.quant import QParams


class GridState(nn.Module):
    """A place for qparams whose tensors are buffers."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self._layout = qparams
        for name, value in _tensors(qparams).items():
            self.register_buffer(name, value.detach().clone())

    @property
    def value(self) -> QParams:
        """The qparams with the buffers as they are now."""
        buffers = dict(self.named_buffers())
        return replace(self._layout, **buffers)

    @value.setter
    def value(self, qparams: QParams) -> None:
        for name, value in _tensors(qparams).items():
            getattr(self, name).copy_(value)


def _tensors(qparams: QParams) -> dict[str, Tensor]:
    values = {field.name: getattr(qparams, field.name) for field in fields(qparams)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
