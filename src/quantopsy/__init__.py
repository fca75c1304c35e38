"""Quantopsy: which layers lose the accuracy of a quantized network, why, and the cheapest repair.

    import quantopsy as qp

    study = qp.analyze(model, data, metric="top1", bits=(4, 8))
    study.frame()

Names are imported when they are first used: importing the package itself costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quantopsy.core import Plan, QuantopsyError, Site, Spec

if TYPE_CHECKING:
    from quantopsy.api import (
        Study,
        additivity,
        allocate,
        analyze,
        apply,
        check,
        check_calibration,
        compare,
        diagnose,
        export_onnx,
        export_program,
        gate,
        open_study,
        parity,
        repair,
        schemes,
        train,
    )
    from quantopsy.core.recipe import Recipe
    from quantopsy.graph.capture import capture

_LAZY = {
    "Study": "quantopsy.api",
    "additivity": "quantopsy.api",
    "allocate": "quantopsy.api",
    "analyze": "quantopsy.api",
    "apply": "quantopsy.api",
    "repair": "quantopsy.api",
    "Recipe": "quantopsy.core.recipe",
    "check": "quantopsy.api",
    "check_calibration": "quantopsy.api",
    "compare": "quantopsy.api",
    "diagnose": "quantopsy.api",
    "export_onnx": "quantopsy.api",
    "export_program": "quantopsy.api",
    "gate": "quantopsy.api",
    "open_study": "quantopsy.api",
    "parity": "quantopsy.api",
    "schemes": "quantopsy.api",
    "capture": "quantopsy.graph.capture",
    "train": "quantopsy.api",
}

__all__ = [
    "Plan",
    "QuantopsyError",
    "Recipe",
    "Site",
    "Spec",
    "Study",
    "additivity",
    "allocate",
    "analyze",
    "apply",
    "capture",
    "check",
    "check_calibration",
    "compare",
    "diagnose",
    "export_onnx",
    "export_program",
    "gate",
    "open_study",
    "parity",
    "repair",
    "schemes",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'quantopsy' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
