"""What auto runs exactly, and in which order, on made-up cells."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from quantopsy.analysis import auto
from quantopsy.analysis.assessment import Assessment, Expected
from quantopsy.analysis.prediction import ErrorModel, Outlook
from quantopsy.analysis.significance import Interval
from quantopsy.core import Plan
from quantopsy.study import RunResult

N = 200


def expected(lost: float, noise: float = 0.1) -> Expected:
    """A cell that is expected to lose so many images."""
    return Expected(
        noise=noise,
        noise_stderr=0.0,
        signal=100.0,
        linear=True,
        outlook=Outlook(np.full(N, 0.1), 80.0, lost, 0.0),
        loss_change=float("nan"),
    )


def state_of(cells: Mapping[int, Expected]) -> Assessment:
    """An assessment of cells of which none has been measured."""
    zeros = np.zeros(N)
    percents = {run: 100 * cell.outlook.lost / N for run, cell in cells.items()}
    predicted = {run: Interval(percent, percent / 2, 2 * percent) for run, percent in percents.items()}
    reference = RunResult(np.arange(N), zeros, zeros, zeros[:, None], 0.0)
    error = ErrorModel.fit(N, np.empty(0), np.empty(0))
    return Assessment(reference, {}, cells, predicted, {}, {}, 2.0, error, level=0.95, tolerance=1.0)


def cells_of(bits: Mapping[int, tuple[int, ...]]) -> auto.Cells:
    """Runs by the bit-widths that they stand for."""
    whole = {width: 1000 + width for width in sorted({each for widths in bits.values() for each in widths})}
    return auto.Cells({run: Plan() for run in bits}, bits, [[run] for run in bits], whole, {})


def test_the_worst_of_every_bit_width_and_a_random_few_are_run_in_any_case() -> None:
    bits = {run: (4 if run < 20 else 8,) for run in range(1, 40)}
    found = auto._first(state_of({run: expected(float(run % 20)) for run in bits}), cells_of(bits), 0)
    assert found.worst == {4: 19, 8: 39}
    assert not found.unseen
    assert len(found.checks) == auto.CHECKS
    assert not set(found.checks) & set(found.worst.values())
    again = auto._first(state_of({run: expected(float(run % 20)) for run in bits}), cells_of(bits), 0)
    other = auto._first(state_of({run: expected(float(run % 20)) for run in bits}), cells_of(bits), 1)
    assert found == again
    assert found.checks != other.checks


def test_what_the_screen_could_not_see_is_run_in_any_case() -> None:
    bits = dict.fromkeys(range(1, 6), (4,))
    cells = {1: expected(3.0), 2: expected(0.0, noise=0.0), 3: expected(5.0, noise=float("nan")), 4: expected(1.0)}
    found = auto._first(state_of(cells), cells_of(bits), 0)
    assert sorted(found.unseen) == [2, 3, 5]
    assert found.worst == {4: 1}


def test_a_layer_of_all_bit_widths_may_be_the_worst_of_each() -> None:
    bits = {1: (4, 8), 2: (4,), 3: (8,)}
    found = auto._first(state_of({1: expected(9.0), 2: expected(1.0), 3: expected(1.0)}), cells_of(bits), 0)
    assert found.worst == {4: 1, 8: 1}


def test_fewer_cells_than_checks_are_all_checked() -> None:
    bits = dict.fromkeys((1, 2, 3), (4,))
    found = auto._first(state_of({run: expected(float(run)) for run in bits}), cells_of(bits), 0)
    assert sorted(found.checks) == [1, 2]


def test_cells_nearest_to_a_verdicts_border_come_first() -> None:
    cells = {1: expected(100.0), 2: expected(4.0), 3: expected(0.01), 4: expected(20.0)}
    state = state_of(cells)  # two points are four images
    assert sorted(cells, key=lambda run: auto._from_border(state, run)) == [2, 4, 1, 3]


def test_without_a_metric_to_go_by_the_noisiest_come_first() -> None:
    cells = {1: expected(float("nan"), 0.2), 2: expected(float("nan"), 3.0)}
    state = state_of(cells)
    assert sorted([1, 2, 7], key=lambda run: auto._from_border(state, run)) == [7, 2, 1]


@pytest.mark.parametrize(("left", "kept"), [(0.5, []), (1.55, [1]), (2.0, [1, 2]), (100.0, [1, 2, 3])])
def test_no_more_is_begun_than_the_budget_allows(left, kept) -> None:
    assert auto._affordable([1, 2, 3], {1: 0.5, 2: 0.25, 3: 0.5}, left, 1.0) == kept


def test_fewer_images_of_a_cell_cost_less() -> None:
    shares = {1: 1.0, 2: 1.0, 3: 1.0}
    assert auto._affordable([1, 2, 3], shares, 0.95, 0.3) == [1, 2]
