"""What auto runs exactly, and in which order, on made-up cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from quantopsy.analysis import auto
from quantopsy.analysis.assessment import Assessment, Expected
from quantopsy.analysis.prediction import ErrorModel, Outlook
from quantopsy.analysis.significance import Interval, draw
from quantopsy.core import Plan, Site, Spec
from quantopsy.study import Draw, RunResult, TileResult, create

N = 200


def expected(lost: float, noise: float = 0.1) -> Expected:
    """A cell that is expected to lose so many images."""
    return Expected(
        noise=noise,
        noise_stderr=0.0,
        signal=100.0,
        linear=True,
        outlook=Outlook(np.full(N, 0.1), 80.0, np.full(N, lost / N), np.zeros(N)),
        loss_change=float("nan"),
    )


def state_of(cells: Mapping[int, Expected]) -> Assessment:
    """An assessment of cells of which none has been measured."""
    zeros = np.zeros(N)
    percents = {run: 100 * cell.outlook.lost / N for run, cell in cells.items()}
    predicted = {run: Interval(percent, percent / 2, 2 * percent) for run, percent in percents.items()}
    reference = RunResult(np.arange(N), zeros, zeros, zeros[:, None], 0.0)
    error = ErrorModel.fit(N, *np.empty((3, 0)))
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


@pytest.mark.parametrize("images", [40, 137, N])
def test_every_look_at_a_cell_is_wider_than_the_one_before_and_holds_it(tmp_path, images) -> None:
    rng = np.random.default_rng(images)
    state = state_of({1: expected(5.0), 2: expected(9.0)})
    zeros = np.zeros(images)
    state = replace(state, reference=RunResult(np.arange(images), zeros, zeros, zeros[:, None], 0.0))
    with create(tmp_path / "study", {}) as store:
        drawn = [np.array([], dtype=int)]
        for share in auto._LOOKS:
            outlooks = {run: Outlook(rng.random(images) ** 4, 80.0, zeros, zeros) for run in (1, 2)}
            cells = {run: replace(state.expected[run], outlook=found) for run, found in outlooks.items()}
            assert auto._looked(store, 1, images) < share
            auto._draw_together(replace(state, expected=cells), [1, 2], store, share, 0)
            assert auto._looked(store, 1, images) >= share
            designs = [store.draw(run) for run in (1, 2)]
            np.testing.assert_array_equal(designs[0].probabilities, designs[1].probabilities)
            drawn.append(draw(designs[0].probabilities, designs[0].seed))
            assert np.isin(drawn[-2], drawn[-1]).all()
        assert len(drawn[-1]) < images


def test_what_was_measured_on_plain_images_or_drawn_from_others_is_looked_at_anew(tmp_path) -> None:
    state = state_of({1: expected(5.0)})
    with create(tmp_path / "study", {}) as store:
        assert auto._looked(store, 1, N) == 0.0
        store.set_draw(1, Draw(np.arange(N // 2), np.full(N // 2, 0.2)))
        assert auto._looked(store, 1, N) == 0.0
        auto._draw_together(state, [1], store, 0.2, 0)
        assert len(store.draw(1).images) == N
        run = [store.run(Plan.of({Site(layer, "weight"): Spec()})) for layer in "ab"][1]
        store.append([TileResult(run, np.arange(32), np.ones(32), np.ones(32), np.ones((32, 1)), 0.1)])
        assert auto._looked(store, run, N) == 1.0
