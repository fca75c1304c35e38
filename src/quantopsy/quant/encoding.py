"""Qparams as plain JSON values and back, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, names
from quantopsy.core.spec import MAX_BITS
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
    if not isinstance(data.get("grid"), str) or data["grid"] not in _GRIDS:
        raise names.unknown(str(data.get("grid")), list(_GRIDS), "grid")
    kind = _GRIDS[data["grid"]]
    try:
        values: dict[str, Any] = {
            field.name: _tensor(field.name, data[field.name]) if "Tensor" in str(field.type) else data[field.name]
            for field in fields(kind)
            if field.name in data
        }
        qparams = kind(**values)
        reason = _broken(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error)
    if reason is not None:
        raise QuantopsyError(f"encoding of a {data['grid']} grid", f"it does not read ({reason})", "write it again")
    return qparams


def _broken(values: Mapping[str, Any]) -> str | None:
    """What no grid has: other types, steps that are not positive, a zero point that is no code."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            if not bool(value.isfinite().all()) or ("scale" in name and not bool((value > 0).all())):
                return f"{name} is not positive and finite" if "scale" in name else f"{name} is not finite"
        elif type(value) is not (bool if name == "signed" else int):
            return f"{name} is {value!r}"
    if len({value.shape for name, value in values.items() if isinstance(value, Tensor) and name != "levels"}) > 1:
        return "its tensors differ in shape"
    if not 1 <= values.get("bits", 1) <= MAX_BITS:
        return f"{values['bits']} bits"
    if "zero_point" in values:
        low, high, zero_point = values["qmin"], values["qmax"], values["zero_point"]
        if not (-(2**MAX_BITS) < low < high < 2**MAX_BITS and bool(((low <= zero_point) & (zero_point <= high)).all())):
            return f"codes from {low} to {high} with another zero point" if low < high else "no codes"
    return None


def _tensor(name: str, value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.int32 if name in _INTEGERS else torch.float32)
