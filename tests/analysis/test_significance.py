"""Intervals against published tables, scipy and simulation; importance sampling against all images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from quantopsy.analysis import significance as sig
from quantopsy.metrics import MeanIoU, PerImageScore, TopK

TOP1 = TopK(1)
SCORE = PerImageScore(lambda outputs, labels: outputs, "score")


@pytest.mark.parametrize(
    ("lost", "gained", "n", "level", "low", "high"),
    [
        # M. Fagerland, S. Lydersen, P. Laake, Statistics in Medicine 33 (2014): airway reactivity.
        (1, 7, 21, 0.95, -0.517, -0.026),
        # PropCIs::scoreci.mp of R.
        (48, 41, 549, 0.90, -0.0157, 0.0414),
    ],
)
def test_paired_proportions_agree_with_published_intervals(lost, gained, n, level, low, high):
    interval = sig.paired_proportions(lost, gained, n, level)
    digits = 3 if n == 21 else 4
    assert (round(interval.low, digits), round(interval.high, digits)) == (low, high)


@pytest.mark.parametrize(("lost", "gained", "n"), [(12, 2, 50), (3, 0, 40), (0, 5, 25), (9, 9, 60)])
def test_ends_of_paired_proportions_solve_the_score_equation(lost, gained, n):
    """The restricted estimate is found here by maximising the likelihood numerically."""
    interval = sig.paired_proportions(lost, gained, n)
    z = stats.norm.isf(0.025)
    for d in (interval.low, interval.high):

        def minus_log_likelihood(q, d=d):
            p = np.array([q + d, q, 1.0 - 2.0 * q - d])
            counts = np.array([lost, gained, n - lost - gained])
            return -stats.multinomial.logpmf(counts, n, np.clip(p, 1e-300, 1.0) / np.clip(p, 1e-300, 1).sum())

        best = optimize.minimize_scalar(
            minus_log_likelihood,
            bounds=(max(0.0, -d), (1.0 - d) / 2.0),
            method="bounded",
            options={"xatol": 1e-12},
        ).x
        score = (lost - gained - n * d) / np.sqrt(n * (2.0 * best + d * (1.0 - d)))
        assert abs(score) == pytest.approx(z, rel=1e-3)


def test_no_discordant_pair_still_leaves_a_width():
    z2 = stats.norm.isf(0.025) ** 2
    interval = sig.paired_proportions(0, 0, 100)
    assert (interval.low, interval.high) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))


@given(st.integers(1, 300), st.data())
def test_swapping_lost_and_gained_mirrors_the_interval(n, data):
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    one, other = sig.paired_proportions(lost, gained, n), sig.paired_proportions(gained, lost, n)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert -1.0 <= one.low <= one.value <= one.high <= 1.0


def test_paired_proportions_cover_as_often_as_they_say():
    counts = np.random.default_rng(0).multinomial(100, [0.06, 0.02, 0.92], size=1000)
    intervals = [sig.paired_proportions(int(lost), int(gained), 100) for lost, gained, _ in counts]
    assert 0.93 <= np.mean([i.low <= 0.04 <= i.high for i in intervals]) <= 0.99


def test_degradation_of_accuracy_is_in_points_and_positive_when_worse():
    before, after = np.ones((50, 1)), np.ones((50, 1))
    after[:5] = 0.0
    interval = sig.degradation(TOP1, before, after)
    assert interval == sig.paired_proportions(5, 0, 50).scaled(100.0)
    assert interval.value == 10.0 == TOP1.value(before) - TOP1.value(after)


def test_degradation_of_a_loss_is_positive_when_it_rises():
    loss = PerImageScore(lambda outputs, labels: outputs, "loss")
    loss.higher_is_better = False
    before = np.random.default_rng(0).random((40, 1))
    interval = sig.degradation(loss, before, before + 0.5)
    assert interval.value == pytest.approx(0.5)
    assert interval.low == pytest.approx(0.5)


def test_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(1)
    before = rng.exponential(size=(80, 1))
    after = before - rng.exponential(0.3, size=(80, 1))
    ours = sig.degradation(SCORE, before, after, resamples=9999)
    theirs = stats.bootstrap(
        ((before - after)[:, 0],), np.mean, method="BCa", n_resamples=9999, rng=2
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_statistics_are_resampled_once_for_all_levels_and_whatever_they_are_compared_with(monkeypatch):
    resampled = []
    values = MeanIoU.values
    monkeypatch.setattr(
        MeanIoU, "values", lambda self, x, weights: resampled.append(len(weights)) or values(self, x, weights)
    )
    rng = np.random.default_rng(8)
    exact, *others = rng.integers(1, 50, (3, 40, 6)).astype(float)
    metric = MeanIoU()
    found = [sig.degradation(metric, exact, other, level=level) for other in others for level in (0.9, 0.99)]
    assert found[0].low > found[1].low
    assert found[0].value == found[1].value != found[2].value
    assert sum(count for count in resampled if count > 100) == 3 * sig.RESAMPLES
    again = sig.degradation(MeanIoU(), exact, others[0], level=0.9)  # of another metric nothing is remembered
    assert again == found[0]
    assert sum(count for count in resampled if count > 100) == 5 * sig.RESAMPLES


def test_bootstrap_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(300):
        before = rng.normal(size=(50, 1))
        interval = sig.degradation(SCORE, before, before - rng.normal(0.2, 0.5, (50, 1)), resamples=500)
        covered.append(interval.low <= 0.2 <= interval.high)
    assert 0.90 <= np.mean(covered) <= 0.98


def test_same_seed_same_interval_whatever_the_chunks(monkeypatch):
    before, after = np.random.default_rng(3).random((2, 30, 1))
    assert sig.degradation(SCORE, before, after) == sig.degradation(SCORE, before, after)
    assert sig.degradation(SCORE, before, after) != sig.degradation(SCORE, before, after, seed=1)
    whole = sig.bootstrap_counts(30, 7, 0)
    assert (whole.sum(axis=1) == 30).all()


def test_statistics_of_other_images_are_refused():
    with pytest.raises(ValueError, match="same images"):
        sig.degradation(SCORE, np.zeros((3, 1)), np.zeros((4, 1)))


def test_metric_interval_of_an_accuracy_is_wilsons():
    hits = np.repeat([1.0, 0.0], [80, 20])[:, None]
    bounds = stats.binomtest(80, 100).proportion_ci(method="wilson")
    interval = sig.metric_interval(TOP1, hits)
    assert (interval.value, interval.low, interval.high) == pytest.approx((80.0, 100 * bounds.low, 100 * bounds.high))


def test_mean_stderr_agrees_with_scipy():
    x = np.random.default_rng(0).random(20)
    assert sig.mean_stderr(x) == pytest.approx((x.mean(), stats.sem(x)))
    assert np.isnan(sig.mean_stderr(x[:1])[1])


def test_verdicts():
    assert sig.verdict(sig.Interval(3.0, 1.5, 4.5), tolerance=1.0) == "hurts"
    assert sig.verdict(sig.Interval(1.0, 0.5, 1.5), tolerance=1.0) == "hurts"
    assert sig.verdict(sig.Interval(0.1, -0.5, 0.9), tolerance=1.0) == "harmless"
    assert sig.verdict(sig.Interval(0.5, -0.5, 1.5), tolerance=1.0) == "undecided"
    assert sig.verdict(sig.Interval(0.5, 0.0, 1.5), tolerance=1.0) == "undecided"
    with pytest.raises(ValueError, match="tolerance"):
        sig.verdict(sig.Interval(0.0, 0.0, 0.0), tolerance=-1.0)


def test_a_certain_loss_that_is_accepted_is_harmless():
    assert sig.verdict(sig.Interval(0.5, 0.1, 1.0), tolerance=1.0) == "harmless"


def test_holm_adjusts_step_by_step_and_keeps_the_order_given():
    assert sig.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert sig.holm([0.6, 0.7]).tolist() == [1.0, 1.0]


def test_looking_at_many_cells_rarely_accuses_an_innocent_one():
    rng = np.random.default_rng(4)
    level = sig.corrected_level(0.95, 50)
    lost, gained = rng.binomial(256, 0.03, size=(2, 100, 50))
    accused = [
        any(
            sig.verdict(sig.paired_proportions(int(a), int(b), 256, level)) == "hurts"
            for a, b in zip(*cells, strict=True)
        )
        for cells in zip(lost, gained, strict=True)
    ]
    assert np.mean(accused) <= 0.06


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.05, 1.2), st.floats(0.01, 1.0))
def test_sampling_probabilities_spend_the_budget_and_leave_no_image_out(risk, share, floor):
    budget = share * len(risk)
    p = sig.sampling_probabilities(np.array(risk), budget, floor)
    assert ((p > 0) & (p <= 1.0 + 1e-12)).all()
    assert p.sum() == pytest.approx(min(budget, len(risk)))
    order = np.argsort(risk, kind="stable")
    assert (np.diff(p[order]) >= -1e-9).all()


@pytest.mark.parametrize("population", [5, 50])
@pytest.mark.parametrize("informative", [True, False])
def test_importance_weighted_is_unbiased_and_covers_as_often_as_it_says(informative, population):
    rng = np.random.default_rng(population)
    n = 500
    risk = rng.random(n) ** 4
    flips = risk / risk.mean() * 0.1 if informative else np.full(n, 0.1)
    u = rng.random(n)
    x = np.where(u < 0.8 * flips, 1.0, np.where(u < flips, -1.0, 0.0))
    p = sig.sampling_probabilities(risk, 100)
    intervals = []
    for seed in range(500):
        drawn = sig.draw(p, seed)
        intervals.append(sig.importance_weighted(x[drawn], drawn, p))
    values = np.array([interval.value for interval in intervals])
    assert abs(values.mean() - x.mean()) < 3.0 * values.std() / np.sqrt(len(values))
    assert np.mean([i.low <= x.mean() <= i.high for i in intervals]) >= 0.93


def test_importance_weighted_of_every_image_is_exact():
    x = np.array([1.0, 0.0, -1.0, 1.0])
    interval = sig.importance_weighted(x, np.arange(4), np.ones(4))
    assert (interval.low, interval.value, interval.high) == (0.25, 0.25, 0.25)


def test_importance_weighted_without_a_difference_seen_is_not_certain():
    p = np.full(100, 0.5)
    interval = sig.importance_weighted(np.zeros(50), np.arange(50), p)
    assert interval.low < 0.0 < interval.high < 0.1


@given(
    st.floats(-5, 5), st.floats(0.01, 3), st.floats(0.01, 3), st.floats(-5, 5), st.floats(0.01, 3), st.floats(0.01, 3)
)
def test_differences_of_intervals_keep_their_algebra(a, a_low, a_high, b, b_low, b_high):
    first, second = sig.Interval(a, a - a_low, a + a_high), sig.Interval(b, b - b_low, b + b_high)
    found, back = sig.difference(first, second), sig.difference(second, first)
    assert (found.low, found.high) == pytest.approx((-back.high, -back.low))
    assert found.low <= found.value <= found.high
    # What is known exactly adds no width; what two estimates share takes some away.
    exact = sig.difference(first, sig.Interval(b, b, b))
    assert (exact.low, exact.high) == pytest.approx((first.low - b, first.high - b))
    together = sig.difference(first, second, 0.5)
    assert together.high - together.low < found.high - found.low


def test_a_difference_of_normal_means_is_the_textbook_interval():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 400)) + np.array([[0.0], [0.3]])
    z = stats.norm.isf(0.025)
    intervals = [sig.Interval(m, m - z * s, m + z * s) for m, s in (sig.mean_stderr(row) for row in x)]
    found = sig.difference(intervals[1], intervals[0])
    reach = z * np.sqrt(x.var(axis=1, ddof=1).sum() / 400)
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))
    paired = sig.difference(intervals[1], intervals[0], float(np.corrcoef(x)[0, 1]))
    reach = z * (x[1] - x[0]).std(ddof=1) / 20
    assert (paired.low, paired.high) == pytest.approx((paired.value - reach, paired.value + reach))


def test_intervals_of_two_levels_have_no_difference():
    with pytest.raises(ValueError, match="equal level"):
        sig.difference(sig.Interval(0, -1, 1, 0.9), sig.Interval(0, -1, 1, 0.95))


def test_a_correlation_is_pearsons_less_half_an_image():
    rng = np.random.default_rng(1)
    a = (rng.random(200) < 0.3).astype(float)
    b = np.where(rng.random(200) < 0.7, a, rng.random(200) < 0.3)
    phi = stats.pearsonr(a, b).statistic
    n11, n10, n01, n00 = (a * b).sum(), (a * (1 - b)).sum(), ((1 - a) * b).sum(), ((1 - a) * (1 - b)).sum()
    corrected = phi * (n11 * n00 - n10 * n01 - 100) / (n11 * n00 - n10 * n01)
    assert sig.correlation(a, b) == pytest.approx(corrected)
    assert sig.correlation(a, 1 - b) == pytest.approx(-phi)
    assert sig.correlation(a, np.ones(200)) == 0.0
    one = np.eye(200)[0]
    assert sig.correlation(one, one) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("accuracy", "lost"), [(0.8, 0.02), (0.8, 0.3), (0.95, 0.6)])
def test_changes_of_degradation_between_networks_hold_at_their_level(accuracy, lost):
    """Two float networks, hard images in common, each losing as much: 0 lies in 95 of 100 intervals."""
    rng = np.random.default_rng(2)
    trials, held = 400, 0
    for _ in range(trials):
        hard = rng.random(150)
        pairs = []
        for _ in range(2):
            right = (hard + 0.3 * rng.standard_normal(150) < accuracy).astype(float)
            gone = np.where(rng.random(150) < 0.5, hard, rng.random(150)) > 1 - lost
            pairs.append((right[:, None], np.where(gone, 0.0, right)[:, None]))
        found = sig.change_of_degradation(TOP1, *pairs)
        held += found.low <= 0.0 <= found.high
    assert stats.binomtest(held, trials, 0.95, alternative="less").pvalue > 0.01


def test_a_linear_metric_of_shares_is_resampled_image_by_image():
    rng = np.random.default_rng(3)
    floats = rng.uniform(0.8, 0.9, (2, 80, 1))
    quantized = floats - np.array([0.0, 0.1])[:, None, None] + rng.normal(0, 0.01, (2, 80, 1))
    found = sig.change_of_degradation(SCORE, (floats[0], quantized[0]), (floats[1], quantized[1]), level=0.99)
    each = (floats[1] - quantized[1] - floats[0] + quantized[0])[:, 0]
    again = stats.bootstrap((each,), np.mean, confidence_level=0.99, method="BCa", rng=rng).confidence_interval
    assert found.value == pytest.approx(each.mean())
    assert (found.low, found.high) == pytest.approx((again.low, again.high), rel=0.02)


def test_decibels_are_of_means_and_agree_with_a_bootstrap():
    rng = np.random.default_rng(4)
    noise, signal = rng.lognormal(0, 0.5, 500), rng.lognormal(3, 0.3, 500)
    found = sig.decibels([noise], [signal])

    def of(a, b, axis=-1):
        return 10 * np.log10(a.mean(axis) / b.mean(axis))

    again = stats.bootstrap((noise, signal), of, paired=True, vectorized=True, rng=rng).confidence_interval
    assert found.value == pytest.approx(of(noise, signal))
    assert (found.low, found.high) == pytest.approx((again.low, again.high), abs=0.03)


def test_decibels_of_nothing_are_infinite_and_of_two_nothings_zero():
    some, none = np.ones(5), np.zeros(5)
    assert sig.decibels([some], [none]).value == np.inf
    assert sig.decibels([none], [some]).high == -np.inf
    assert sig.decibels([none, some], [some, none]).value == 0.0


@pytest.mark.parametrize("spread", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("level", [0.95, 0.999])
def test_decibels_of_long_tailed_noise_hold_at_their_level(spread, level):
    """Real per-image noise has a log spread up to 1.1; plain Student intervals miss 9 of 100 at 1.5."""
    rng = np.random.default_rng(5)
    trials, missed = 2000, 0
    for _ in range(trials):
        common = np.exp(0.8 * spread * rng.standard_normal(120))
        a, b = (common * rng.lognormal(0, 0.6 * spread, 120) for _ in range(2))
        found = sig.decibels([a], [b], level=level)
        missed += not found.low <= 0.0 <= found.high
    assert stats.binomtest(missed, trials, 1 - level, alternative="greater").pvalue > 0.01


def test_a_bootstrap_reaches_farther_than_its_resamples():
    """At a level of which 2000 resamples tell nothing: of normal scores the interval is still nearly exact."""
    rng = np.random.default_rng(6)
    scores = rng.normal(0.0, 1.0, (400, 1))
    level = 1 - 1e-5
    found = sig.metric_interval(SCORE, scores, level=level)
    reach = stats.norm.isf((1 - level) / 2) * scores.std() / 20
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.1)
    missed = 0
    for _ in range(300):
        pair = rng.normal(0.0, 1.0, (2, 60, 1))
        interval = sig.degradation(SCORE, pair[0], pair[1], level=0.999)
        missed += not interval.low <= 0.0 <= interval.high
    assert stats.binomtest(missed, 300, 0.001, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("n", [2, 3, 5, 8, 29])
def test_few_images_accuse_no_innocent_cell(n):
    """Normal differences around 0, at the level of 100 cells: a bootstrap alone accuses 15 of 100 at two images."""
    rng = np.random.default_rng(7)
    level = sig.corrected_level(0.95, 100)
    zeros = np.zeros((n, 1))
    found = [sig.degradation(SCORE, rng.normal(size=(n, 1)), zeros, level=level, resamples=300) for _ in range(300)]
    missed = sum(not interval.low <= 0.0 <= interval.high for interval in found)
    assert stats.binomtest(missed, 300, 1 - level, alternative="greater").pvalue > 0.01


def test_few_images_of_a_metric_that_is_no_mean_are_as_unsure():
    """Two classes and two images, which lose 40 and 60 of 100 pixels of one class each."""
    before = np.array([[100.0, 100.0, 100.0, 100.0]] * 2)
    after = before - np.array([[40.0, 0.0, 0.0, 0.0], [60.0, 0.0, 0.0, 0.0]])
    found = sig.degradation(MeanIoU(), before, after)
    lost = np.array([30.0, 20.0])  # what the other image alone loses
    assert found.value == pytest.approx(25.0)
    reach = stats.t.isf(0.025, 1) * stats.sem(lost)
    assert (found.low, found.high) == pytest.approx((25.0 - reach, 25.0 + reach))


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_a_single_image_decides_nothing(lost):
    before = np.array([[0.7]])
    interval = sig.degradation(SCORE, before, before - lost)
    assert (interval.low, interval.high) == (-np.inf, np.inf)
    assert interval.value == pytest.approx(lost)
    assert sig.verdict(interval, tolerance=1.0) == "undecided"
    assert sig.metric_interval(SCORE, before).high == np.inf


def test_a_difference_that_no_image_showed_leaves_the_width_of_an_unseen_one():
    z2 = stats.norm.isf(0.025) ** 2
    thirds = np.tile([0.0, 1 / 3, 2 / 3, 1.0], 15)[:, None]
    interval = sig.degradation(SCORE, thirds, thirds)
    assert (interval.low, interval.high) == pytest.approx((-z2 / (60 + z2), z2 / (60 + z2)))
    few = np.array([[0.1], [0.3], [0.5]])
    assert sig.degradation(SCORE, few, few - 0.1).high == pytest.approx(0.1 + 0.5 * z2 / (3 + z2))
    alike = np.full((3, 1), 0.5)
    assert sig.degradation(SCORE, alike, alike).high == np.inf


def test_many_scores_that_all_differ_and_stayed_are_certain():
    scores = np.random.default_rng(8).random((60, 1))
    interval = sig.degradation(SCORE, scores, scores)
    assert (interval.low, interval.high) == (0.0, 0.0)
    assert sig.verdict(interval) == "harmless"


def test_an_infinite_end_stays_infinite_in_a_difference():
    unknown = sig.Interval(0.2, -np.inf, np.inf)
    for correlation in (0.0, 0.5):
        found = sig.difference(unknown, unknown, correlation)
        assert (found.value, found.low, found.high) == (0.0, -np.inf, np.inf)
