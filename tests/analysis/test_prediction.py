"""From first-order changes to flipped decisions and losses, on made-up margins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm

from quantopsy.analysis.prediction import (
    Baseline,
    ErrorModel,
    Outlook,
    Seen,
    flip_probabilities,
    outlook,
    predicted_interval,
    standing_verdict,
)
from quantopsy.analysis.screening import Scores
from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.screen import Column
from quantopsy.metrics import MeanIoU, Metric, PerImageScore, TopK

SITE, SPEC = Site("a", "weight"), Spec(bits=4)
PLAN = Plan.of({SITE: SPEC})
TOP1 = TopK(1)


def scores(change: np.ndarray, margins: np.ndarray, kind: str = "margin") -> Scores:
    """One column whose decision changes by ``change``."""
    n = len(change)
    return Scores((Column(SITE, SPEC, "w"),), np.arange(n), np.ones((1, n, 1)), np.asarray(change)[None], margins, kind)


def flips(found: Scores, gaps: np.ndarray) -> np.ndarray:
    """What the column's change flips."""
    return flip_probabilities(found, found.change(PLAN), gaps)


def expected(found: Scores, known: Baseline, metric: Metric = TOP1) -> Outlook:
    """What the column's change is expected to do."""
    return outlook(found, found.change(PLAN), known, metric)


def losing(*each: float, images: int = 0) -> Outlook:
    """So much is expected to be lost by each image, and nothing gained, on ``images`` or as many as named."""
    lost = np.zeros(max(images, len(each)))
    lost[: len(each)] = each
    return Outlook(lost, 80.0, lost, np.zeros(len(lost)))


def learned(images: int, predicted: np.ndarray, measured: np.ndarray) -> ErrorModel:
    """From cells that were measured on all images."""
    return ErrorModel.fit(images, predicted, predicted, measured)


NOTHING = learned(1000, *np.empty((2, 0)))


def baseline(gaps: np.ndarray, right: np.ndarray, turned: np.ndarray) -> Baseline:
    """A float network that is ``right``, and would be ``turned``."""
    return Baseline(np.arange(len(gaps)), right[:, None].astype(float), gaps, turned[:, None].astype(float))


def test_without_a_change_nothing_flips() -> None:
    gaps = np.sort(np.random.default_rng(0).random((50, 4)) + 0.01, 1)
    assert flips(scores(np.zeros(50), gaps[:, :1]), gaps).max() == 0.0


def test_under_a_huge_spread_nearly_everything_flips() -> None:
    rng = np.random.default_rng(0)
    gaps = np.sort(rng.random((50, 9)), 1)
    found = flips(scores(1e6 * rng.normal(size=50), gaps[:, :1]), gaps)
    # The first is told by its own change, the eight others are even chances each.
    assert (found > 1 - 0.5**8 - 1e-6).all()
    assert (found <= 1.0).all()


def test_the_wider_the_spread_the_likelier_a_flip() -> None:
    rng = np.random.default_rng(1)
    change, gaps = rng.normal(size=200), np.sort(rng.random((200, 5)) * 3, 1)
    means = [flips(scores(size * change, gaps[:, :1]), gaps).mean() for size in (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)]
    assert (np.diff(means) > 0).all()


def test_the_smaller_the_margin_the_likelier_a_flip() -> None:
    change = np.tile([1.0, -1.0], 20)
    gaps = np.repeat(np.linspace(0.0, 4.0, 20), 2)[:, None]
    found = flips(scores(change, gaps), gaps)
    assert (np.diff(found[::2]) < 0).all()
    assert (found[1::2] > found[::2]).all()  # a change towards the runner-up


def test_images_without_a_probe_flip_by_the_spread_alone() -> None:
    change, gaps = np.array([1.0, -1.0, np.nan, np.nan]), np.array([[0.1], [0.1], [1.0], [9.0]])
    found = flips(scores(change, np.array([[0.1], [0.1], [np.nan], [np.nan]])), gaps)
    spread = np.sqrt(np.pi / 2)
    np.testing.assert_allclose(found[2:], norm.sf(np.array([1.0, 9.0]) / spread), rtol=1e-6)


def test_of_maps_the_share_of_flipped_pixels_is_that_of_normal_changes() -> None:
    rng = np.random.default_rng(2)
    change = rng.normal(size=400)
    margins = np.sort(rng.random((400, 32)) * 4, 1)
    found = flips(scores(change, margins, "pixel margins"), np.empty((400, 0)))
    drawn = rng.normal(size=(400, 400)) * np.sqrt(np.pi / 2) * np.abs(change).mean()
    simulated = np.mean([np.mean(margins < -drawn[:, i : i + 1], axis=1) for i in range(400)], 0)
    assert found.mean() == pytest.approx(simulated.mean(), rel=0.03)


