"""The integer program against every selection, one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantopsy.remedy.allocation.program import (
    Cost,
    Limit,
    Objective,
    Options,
    Product,
    greedy,
    minimise,
    nearest,
    shrunk,
)


def problem(seed: int, curved: bool = False, products: bool = False) -> tuple[Options, Objective, list[Limit]]:
    """Three to five choices of two to four options; more bits cost more and lose less; two limits."""
    rng = np.random.default_rng(seed)
    options = Options(tuple(int(size) for size in rng.integers(2, 5, rng.integers(3, 6))))
    count = sum(options.sizes)
    loss = np.concatenate([np.sort(rng.exponential(1.0, size))[::-1] for size in options.sizes])
    limits = []
    for _ in range(2):
        cost = Cost(np.concatenate([np.cumsum(rng.uniform(0.2, 1.0, size)) for size in options.sizes]))
        if products:
            sizes = options.sizes
            cost = Cost(cost.linear, (Product(0, 1, rng.uniform(0.1, 2.0, sizes[:2])),), constant=0.5)
        every = [options.cost(cost, selection) for selection in product(*map(range, options.sizes))]
        limits.append(Limit(cost, float(np.quantile(every, 0.5))))
    quadratic = None
    if curved:
        e = rng.normal(size=(count, 30)) * np.sqrt(loss)[:, None]
        quadratic = e @ e.T / 30
    return options, Objective(loss, quadratic, constant=0.25), limits


def best(options: Options, objective: Objective, limits: list[Limit]) -> float | None:
    values = [
        objective.value(options.indicator(selection))
        for selection in product(*map(range, options.sizes))
        if options.within(limits, selection)
    ]
    return min(values, default=None)


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("products", [False, True])
@given(seed=st.integers(0, 10_000))
@example(seed=3587)  # twelve tangents are not enough
@settings(max_examples=25, deadline=None)
def test_the_least_of_all_selections_is_found(curved, products, seed) -> None:
    options, objective, limits = problem(seed, curved, products)
    expected = best(options, objective, limits)
    found = minimise(options, objective, limits)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert options.within(limits, found.selection)
    assert found.value == pytest.approx(objective.value(options.indicator(found.selection)))
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.bound <= found.value * (1 + 1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_greedy_steps_keep_the_limits_and_are_never_better(seed) -> None:
    options, objective, limits = problem(seed)
    selection, found = greedy(options, objective.linear, limits), minimise(options, objective, limits)
    if selection is not None:
        assert options.within(limits, selection)
        assert found is not None
        assert found.value <= objective.value(options.indicator(selection)) + 1e-9


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_selection_to_begin_from_is_never_made_worse(seed) -> None:
    options, objective, limits = problem(seed, curved=True)
    start = greedy(options, objective.linear, limits)
    if start is not None:
        found = minimise(options, objective, limits, start)
        assert found is not None
        assert found.value <= objective.value(options.indicator(start)) + 1e-9


@pytest.mark.parametrize("products", [False, True])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_where_nothing_is_within_the_limits_the_nearest_exceeds_them_least(products, seed) -> None:
    options, objective, limits = problem(seed, products=products)
    tight = [Limit(limit.cost, 0.2 * limit.most) for limit in limits]

    def excess(selection: tuple[int, ...]) -> float:
        # The program's measure is the largest share, of each limit less what nothing can change.
        return max(
            (options.cost(limit.cost, selection) - limit.most) / (limit.most - limit.cost.constant)
            if limit.most > limit.cost.constant
            else options.cost(limit.cost, selection) - limit.most
            for limit in tight
        )

    found = nearest(options, tight)
    least = min(product(*map(range, options.sizes)), key=excess)
    if all(limit.most > limit.cost.constant for limit in tight):
        assert excess(found) == pytest.approx(excess(least), rel=1e-6, abs=1e-9)
    assert minimise(options, objective, tight) is None or options.within(tight, found)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_an_indicator_tells_the_selection(seed) -> None:
    options, _, _ = problem(seed)
    rng = np.random.default_rng(seed)
    selection = tuple(int(rng.integers(size)) for size in options.sizes)
    x = options.indicator(selection)
    assert x.sum() == len(options.sizes)
    assert options.selection(x) == selection


def test_interactions_that_are_chance_are_shrunk_and_real_ones_kept() -> None:
    rng = np.random.default_rng(0)
    same = np.eye(6, dtype=bool)
    alone = rng.normal(size=(6, 4000))
    together = alone + 3.0 * rng.normal(size=(1, 4000))
    for e, kept in ((alone, 0.02), (together, 0.8)):
        gram = shrunk(e, same)
        np.testing.assert_allclose(np.diag(gram), np.square(e).mean(1))
        scale = np.sqrt(np.diag(gram))
        correlation = gram / scale[:, None] / scale[None, :]
        assert np.linalg.eigvalsh(gram)[0] > -1e-9
        if kept < 0.5:
            assert np.abs(correlation[~same]).max() < kept
        else:
            assert correlation[~same].min() > kept
