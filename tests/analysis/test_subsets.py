"""Subsets of layers, and what a study says of them, from made-up measurements and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantopsy.analysis.screening import Scores, columns_json
from quantopsy.analysis.significance import draw, paired_proportions
from quantopsy.analysis.subsets import (
    Design,
    Evidence,
    Subset,
    additivity_of,
    drawn_subsets,
    interaction,
    mixed,
)
from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.screen import Column
from quantopsy.metrics import PerImageScore, TopK
from quantopsy.study import FLOAT, Draw, RunnerUp, ScreenTile, Store, TileResult, create

TOP1 = TopK(1)
N = 200
IMAGES = np.arange(N)
LAYERS = ("a", "b", "c")
SIGNAL = 1000.0
RNG = np.random.default_rng(0)
NOISE = {(layer, bits): RNG.gamma(2.0, 8.0 / bits, N) for layer in LAYERS for bits in (4, 8)}
LOST = {("a", 4): 10, ("b", 4): 6, ("c", 4): 3}


def weight_plan(bits: Mapping[str, int]) -> Plan:
    return Plan.of({Site(layer, "weight"): Spec(bits=width) for layer, width in bits.items()})


def put(store: Store, run: int, energy: np.ndarray, lost: int = 0, images: np.ndarray = IMAGES) -> None:
    """Measure ``run``: the first ``lost`` images lose."""
    statistics = (images >= lost)[:, None].astype(float)
    store.append([TileResult(run, images, energy[images], np.ones(len(images)), statistics, 0.1)])


def made(store: Store, subsets: list[tuple[int, ...]], samples: int | None = None) -> Design:
    """An experiment on three layers, noted."""
    cells = {
        index: tuple(store.run(weight_plan({layer: bits})) for bits in (4, 8)) for index, layer in enumerate(LAYERS)
    }
    runs = [
        store.run(weight_plan({layer: 4 if index in chosen else 8 for index, layer in enumerate(LAYERS)}))
        for chosen in subsets
    ]
    found = Design(4, 8, samples, 0, tuple(map(Subset, subsets, runs)), cells)
    store.note("additivity", found.to_json())
    return found


def summed(chosen: tuple[int, ...]) -> np.ndarray:
    return sum(NOISE[layer, 4 if index in chosen else 8] for index, layer in enumerate(LAYERS))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A study whose float network and single layers have been measured."""
    with create(tmp_path / "study", {}) as found:
        found.note("order", IMAGES.tolist())
        put(found, FLOAT, np.full(N, SIGNAL))
        for (layer, bits), energy in NOISE.items():
            put(found, found.run(weight_plan({layer: bits})), energy, LOST.get((layer, bits), 0))
        yield found


@given(layers=st.lists(st.integers(0, 99), min_size=1, max_size=30, unique=True), count=st.integers(1, 40))
def test_subsets_are_different_and_go_from_one_layer_to_all(layers, count) -> None:
    found = drawn_subsets(layers, count, seed=1)
    sizes = [len(subset) for subset in found]
    assert len(set(found)) == len(found) <= count
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert count == 1 or sizes[-1] == len(layers)
    assert all(set(subset) <= set(layers) for subset in found)
    assert found == drawn_subsets(layers, count, seed=1)


def test_another_seed_draws_others() -> None:
    assert drawn_subsets(range(20), 10, seed=0) != drawn_subsets(range(20), 10, seed=1)


@given(low_layers=st.sets(st.sampled_from(LAYERS)), low=st.integers(2, 7))
def test_only_weights_of_the_subset_are_at_the_low_bits(low_layers, low) -> None:
    full = Plan.of({Site(layer, role): Spec() for layer in LAYERS for role in ("input", "weight", "output")})
    found = mixed(full, frozenset(low_layers), low, 8)
    assert set(found) == set(full)
    assert {site.layer for site, spec in found.sites if spec.bits == low} == low_layers
    assert {site.role for site, spec in found.sites if spec.bits == low} <= {"weight"}


def test_a_design_is_the_same_after_json(store) -> None:
    found = made(store, [(0,), (0, 2)])
    assert Design.from_json(store.noted("additivity")) == found


def test_expected_is_the_sum_of_single_layers_at_their_bits(store) -> None:
    subsets = [(1,), (0, 2), (0, 1, 2)]
    asked = made(store, subsets)
    for subset in asked.subsets:
        put(store, subset.run, 1.5 * summed(subset.layers), lost=12)
    found = additivity_of(store, TOP1, level=0.95, tolerance=1.0)
    table = found.table
    assert table["layers"].tolist() == subsets
    assert (found.samples, found.wanted, table["screened"].tolist()) == (N, N, [0, 0, 0])
    np.testing.assert_allclose(table["noise_expected"], [summed(subset).mean() for subset in subsets])
    np.testing.assert_allclose(table["noise_measured"], [1.5 * summed(subset).mean() for subset in subsets])
    stderr = summed((0, 2)).std(ddof=1) / np.sqrt(N)
    assert table["noise_expected_stderr"][1] == pytest.approx(stderr, rel=0.15)
    lost = [6, 13, 19]
    np.testing.assert_allclose(table["degradation_expected"], 100 * np.array(lost) / N)
    assert table["degradation_measured"].tolist() == [6.0, 6.0, 6.0]
    exact = paired_proportions(12, 0, N).scaled(100)
    assert table["degradation_measured_low"][0] == exact.low
    assert found.noise_ratio.value == pytest.approx(1.5)
    assert found.bias_shift
    assert table["below_signal"].all()
    assert found.interaction is None
    assert np.isnan(found.screen_error)


