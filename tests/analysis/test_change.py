"""How much one plan differs from another: planted changes are found, and chance is not called a change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from scipy.stats import binomtest

from quantopsy.analysis import significance
from quantopsy.analysis.assessment import Expected
from quantopsy.analysis.change import Change, Evidence, change, verdict_on
from quantopsy.analysis.comparison import NOISE_TOLERANCE_DB
from quantopsy.analysis.prediction import ErrorModel, Outlook
from quantopsy.analysis.significance import Interval, corrected_level
from quantopsy.metrics import Agreement, MeanIoU, TopK
from quantopsy.study import Draw, RunResult

LAYERS = 20


def run(energy: np.ndarray, scores: np.ndarray) -> RunResult:
    n = len(energy)
    return RunResult(np.arange(n), energy, np.ones(n), scores[:, None].astype(float), 1.0)


def evidence(
    rng: np.random.Generator,
    n: int = 300,
    *,
    lost: float = 0.01,
    noise: float = 0.01,
    hard: np.ndarray | None = None,
    data: str = "images",
    reference: RunResult | None = None,
) -> Evidence:
    """A plan that loses a share ``lost`` of right answers, on images of which the ``hard`` ones go first."""
    hard = rng.random(n) if hard is None else hard
    if reference is None:
        right = hard + 0.2 * rng.standard_normal(n) < 0.85
        reference = run(rng.lognormal(5.0, 0.5, n), right)
    own = np.where(rng.random(n) < 0.5, hard, rng.random(n))
    scores = np.where(own > 1.0 - lost, 0.0, reference.statistics[:, 0])
    energy = noise * reference.energy * rng.lognormal(0.0, 0.8, n)
    return Evidence(TopK(1), data, reference, run(energy, scores))


def screened(found: Evidence, lost: float, noise: float, linear: bool = True) -> Evidence:
    """The same study before the plan was run: ``lost`` images and ``noise`` are only predicted."""
    n = len(found.reference.images)
    outlook = Outlook(np.full(n, lost / n), 100 * (1 - lost / n), np.full(n, lost / n), np.zeros(n))
    signal = float(found.reference.energy.mean())
    expected = Expected(noise * signal, 0.02 * noise * signal, signal, linear, outlook, float("nan"))
    error = ErrorModel.fit(n, *np.empty((3, 0)))
    return replace(found, result=None, expected=expected, error=error)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def covers(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def test_a_planted_loss_is_found_with_and_without_common_images() -> None:
    rng = np.random.default_rng(0)
    sound, broken = evidence(rng), evidence(rng, lost=0.4, noise=0.3)
    for other, images in ((broken, 300), (replace(broken, data="other images"), 0)):
        found = change(sound, other, 0.999)
        assert found.images == images
        assert verdict_on(found.degradation, 1.0) == "worse"
        assert covers(found.over_signal_db, 10 * np.log10(30))
        back = change(other, sound, 0.999)
        assert verdict_on(back.degradation, 1.0) == "better"
        assert back.degradation.value == pytest.approx(-found.degradation.value)


def test_against_the_same_float_network_it_is_the_difference_of_the_quantized_ones() -> None:
    rng = np.random.default_rng(1)
    one = evidence(rng)
    other = evidence(rng, lost=0.1, reference=one.reference)
    assert one.result is not None
    assert other.result is not None
    found = change(one, other, 0.95).degradation
    lost = int((one.result.statistics > other.result.statistics).sum())
    gained = int((one.result.statistics < other.result.statistics).sum())
    assert found == significance.paired_proportions(lost, gained, 300, 0.95).scaled(100)


def test_images_that_both_lose_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(1000)
    one, other = (evidence(rng, 1000, lost=0.3, hard=hard) for _ in range(2))
    paired, unpaired = change(one, other, 0.95), change(one, replace(other, data="other images"), 0.95)
    assert width(paired.degradation) < width(unpaired.degradation)
    assert paired.degradation.value == pytest.approx(unpaired.degradation.value)


def test_only_the_images_that_both_have_are_paired() -> None:
    rng = np.random.default_rng(3)
    one, other = evidence(rng), evidence(rng, lost=0.2)
    assert other.result is not None
    fewer = replace(other, result=other.result.on(np.arange(0, 300, 2)))
    assert change(one, fewer, 0.95).images == 150


def test_noise_is_told_with_and_without_the_signal() -> None:
    """Outputs ten times as large, and their noise too: 20 dB more of it, none of it against the signal."""
    rng = np.random.default_rng(4)
    one = evidence(rng)
    assert one.result is not None
    louder = replace(
        one,
        reference=replace(one.reference, energy=100 * one.reference.energy),
        result=replace(one.result, energy=100 * one.result.energy),
    )
    found = change(one, louder, 0.95)
    assert found.noise_db.value == pytest.approx(20.0)
    assert found.over_signal_db.value == pytest.approx(0.0, abs=1e-9)


def test_a_drawn_plan_is_held_against_the_other_as_it_is() -> None:
    rng = np.random.default_rng(5)
    one, other = evidence(rng), evidence(rng, lost=0.3)
    assert other.result is not None
    draw = Draw(np.arange(300), np.full(300, 0.4))
    taken = np.flatnonzero(rng.random(300) < 0.4)
    drawn = replace(other, result=other.result.on(taken), draw=draw)
    found, whole = change(one, drawn, 0.95), change(one, other, 0.95)
    assert found.images == 0
    assert width(found.degradation) > width(whole.degradation)
    assert width(found.over_signal_db) > width(whole.over_signal_db)
    assert covers(found.degradation, whole.degradation.value)
    assert covers(found.over_signal_db, whole.over_signal_db.value)


def test_what_is_only_screened_is_less_sure() -> None:
    rng = np.random.default_rng(6)
    one, other = evidence(rng), evidence(rng, lost=0.1, noise=0.02)
    guess = screened(other, lost=30.0, noise=0.02)
    found, exact = change(one, guess, 0.95), change(one, other, 0.95)
    assert width(found.degradation) > width(exact.degradation)
    assert width(found.over_signal_db) > width(exact.over_signal_db)
    assert width(change(one, guess, 0.999).degradation) > width(found.degradation)


def test_beyond_the_linear_regime_a_screen_says_nothing_of_noise() -> None:
    rng = np.random.default_rng(7)
    one = evidence(rng)
    found = change(one, screened(one, lost=30.0, noise=2.0, linear=False), 0.95)
    assert np.isnan(found.over_signal_db.value)
    assert verdict_on(found.over_signal_db, 1.0) == "undecided"


def test_degradations_of_different_metrics_are_not_compared() -> None:
    rng = np.random.default_rng(8)
    one = evidence(rng)
    found = change(one, replace(one, metric=Agreement()), 0.95)
    assert np.isnan(found.degradation.value)
    assert found.over_signal_db.value == 0.0


def test_a_metric_that_is_no_mean_is_resampled() -> None:
    """Intersections and unions of two classes; the second network loses a third of one of them."""
    rng = np.random.default_rng(9)
    n = 120
    union = rng.integers(50, 100, (n, 2)).astype(float)
    references = [np.hstack([rng.uniform(0.8, 0.9, (n, 2)) * union, union]) for _ in range(2)]
    worse = references[1].copy()
    worse[:, 0] *= 2 / 3
    energy = np.ones(n)

    def plan(reference: np.ndarray, statistics: np.ndarray) -> Evidence:
        results = (RunResult(np.arange(n), energy, energy, values, 1.0) for values in (reference, statistics))
        return Evidence(MeanIoU(), "images", *results)

    metric = MeanIoU()
    found = change(plan(references[0], references[0]), plan(references[1], worse), 0.99).degradation
    assert found.value == pytest.approx(metric.value(references[1]) - metric.value(worse))
    assert found.low > 10.0
    assert found.high < 18.0


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0.5, 3, "worse"), (-3, -0.5, "better"), (-0.5, 0.9, "unchanged"), (0.1, 0.9, "unchanged"), (-2, 2, "undecided")],
)
def test_a_change_within_the_tolerance_is_none(low: float, high: float, found: str) -> None:
    assert verdict_on(Interval((low + high) / 2, low, high), 1.0) == found


def other_images(rng: np.random.Generator) -> list[tuple[Evidence, Evidence]]:
    """One network on two sets of images: in each layer the same loss and noise."""
    references = [evidence(rng, 200, data=data).reference for data in ("some", "others")]
    shares = rng.uniform(0.0, 0.1, LAYERS)
    sides = [
        [evidence(rng, 200, lost=share, data=data, reference=reference) for share in shares]
        for data, reference in zip(("some", "others"), references, strict=True)
    ]
    return list(zip(*sides, strict=True))


def other_networks(rng: np.random.Generator) -> list[tuple[Evidence, Evidence]]:
    """Two networks that are equally good in every layer, on the same images of which some are hard for both."""
    hard = rng.random(200)
    references = [evidence(rng, 200, hard=hard).reference for _ in range(2)]
    shares = rng.uniform(0.0, 0.1, LAYERS)
    sides = [[evidence(rng, 200, lost=share, hard=hard, reference=r) for share in shares] for r in references]
    return list(zip(*sides, strict=True))


def other_seeds(rng: np.random.Generator) -> list[tuple[Evidence, Evidence]]:
    """One float network quantized twice, with rounding that differs: the same loss and noise, by chance of others."""
    reference = evidence(rng, 200).reference
    shares = rng.uniform(0.0, 0.1, LAYERS)
    sides = [[evidence(rng, 200, lost=share, reference=reference) for share in shares] for _ in range(2)]
    return list(zip(*sides, strict=True))


@pytest.mark.parametrize("pairs", [other_images, other_networks, other_seeds])
def test_chance_is_called_a_change_anywhere_in_at_most_five_of_a_hundred_comparisons(
    monkeypatch: pytest.MonkeyPatch, pairs: Callable[[np.random.Generator], list[tuple[Evidence, Evidence]]]
) -> None:
    monkeypatch.setattr(significance, "paired_proportions", lru_cache(significance.paired_proportions))
    comparisons = 150
    level = corrected_level(0.95, 2 * LAYERS)

    def alarm(found: Change) -> bool:
        verdicts = (verdict_on(found.degradation, 1.0), verdict_on(found.over_signal_db, NOISE_TOLERANCE_DB))
        return bool({"worse", "better"} & set(verdicts))

    alarms = sum(
        any(alarm(change(*pair, level)) for pair in pairs(np.random.default_rng(seed))) for seed in range(comparisons)
    )
    assert binomtest(alarms, comparisons, 0.05, alternative="greater").pvalue > 0.01, f"{alarms} of {comparisons}"


def test_a_layer_without_noise_on_the_images_that_were_drawn_of_it_is_infinitely_less_noisy() -> None:
    rng = np.random.default_rng(0)
    loud = evidence(rng)
    assert loud.result is not None
    images = loud.result.images
    kept = images[rng.random(len(images)) < 0.3]
    silent = replace(loud.result, energy=np.zeros(len(images))).on(kept)
    dead = replace(loud, result=silent, draw=Draw(images, np.full(len(images), 0.3)))
    assert change(loud, dead, 0.95).noise_db.high == -np.inf
    assert change(dead, loud, 0.95).over_signal_db.low == np.inf
    assert verdict_on(change(dead, loud, 0.95).noise_db, NOISE_TOLERANCE_DB) == "worse"
