"""The JSON document: everything in it is a JSON value, and it says what was run and what was not."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from quantopsy.analysis.document import document
from quantopsy.analysis.results import CELL_COLUMNS, WHOLE_COLUMNS, Check, Results


@pytest.fixture
def results() -> Results:
    """One layer, run at 8 bits and screened at 4."""
    layer = {"layer": 0, "name": "stem", "op": "conv2d", "weight_shape": (8, 3, 3, 3)}
    cell = {"layer": 0, "name": "stem", "op": "conv2d", "degradation": 0.5, "samples": 64, "loss_change": np.nan}
    return Results(
        model="net",
        data="images",
        metric="top1",
        unit="points",
        float_value=90.0,
        float_low=85.0,
        float_high=95.0,
        samples=64,
        bits=(4, 8),
        layers=pd.DataFrame([layer]),
        cells=pd.DataFrame(
            [
                {**cell, "bits": 4, "noise": 2.0, "method": "screened", "verdict": "hurts", "linear": np.bool_(False)},
                {**cell, "bits": 8, "noise": 0.1, "method": "exact", "verdict": "harmless", "linear": np.bool_(True)},
            ],
            columns=list(CELL_COLUMNS),
        ),
        whole=pd.DataFrame(columns=list(WHOLE_COLUMNS)),
        settings={"mode": "auto"},
        level=0.9,
        tolerance=1.5,
        open_cells=3,
    )


def test_it_says_how_the_analysis_was_made(results):
    made = document(results)
    assert (made["mode"], made["level"], made["tolerance"], made["open_cells"]) == ("auto", 0.9, 1.5, 3)
    assert made["check"] is None


def test_every_worst_cell_says_whether_it_was_run_and_what_holds(results):
    worst = document(results)["worst"]
    assert (worst["4"][0]["method"], worst["4"][0]["verdict"]) == ("screened", "hurts")
    assert (worst["8"][0]["method"], worst["8"][0]["verdict"]) == ("exact", "harmless")
    assert worst["4"][0]["loss_change"] is None


def test_what_the_check_does_not_know_is_null(results):
    nan = float("nan")
    checked = replace(results, check=Check(2, 0, (0.9, 1.0, nan), nan, 0.6, nan, 0.5))
    made = json.loads(json.dumps(document(checked), allow_nan=False))
    assert made["check"]["noise_ratio"] == [0.9, 1.0, None]
    assert made["check"]["noise_rank"] is None
    assert made["check"]["cells"] == 2
