"""The JSON document: everything in it is a JSON value, and it says what was run and what was not."""

import json
from dataclasses import replace

import pytest
from made_up import make_results, set_cell

from quantopsy.analysis.document import document
from quantopsy.analysis.results import Check, Results


@pytest.fixture
def results() -> Results:
    """Run at 8 bits and screened at 4; layer 5 is the worst at both and hurts at 4."""
    made = set_cell(make_results(bits=(4, 8)), 5, 8, verdict="harmless")
    screened = made.cells["bits"] == 4
    cells = made.cells.assign(method=made.cells["method"].mask(screened, "screened"), linear=~screened)
    return replace(made, cells=cells, settings={"mode": "auto"}, level=0.9, tolerance=1.5, open_cells=3)


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


def test_an_interval_without_ends_is_null(results):
    infinite = replace(results, float_low=-float("inf"), float_high=float("inf"))
    assert json.loads(json.dumps(document(infinite), allow_nan=False))["float_interval"] == [None, None]
