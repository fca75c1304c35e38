"""What the screen's scores say of plans, on made-up scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantopsy.analysis.screening import (
    LINEAR_MOVED,
    LINEAR_SQNR_DB,
    Scores,
    columns_from_json,
    columns_json,
    is_linear,
)
from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.screen import Column
from quantopsy.study import ScreenTile

FOUR, EIGHT = Spec(bits=4), Spec(bits=8)
WEIGHT, LEAVING, ENTERING = Site("a", "weight"), Site("a", "output"), Site("b", "input")
COLUMNS = (
    Column(WEIGHT, FOUR, "a.weight"),
    Column(LEAVING, EIGHT, "y"),
    Column(ENTERING, EIGHT, "y"),
    Column(ENTERING, EIGHT, "x"),
    Column(ENTERING, FOUR, "y"),
)


def scores(images: int = 6, probes: int = 2, columns: tuple[Column, ...] = COLUMNS) -> Scores:
    """Random scores."""
    rng = np.random.default_rng(0)
    e = rng.normal(size=(len(columns), images, probes + 1)).astype(np.float32)
    numbers = np.arange(images)
    return Scores(columns, numbers, e[:, :, :probes], e[:, :, probes], rng.random((images, 1)), "margin")


def test_a_plans_e_is_the_sum_over_its_sites() -> None:
    found = scores()
    plan = Plan.of({WEIGHT: FOUR, ENTERING: EIGHT})
    np.testing.assert_allclose(found.e(plan), found.noise[[0, 2, 3]].sum(0), rtol=1e-6)
    np.testing.assert_allclose(found.change(plan), found.decision[[0, 2, 3]].sum(0), rtol=1e-6)
    np.testing.assert_allclose(found.per_image(plan), np.square(found.e(plan)).mean(1))


def test_a_value_that_left_its_producer_on_a_grid_enters_its_readers_on_it() -> None:
    found = scores()
    assert sorted(found.rows(Plan.of({LEAVING: EIGHT, ENTERING: EIGHT}))) == [1, 3]
    assert sorted(found.rows(Plan.of({LEAVING: EIGHT, ENTERING: FOUR}))) == [1, 4]


def test_what_leaves_a_layer_without_weights_is_rounded_after_its_inputs() -> None:
    inside, outside = Site("pool", "input"), Site("pool", "output")
    found = scores(
        columns=(*COLUMNS, Column(inside, EIGHT, "z"), Column(outside, FOUR, "p"), Column(outside, FOUR, "p", EIGHT))
    )
    assert found.rows(Plan.of({outside: FOUR})) == [6]
    assert sorted(found.rows(Plan.of({inside: EIGHT, outside: FOUR}))) == [5, 7]
    other = scores(columns=(Column(inside, FOUR, "z"), Column(outside, FOUR, "p"), Column(outside, FOUR, "p", EIGHT)))
    assert sorted(other.rows(Plan.of({inside: FOUR, outside: FOUR}))) == [0, 1]


def test_predicted_noise_has_the_standard_error_of_a_mean_over_images() -> None:
    found, plan = scores(), Plan.of({WEIGHT: FOUR})
    noise, stderr = found.predicted(plan)
    each = found.per_image(plan)
    assert (noise, stderr) == pytest.approx((each.mean(), each.std(ddof=1) / np.sqrt(6)))


def test_gram_holds_noises_on_its_diagonal_and_sums_to_the_noise_of_all() -> None:
    found = scores()
    plans = [Plan.of({WEIGHT: FOUR}), Plan.of({LEAVING: EIGHT}), Plan.of({ENTERING: FOUR})]
    gram = found.gram(plans)
    np.testing.assert_allclose(np.diag(gram), [found.predicted(plan)[0] for plan in plans])
    np.testing.assert_allclose(gram, gram.T)
    assert gram.sum() == pytest.approx(found.predicted(plans[0] | plans[1] | plans[2])[0])
    assert np.linalg.eigvalsh(gram).min() > -1e-9


def test_a_site_that_was_not_scored_is_told_before_it_is_asked_for() -> None:
    found = scores()
    assert found.covers(Plan.of({WEIGHT: FOUR, LEAVING: EIGHT}))
    assert found.covers(Plan())
    assert not found.covers(Plan.of({WEIGHT: EIGHT}))
    assert not found.covers(Plan.of({Site("c", "weight"): FOUR}))
    with pytest.raises(KeyError):
        found.e(Plan.of({WEIGHT: EIGHT}))


def test_tiles_come_together_in_the_order_of_images() -> None:
    e = np.arange(2 * 5 * 2, dtype=np.float32).reshape(2, 5, 2)
    margins = np.arange(5.0)[:, None]
    with_decision = ScreenTile(np.array([4, 1]), margins[[4, 1]], e[:, [4, 1]], "margin")
    without = ScreenTile(np.array([3, 0, 2]), np.empty((3, 0)), e[:, [3, 0, 2], :1], "none")
    found = Scores.of_tiles(COLUMNS[:2], [without, with_decision], 1, {"c": "round"}, (0.25, 0.0))
    assert found.images.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found.noise[:, :, 0], e[:, :, 0])
    assert np.isnan(found.decision[:, [0, 2, 3]]).all()
    np.testing.assert_array_equal(found.decision[:, [1, 4]], e[:, [1, 4], 1])
    assert np.isnan(found.margins[[0, 2, 3], 0]).all()
    assert found.margins[[1, 4], 0].tolist() == [1.0, 4.0]
    assert found.kind == "margin"
    assert found.hidden == {"c": "round"}
    assert found.moved == (0.25, 0.0)


def test_a_part_of_the_images_has_their_scores() -> None:
    found = scores()
    part = found.on(np.array([1, 4, 9]))
    assert part.images.tolist() == [1, 4]
    np.testing.assert_array_equal(part.noise, found.noise[:, [1, 4]])
    np.testing.assert_array_equal(part.margins, found.margins[[1, 4]])


def test_noise_near_the_signal_or_of_nothing_is_no_matter_of_first_order() -> None:
    border = 10 ** (-LINEAR_SQNR_DB / 10)
    assert is_linear(0.99 * border, 1.0, 0.0)
    assert not is_linear(1.01 * border, 1.0, 0.0)
    assert not is_linear(0.0, 1.0, 0.0)
    assert not is_linear(float("nan"), 1.0, 0.0)


def test_a_weight_that_is_moved_far_is_no_matter_of_first_order_whatever_its_noise() -> None:
    weight, entering = Plan.of({WEIGHT: FOUR}), Plan.of({ENTERING: EIGHT})
    near, far = (replace(scores(), moved=(share * LINEAR_MOVED, 0.0, 0.0, 0.0, 0.0)) for share in (0.99, 1.01))

    def believed(found: Scores, plan: Plan) -> bool:
        return is_linear(1.0, 1e6, found.most_moved(plan))

    assert believed(near, weight)
    assert not believed(far, weight)
    assert believed(far, entering)
    assert not believed(far.on(np.arange(3)), weight)


def test_columns_are_the_same_after_json() -> None:
    kinds = (*COLUMNS, Column(WEIGHT, Spec(kind="piecewise", bits=4, options=(("breakpoint", 0.5),)), "a.weight"))
    kinds += (Column(LEAVING, FOUR, "y", EIGHT),)
    assert columns_from_json(columns_json(kinds)) == kinds