@pytest.mark.parametrize("kind", ["none", "loss"])
def test_where_there_is_no_decision_the_screen_cannot_say(kind) -> None:
    found = expected(scores(np.ones(5), np.ones((5, 1)), kind), baseline(np.ones((5, 1)), np.ones(5), np.zeros(5)))
    assert np.isnan(found.flips).all()
    assert np.isnan([found.value, found.lost, found.gained]).all()


def test_expected_loss_is_that_of_normal_scores() -> None:
    """Two classes whose margin moves by a normal amount: as many flips as a simulation has."""
    rng = np.random.default_rng(3)
    n, sigma = 3000, 0.8
    gaps = rng.gamma(2.0, 1.0, (n, 1))
    right = rng.random(n) < 0.8
    change = rng.normal(0.0, sigma, n)
    # The runner-up is right in half of the images that the float network gets wrong.
    turned = ~right & (rng.random(n) < 0.5)
    found = expected(scores(np.full(n, np.nan), gaps * np.nan), baseline(gaps, right, turned))
    assert np.isnan(found.lost)  # nothing was probed at all
    probed = rng.random(n) < 0.3
    found = expected(
        scores(np.where(probed, change, np.nan), np.where(probed[:, None], gaps, np.nan)),
        baseline(gaps, right, turned),
    )
    lost, gained = [], []
    for _ in range(200):
        flipped = gaps[:, 0] + rng.normal(0.0, sigma, n) + np.where(probed, change, 0.0) < 0
        lost.append((flipped & right & ~turned).sum())
        gained.append((flipped & turned & ~right).sum())
    assert found.lost == pytest.approx(np.mean(lost), rel=0.05)
    assert found.gained == pytest.approx(np.mean(gained), rel=0.1)
    assert found.value == pytest.approx(100 * (right.mean() - (found.lost - found.gained) / n))


def test_losses_of_a_metric_where_lower_is_better_are_positive_when_it_rises() -> None:
    metric = PerImageScore(lambda outputs, labels: outputs, "loss")
    metric.higher_is_better = False
    gaps = np.full((10, 1), 0.1)
    low, high = np.full(10, 0.2), np.full(10, 1.2)
    found = expected(scores(np.tile([1.0, -1.0], 5), gaps), baseline(gaps, low, high), metric)
    assert found.lost == pytest.approx(found.flips.sum())
    assert found.value > 0.2


def test_a_metric_that_is_no_mean_has_a_value_and_no_sum_of_losses() -> None:
    rng = np.random.default_rng(0)
    metric, labels = MeanIoU(), torch.arange(12 * 16).reshape(12, 4, 4) % 3
    maps = F.one_hot(labels, 3).movedim(-1, 1).float()
    right, wrong = (metric.per_image(scored, labels, maps).numpy() for scored in (maps, maps.roll(1, 1)))
    known = Baseline(np.arange(12), right, np.empty((12, 0)), wrong)
    error = learned(12, *np.empty((2, 0)))
    found = expected(scores(rng.normal(size=12), np.ones((12, 32)), "pixel margins"), known, metric)
    assert metric.value(wrong) < found.value < metric.value(right)
    assert np.isnan(found.lost)
    interval = predicted_interval(found, error, metric, 12)
    assert np.isnan([interval.low, interval.high]).all()
    assert standing_verdict(found, error, metric, 12, level=0.95, cells=3, tolerance=1.0) is None


def test_with_nothing_measured_the_range_is_the_priors_and_rises_with_the_loss() -> None:
    ranges = [NOTHING.range(lost) for lost in (0.0, 1.0, 10.0, 100.0, 300.0, 1000.0)]
    for (low, high), (next_low, next_high) in pairwise(ranges):
        assert low <= next_low
        assert high <= next_high
    assert all(0.0 <= low < high <= 1000.0 for low, high in ranges)


def test_the_bias_is_learned_from_cells_of_about_the_same_size() -> None:
    predicted = np.full(60, 50.0)
    error = learned(1000, predicted, 0.25 * predicted)
    low, high = error.range(50.0)
    assert low < 12.5 < high
    assert high < 25.0
    assert NOTHING.range(50.0)[0] > 12.5
    np.testing.assert_allclose(error.range(900.0), NOTHING.range(900.0), rtol=0.05)


def test_a_few_cells_move_the_prior_less_than_many() -> None:
    middles = []
    for count in (0, 1, 3, 30, 300):
        predicted = np.full(count, 100.0)
        low, high = learned(1000, predicted, 2.0 * predicted).range(100.0)
        middles.append(np.sqrt((low + 0.5) * (high + 0.5)))
    assert (np.diff(middles) > 0).all()
    assert middles[-1] == pytest.approx(200, rel=0.05)


