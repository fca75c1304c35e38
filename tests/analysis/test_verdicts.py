"""What drawn images say of all of them, against measuring all of them."""

from __future__ import annotations

import numpy as np
import pytest

from quantopsy.analysis import significance
from quantopsy.analysis.phases import drawn_images
from quantopsy.analysis.significance import sampling_probabilities
from quantopsy.analysis.verdicts import Measured, measured
from quantopsy.metrics import TopK
from quantopsy.study import Draw, RunResult

TOP1 = TopK(1)
N = 600


def result(statistics: np.ndarray, energy: np.ndarray | None = None) -> RunResult:
    """A run on all images."""
    n = len(statistics)
    energy = np.ones(n) if energy is None else energy
    return RunResult(np.arange(n), energy, statistics.astype(float), statistics[:, None].astype(float), 1.0)


def made_up(seed: int, lost: float, gained: float = 0.01) -> tuple[RunResult, RunResult, np.ndarray]:
    """(float, quantized, risk): images are lost in proportion to their risk, gained anywhere."""
    rng = np.random.default_rng([seed, 1])  # apart from the numbers that images are drawn with
    risk = rng.random(N) ** 3
    before = rng.random(N) < 0.8
    after = before & ~(rng.random(N) < lost * risk / risk.mean())
    after |= ~before & (rng.random(N) < gained)
    energy = rng.gamma(1.0, 1.0 + 5 * risk)
    return result(before, np.full(N, 10.0)), result(after, energy), risk


def look(reference: RunResult, run: RunResult, draw: Draw | None = None, **options) -> Measured:
    """The figures at the usual level among 20 cells."""
    return measured(TOP1, reference, run, **{"level": 0.95, "cells": 20, "tolerance": 1.0, "draw": draw, **options})


def drawn(reference: RunResult, run: RunResult, probabilities: np.ndarray, seed: int, **options) -> Measured:
    """The figures from one draw."""
    design = Draw(np.arange(N), probabilities, seed)
    return look(reference, run.on(drawn_images(probabilities, seed)), design, **options)


@pytest.mark.parametrize(("lost", "informative"), [(0.05, True), (0.05, False), (0.3, True)])
def test_drawn_images_are_unbiased_and_their_interval_covers_as_often_as_it_says(lost, informative) -> None:
    reference, run, risk = made_up(0, lost)
    whole = look(reference, run)
    p = sampling_probabilities(risk if informative else np.ones(N), 0.3 * N)
    found = [drawn(reference, run, p, seed) for seed in range(200)]
    for name, value in (
        ("degradation", [each.degradation.value for each in found]),
        ("noise", [e.noise for e in found]),
    ):
        expected = whole.degradation.value if name == "degradation" else whole.noise
        # The noise is a ratio of two estimates: unbiased up to terms of 1 / (images drawn).
        slack = 0.0 if name == "degradation" else 0.01 * expected
        assert abs(np.mean(value) - expected) < 3 * np.std(value) / np.sqrt(len(value)) + slack
    covered = [each.degradation.low <= whole.degradation.value <= each.degradation.high for each in found]
    assert np.mean(covered) >= 0.95
    noise_covered = [abs(each.noise - whole.noise) <= 1.96 * each.noise_stderr for each in found]
    assert np.mean(noise_covered) >= 0.90
    assert np.mean([each.value for each in found]) == pytest.approx(whole.value, abs=0.5)


def test_the_interval_of_drawn_images_also_covers_what_more_images_would_say() -> None:
    """The images themselves are a sample: over many such samples the true loss lies in the interval."""
    covered = []
    for seed in range(200):
        reference, run, risk = made_up(seed, 0.1, 0.0)
        p = sampling_probabilities(risk, 0.3 * N)
        found = drawn(reference, run, p, seed).degradation
        covered.append(found.low <= 100 * TRUE_LOSS <= found.high)
    assert np.mean(covered) >= 0.93


def _true_loss() -> float:
    """Of ``made_up(_, 0.1, 0.0)``, over very many images."""
    rng = np.random.default_rng(99)
    risk = rng.random((400, N)) ** 3
    chance = np.minimum(0.1 * risk / risk.mean(1, keepdims=True), 1.0)
    return float(0.8 * chance.mean())


TRUE_LOSS = _true_loss()


@pytest.mark.parametrize("lost", [0.0, 0.02, 0.1, 0.4])
def test_a_settled_verdict_of_drawn_images_is_that_of_all(lost) -> None:
    wrong = settled = 0
    for seed in range(60):
        reference, run, risk = made_up(seed, lost, 0.0)
        found = drawn(reference, run, sampling_probabilities(risk, 0.3 * N), seed)
        if found.settled:
            settled += 1
            wrong += found.verdict != look(reference, run).verdict
        else:
            assert found.verdict == "undecided"
    assert wrong <= 0.1 * 60
    if lost in (0.0, 0.4):
        assert settled > 0


def test_a_draw_with_all_its_images_measured_is_not_weighted() -> None:
    reference, run, risk = made_up(1, 0.1)
    p = sampling_probabilities(risk, 0.3 * N)
    assert look(reference, run, Draw(np.arange(N), p, 3)) == look(reference, run)
    assert look(reference, run).settled


def test_more_images_than_could_be_drawn_are_not_weighted() -> None:
    reference, run, _ = made_up(1, 0.1)
    assert look(reference, run, Draw(np.arange(N // 2), np.full(N // 2, 0.3))) == look(reference, run)


def test_some_images_without_weights_leave_open_what_all_could_decide() -> None:
    reference, run, _ = made_up(2, 0.02)
    found = look(reference, run.on(np.arange(40)))
    assert not found.settled
    assert found.samples == 40
    everything_lost = result(np.zeros(N))
    plain = look(result(np.ones(N)), everything_lost.on(np.arange(40)), Draw(np.arange(40), np.ones(40)))
    assert plain.verdict == "hurts"


def test_figures_of_all_images_are_the_plain_ones() -> None:
    reference, run, _ = made_up(3, 0.1)
    found = look(reference, run)
    assert found.degradation == significance.degradation(TOP1, reference.statistics, run.statistics, level=0.95)
    assert found.noise == pytest.approx(run.energy.mean())
    assert found.signal == pytest.approx(10.0)
    assert found.value == pytest.approx(100 * run.statistics.mean())
    assert found.samples == N


def test_verdicts_are_of_many_cells_at_once() -> None:
    before, after = np.ones(N), np.ones(N)
    after[:8] = 0.0
    alone, among_many = (look(result(before), result(after), cells=cells, tolerance=0.0) for cells in (1, 5000))
    assert alone.verdict == "hurts"
    assert among_many.verdict == "undecided"


def test_a_metric_where_lower_is_better_loses_when_it_rises() -> None:
    metric = TopK(1)
    metric.higher_is_better = False
    reference, run = result(np.zeros(N)), result(np.arange(N) < 60)
    found = measured(metric, reference, run, level=0.95, cells=1, tolerance=0.0)
    assert found.degradation.value == pytest.approx(10.0)
    p = np.full(N, 0.5)
    part = measured(
        metric, reference, run.on(drawn_images(p, 0)), level=0.95, cells=1, tolerance=0.0, draw=Draw(np.arange(N), p, 0)
    )
    assert part.degradation.low <= 10.0 <= part.degradation.high
    assert part.value == pytest.approx(part.degradation.value)
