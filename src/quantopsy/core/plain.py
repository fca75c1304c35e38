"""Values as JSON has them: what ``--json`` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pandas as pd


def plain(value: Any) -> Any:
    """``value`` with objects, arrays and numbers of JSON only.

    Dataclasses and mappings become objects, tables a row per object, sequences arrays, scalars of numpy and torch
    Python's; what is missing, and a number that is not finite, becomes null.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, pd.DataFrame):
        return [plain(row) for row in value.to_dict("records")]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is pd.NA:
        return None
    value = value.item() if hasattr(value, "dtype") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
