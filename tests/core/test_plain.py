"""Anything as JSON: strict parsers read it back."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from quantopsy.core.plain import plain


@dataclass(frozen=True)
class Part:
    """Something with fields."""

    value: float
    inner: object = None


def test_whatever_documents_hold_becomes_strict_json() -> None:
    inf, nan = float("inf"), float("nan")
    table = pd.DataFrame({"name": ["a", None], "low": [-inf, 1.5], "flag": [True, False], "count": [1, 2]})
    given = {
        "part": Part(inf, Part(2.0, (1, [nan, "x"]))),
        4: np.float32(0.5),
        "numbers": [np.int64(3), torch.tensor(2.0), np.bool_(True), pd.NA, None],
        "table": table,
    }
    assert json.loads(json.dumps(plain(given), allow_nan=False)) == {
        "part": {"value": None, "inner": {"value": 2.0, "inner": [1, [None, "x"]]}},
        "4": 0.5,
        "numbers": [3, 2.0, True, None, None],
        "table": [
            {"name": "a", "low": None, "flag": True, "count": 1},
            {"name": None, "low": 1.5, "flag": False, "count": 2},
        ],
    }
