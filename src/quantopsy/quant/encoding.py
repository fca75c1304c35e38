"""Qparams as plain JSON values and back, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, names
from quantopsy.quant.levels import LevelsQParams
from quantopsy.quant.piecewise import PiecewiseQParams
from quantopsy.quant.qparams import QParams
from quantopsy.quant.uniform import UniformQParams

_GRIDS: dict[str, type[QParams]] = {"uniform": UniformQParams, "piecewise": PiecewiseQParams, "levels": LevelsQParams}
_INTEGERS = frozenset({"zero_point"})  # tensors of int32; all others are float32


def qparams_to_json(qparams: QParams) -> dict[str, Any]:
    """``{"grid": "uniform", "scale": 0.1, "zero_point": 3, ...}``; tensors as numbers or nested lists."""
    grid = next(name for name, kind in _GRIDS.items() if isinstance(qparams, kind))
    values = {field.name: getattr(qparams, field.name) for field in fields(qparams)}
    plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
    return {"grid": grid, **{name: value for name, value in plain.items() if value is not None}}


def qparams_from_json(data: Mapping[str, Any]) -> QParams:
    """The inverse of :func:`qparams_to_json`; raises :class:`QuantopsyError` for what it did not write."""
    if data.get("grid") not in _GRIDS:
        raise names.unknown(str(data.get("grid")), list(_GRIDS), "grid")
    kind = _GRIDS[data["grid"]]
    try:
        values: dict[str, Any] = {
            field.name: _tensor(field.name, data[field.name]) if "Tensor" in str(field.type) else data[field.name]
            for field in fields(kind)
            if field.name in data
        }
        return kind(**values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise QuantopsyError(
            f"encoding of a {data['grid']} grid", f"it does not read ({error})", "write it again"
        ) from None


def _tensor(name: str, value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.int32 if name in _INTEGERS else torch.float32)
