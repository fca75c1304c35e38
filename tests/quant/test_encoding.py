"""Qparams survive JSON to the last bit."""

from __future__ import annotations

import json

import pytest
import torch

from quantopsy.calibrate import fit
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import fake_quantize
from quantopsy.quant.encoding import qparams_from_json, qparams_to_json


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group:4"])
@pytest.mark.parametrize("kind", ["uniform", "piecewise", "power_of_two", "additive_power_of_two", "k_means"])
def test_a_grid_reads_back_to_the_identical_one(kind: str, granularity: str) -> None:
    x = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    grid = fit(Spec(kind=kind, bits=4, granularity=granularity), x)
    again = qparams_from_json(json.loads(json.dumps(qparams_to_json(grid))))
    assert type(again) is type(grid)
    assert torch.equal(fake_quantize(x, again), fake_quantize(x, grid))


@pytest.mark.parametrize(
    "data", [{"grid": "cubic"}, {"grid": "uniform"}, {"grid": "uniform", "scale": "x", "zero_point": 0}]
)
def test_what_is_no_grid_is_refused(data) -> None:
    with pytest.raises(QuantopsyError):
        qparams_from_json(data)