def test_a_range_holds_as_often_as_it_says_once_learned() -> None:
    rng = np.random.default_rng(4)
    predicted = np.exp(rng.uniform(3.0, 5.5, 400))
    measured = predicted * np.exp(rng.normal(-0.3, 0.4, 400))
    error = learned(5000, predicted[:200], measured[:200])
    ranges = np.array([error.range(lost) for lost in predicted[200:]])
    assert 0.90 <= np.mean(measured[200:] >= ranges[:, 0]) <= 0.995
    assert 0.90 <= np.mean(measured[200:] <= ranges[:, 1]) <= 0.995


def test_cells_measured_in_part_teach_the_bias_of_that_part() -> None:
    predicted, there = np.full(60, 50.0), np.full(60, 20.0)
    np.testing.assert_allclose(
        ErrorModel.fit(1000, predicted, there, 0.5 * there).bias(50.0).mean,
        learned(1000, predicted, 0.5 * predicted).bias(50.0).mean,
        atol=0.02,
    )


def test_images_that_were_seen_are_counted_not_predicted() -> None:
    found = losing(*[0.5] * 40, images=1000)
    low, high = NOTHING.range_of_rest(found, Seen(np.arange(1000) < 40, 17.0, 0.0))
    assert low == high == 17.0
    low, high = NOTHING.range_of_rest(found, Seen(np.arange(1000) < 30, 15.0, 0.0))
    assert 15.0 < low < high <= 25.0


def test_what_was_seen_of_a_cell_tells_of_its_other_images() -> None:
    found = losing(*[0.5] * 200, images=1000)
    seen = np.arange(1000) < 100
    few, many = (NOTHING.range_of_rest(found, Seen(seen, lost, 0.0)) for lost in (10.0, 70.0))
    assert few[1] - 10.0 < 50.0 < many[1] - 70.0
    assert few[1] - 10.0 < many[0] - 70.0


def test_the_images_at_risk_narrow_the_range_more_than_the_others() -> None:
    found = losing(*np.linspace(0.9, 0.0, 100), images=1000)
    images = np.arange(1000)
    wide, narrow = (
        np.diff(NOTHING.range_of_rest(found, Seen(seen, 20.0, 0.0))).item() for seen in (images >= 40, images < 40)
    )
    assert narrow < wide / 2


def test_a_range_of_what_was_not_seen_holds_as_often_as_it_says() -> None:
    """Cells of different bias, half of what is at risk seen: counts as they fall lie within."""
    rng = np.random.default_rng(5)
    predicted = np.exp(rng.uniform(1.0, 4.0, 200))
    biased = predicted * np.exp(rng.normal(-0.3, 0.3, 200))
    error = learned(256, predicted, rng.poisson(biased).astype(float))
    held = []
    for total in np.exp(rng.uniform(1.0, 4.0, 600)):
        risk = rng.gamma(0.3, 1.0, 256)
        chance = np.minimum(total * risk / risk.sum(), 0.7)
        lost = rng.random(256) < np.minimum(chance * np.exp(rng.normal(-0.3, 0.3)), 1.0)
        seen = rng.random(256) < 0.1 + 0.9 * np.sqrt(chance)
        found = Outlook(chance, 80.0, chance, np.zeros(256))
        low, high = error.range_of_rest(found, Seen(seen, float(lost[seen].sum()), 0.0))
        held.append((low <= lost.sum(), lost.sum() <= high))
    assert (np.mean(held, 0) >= 0.94).all()


@pytest.mark.parametrize(("lost", "verdict"), [(0.0, "harmless"), (2000.0, "hurts"), (60.0, None)])
def test_a_verdict_stands_where_both_ends_of_the_range_agree(lost, verdict) -> None:
    error = learned(5000, np.empty(0), np.empty(0))
    found = losing(*[lost / 5000] * 5000)
    assert standing_verdict(found, error, TOP1, 5000, level=0.95, cells=50, tolerance=1.0) == verdict


def test_a_verdict_stands_once_what_is_at_risk_was_seen() -> None:
    found = losing(*[0.5] * 60, images=1000)
    judged = [
        standing_verdict(found, NOTHING, TOP1, 1000, level=0.95, cells=50, tolerance=1.0, seen=seen)
        for seen in (None, Seen(np.arange(1000) < 50, 25.0, 0.0), Seen(np.arange(1000) < 50, 0.0, 0.0))
    ]
    assert judged == [None, "hurts", "undecided"]


def test_the_predicted_interval_holds_its_middle_and_no_more_than_all_images() -> None:
    error = learned(100, np.empty(0), np.empty(0))
    for lost, gained in ((0.0, 0.0), (10.0, 3.0), (95.0, 0.0)):
        interval = predicted_interval(
            Outlook(np.zeros(100), 0.0, *(np.full(100, x / 100) for x in (lost, gained))), error, TOP1, 100
        )
        assert interval.value == pytest.approx(lost - gained)
        assert interval.low <= interval.high <= 100.0