def test_noise_beyond_the_signal_is_no_bias_shift(store) -> None:
    asked = made(store, [(0,), (0, 1, 2)])
    for subset in asked.subsets:
        put(store, subset.run, 3.0 * summed(subset.layers))
    assert additivity_of(store, TOP1, level=0.95, tolerance=1.0).bias_shift
    store._connection.execute("DELETE FROM tile WHERE run = ?", (FLOAT,))
    put(store, FLOAT, np.full(N, 1e-3))
    found = additivity_of(store, TOP1, level=0.95, tolerance=1.0)
    assert found.below_signal == 0
    assert not found.bias_shift


def test_only_images_that_every_subset_has_count(store) -> None:
    asked = made(store, [(0,), (1, 2)], samples=100)
    put(store, asked.subsets[0].run, NOISE["a", 4], images=IMAGES[:90])
    assert additivity_of(store, TOP1, level=0.95, tolerance=1.0) is None
    put(store, asked.subsets[1].run, NOISE["a", 4], images=IMAGES[:50])
    found = additivity_of(store, TOP1, level=0.95, tolerance=1.0)
    assert (found.samples, found.wanted) == (50, 100)
    assert found.table["noise_expected"][1] == pytest.approx(summed((1, 2))[:50].mean())


def test_without_an_experiment_there_is_nothing(store) -> None:
    assert additivity_of(store, TOP1, level=0.95, tolerance=1.0) is None


def test_a_cell_drawn_by_risk_stands_for_all_images(store) -> None:
    plan = weight_plan({"d": 4})
    run = store.run(plan)
    probabilities = np.linspace(0.2, 1.0, N)
    energy, lost = RNG.gamma(2.0, 1.0, N), np.arange(N) % 7 == 0
    estimates = []
    for seed in range(150):
        rows = draw(probabilities, seed)
        store.set_draw(run, Draw(IMAGES, probabilities, seed))
        store._connection.execute("DELETE FROM tile WHERE run = ?", (run,))
        statistics = (~lost[rows])[:, None].astype(float)
        store.append([TileResult(run, rows, energy[rows], np.ones(len(rows)), statistics, 0.1)])
        found = Evidence(store, TOP1, IMAGES).of(run)
        assert not found.screened
        estimates.append((found.noise.mean(), found.loss(np.ones((1, N)))[0]))
    means = np.mean(estimates, 0)
    spread = np.std(estimates, 0) / np.sqrt(len(estimates))
    np.testing.assert_array_less(np.abs(means - (energy.mean(), 100 * lost.mean())), 4 * spread)


def test_a_cell_that_was_not_run_is_screened_or_not_known(store) -> None:
    plan = weight_plan({"d": 4})
    run = store.run(plan)
    assert Evidence(store, TOP1, IMAGES).of(run) is None
    e = RNG.normal(size=(1, N, 2)).astype(np.float32)
    number = store.screen({"columns": columns_json([Column(Site("d", "weight"), Spec(bits=4), "d")]), "probes": 1})
    store.note("screen", number)
    store.append_screened(number, ScreenTile(IMAGES, np.ones((N, 1)), e, "margin"))
    store.append([], RunnerUp(IMAGES, np.ones((N, 1)), np.zeros((N, 1))))
    known = Evidence(store, TOP1, IMAGES)
    found = known.of(run)
    assert found.screened
    np.testing.assert_allclose(found.noise, np.square(e[0, :, 0]), rtol=1e-6)
    noise, _, lost = known.predicted(plan)
    assert noise == pytest.approx(found.noise.mean())
    assert found.loss(np.ones((3, N))) == pytest.approx(np.full(3, lost))
    assert 0 < lost < 100


def test_a_metric_where_less_is_better_loses_by_growing(store) -> None:
    error = PerImageScore(lambda outputs, labels: outputs, "error")
    error.higher_is_better = False
    run = store.run(weight_plan({"a": 4}))
    lost = Evidence(store, error, IMAGES).of(run).loss(np.ones((1, N)))
    assert lost[0] == pytest.approx(-LOST["a", 4] / N)  # the made-up scores fall
    assert Evidence(store, error, IMAGES).degradation(run, 0.95).value == pytest.approx(lost[0])


def scores(**e: np.ndarray) -> tuple[Scores, Plan]:
    """A screen of one weight a layer with these scores (n, R)."""
    columns = tuple(Column(Site(layer, "weight"), Spec(bits=4), layer) for layer in e)
    values = np.stack(list(e.values()))
    n = values.shape[1]
    made = Scores(columns, np.arange(n), values, np.full((len(e), n), np.nan), np.ones((n, 1)), "margin")
    return made, weight_plan(dict.fromkeys(e, 4))


def test_layers_that_push_the_same_way_are_named() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 500, 2))
    found = interaction(*scores(a=a, b=b, c=0.9 * a), level=0.95)
    assert {found.first, found.second} == {"a", "c"}
    together, alone = np.square(1.9 * a + b).mean(), (1.81 * np.square(a) + np.square(b)).mean()
    assert found.factor.value == pytest.approx(together / alone)
    assert found.share == pytest.approx(1.8 * np.square(a).mean() / together)


def test_layers_that_do_not_interact_have_a_factor_of_one() -> None:
    e = np.random.default_rng(2).normal(size=(3, 500, 2))
    found = interaction(*scores(**dict(zip("abc", e, strict=True))), level=0.95)
    assert found.first == ""
    assert found.factor.low < 1 < found.factor.high
