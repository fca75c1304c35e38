"""Verdicts on every cell of a study, from made-up measurements and scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from quantopsy.analysis.assessment import Assessment, assess, expectations, tolerance_of, within
from quantopsy.analysis.screening import columns_json
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.engine.screen import Column
from quantopsy.metrics import Metric, PerImageScore, TopK
from quantopsy.study import FLOAT, Draw, RunnerUp, ScreenTile, Store, TileResult, create

TOP1 = TopK(1)
N = 400
BITS = (2, 3, 4, 6, 8)
IMAGES = np.arange(N)


def plan_of(layer: str, bits: int) -> Plan:
    return Plan.of({Site(layer, "weight"): Spec(bits=bits)})


def put(store: Store, run: int, lost: int, images: np.ndarray = IMAGES) -> None:
    """Measure ``run``: the first ``lost`` images lose."""
    statistics = (images >= lost)[:, None].astype(float)
    store.append([TileResult(run, images, np.ones(len(images)), statistics[:, 0], statistics, 0.1)])


@pytest.fixture
def store(tmp_path: Path):
    """A study whose float network has been measured."""
    with create(tmp_path / "study", {}) as made:
        made.note("order", IMAGES.tolist())
        put(made, FLOAT, 0)
        yield made


def ladder(store: Store, layer: str = "a") -> dict[int, int]:
    """Runs by bit-width, from the lowest up."""
    return {bits: store.run(plan_of(layer, bits)) for bits in BITS}


def look(store: Store, *ladders: Iterable[int], tolerance: float = 1.0, metric: Metric = TOP1) -> Assessment:
    """The assessment of ladders of runs at the usual level."""
    runs = [list(each) for each in ladders]
    plans = {run: store.plan(run) for each in runs for run in each}
    expected = expectations(store, metric, plans)
    return assess(store, metric, plans, runs, expected, level=0.95, tolerance=tolerance)


def screen(store: Store, runs: dict[int, int], sizes: dict[int, float], layer: str = "a") -> None:
    """Screen with changes of normal size by bit-width, margins around one."""
    rng = np.random.default_rng(0)
    columns = [Column(Site(layer, "weight"), Spec(bits=bits), "w") for bits in runs]
    gaps = rng.gamma(4.0, 0.25, (N, 1))
    store.append(
        [
            TileResult(
                store.run(Plan.of({Site("z", "weight"): Spec()})), IMAGES[:1], *np.zeros((2, 1)), np.zeros((1, 1)), 0.0
            )
        ],
        RunnerUp(IMAGES, gaps, np.zeros((N, 1))),
    )
    e = np.stack([sizes[bits] * rng.normal(size=(N, 2)) for bits in runs])
    number = store.screen({"columns": columns_json(columns), "probes": 1})
    store.note("screen", number)
    store.append_screened(number, ScreenTile(IMAGES, gaps, e, "margin"))


def test_the_float_network_comes_first(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        store.note("order", [0, 1])
        with pytest.raises(QuantopsyError, match=r"study .*float was not measured; run the same `quantopsy analyze`"):
            look(store, ladder(store).values())


def test_what_hurts_hurts_at_every_lower_bit_width(store) -> None:
    runs = ladder(store)
    put(store, runs[4], 100)
    found = look(store, runs.values())
    assert [found.verdict(runs[bits]) for bits in BITS] == ["hurts", "hurts", "hurts", "undecided", "undecided"]
    assert [found.open(runs[bits]) for bits in BITS] == [False, False, False, True, True]
    assert [found.found_by(runs[bits]) for bits in BITS] == [*[runs[4]] * 3, runs[6], runs[8]]


def test_what_was_measured_and_is_harmless_is_so_at_every_higher_bit_width(store) -> None:
    runs = ladder(store)
    put(store, runs[4], 0)
    wide = look(store, runs.values(), tolerance=5.0)
    assert [wide.verdict(runs[bits]) for bits in BITS] == ["undecided", "undecided", *["harmless"] * 3]
    assert not wide.open(runs[8])


def test_one_layer_says_nothing_of_another(store) -> None:
    first, second = ladder(store, "a"), ladder(store, "b")
    put(store, first[8], 100)
    found = look(store, first.values(), second.values())
    assert found.verdict(first[2]) == "hurts"
    assert {found.verdict(run) for run in second.values()} == {"undecided"}


def test_a_measurement_of_its_own_goes_before_what_others_imply(store) -> None:
    runs = ladder(store)
    put(store, runs[8], 100)
    put(store, runs[2], 0)
    found = look(store, runs.values(), tolerance=5.0)
    assert found.verdict(runs[2]) == "harmless"
    assert found.verdict(runs[8]) == "hurts"
    assert [found.found_by(runs[bits]) for bits in BITS] == [runs[2], *[runs[8]] * 4]


def test_a_layer_without_weights_is_one_run_of_all_bit_widths(store) -> None:
    run = store.run(Plan.of({Site("pool", "output"): Spec()}))
    put(store, run, 100)
    found = look(store, [run] * 5)
    assert found.verdict(run) == "hurts"
    assert not found.open(run)


def test_the_screen_settles_what_is_far_from_any_border(store) -> None:
    runs = ladder(store)
    screen(store, runs, {2: 3.0, 3: 1.0, 4: 0.4, 6: 0.05, 8: 1e-4})
    found = look(store, runs.values())
    assert set(found.expected) == set(runs.values())
    assert found.verdict(runs[2]) == "hurts"
    assert found.standing[runs[2]] == "hurts"
    losses = [found.expected[runs[bits]].outlook.lost for bits in BITS]
    assert losses == sorted(losses, reverse=True)
    noises = [found.expected[runs[bits]].noise for bits in BITS]
    assert noises == sorted(noises, reverse=True)
    assert all(0.0 <= found.expected[run].agreement <= 1.0 for run in runs.values())


def test_noise_of_nothing_is_never_settled_by_the_screen(store) -> None:
    runs = ladder(store)
    screen(store, runs, {2: 3.0, 3: 1.0, 4: 0.4, 6: 0.05, 8: 0.0})
    found = look(store, runs.values())
    assert runs[8] not in found.standing
    assert not found.expected[runs[8]].linear


def test_a_measured_loss_teaches_the_prediction_of_its_neighbours(store) -> None:
    runs = ladder(store)
    screen(store, runs, {2: 3.0, 3: 0.9, 4: 0.8, 6: 0.05, 8: 1e-4})
    before = look(store, runs.values()).predicted[runs[4]]
    put(store, runs[3], 5)  # far fewer than predicted
    after = look(store, runs.values()).predicted[runs[4]]
    assert after.value == before.value  # the estimate itself stays what the screen said
    assert after.low < before.low


def test_a_draw_by_risk_counts_only_once_all_of_it_is_there(store) -> None:
    runs = ladder(store)
    p = np.full(N, 0.5)
    store.set_draw(runs[4], Draw(IMAGES, p, 7))
    kept = IMAGES[np.random.default_rng(7).random(N) < p]
    put(store, runs[4], 100, kept[: len(kept) // 2])
    assert runs[4] not in look(store, runs.values()).measured
    put(store, runs[4], 100, kept[len(kept) // 2 :])
    found = look(store, runs.values()).measured[runs[4]]
    assert found.samples == len(kept)
    assert found.degradation.value == pytest.approx(25.0, abs=6.0)


def test_only_images_that_are_asked_for_count(store) -> None:
    runs = ladder(store)
    put(store, runs[4], 100)
    store.note("order", list(range(0, N, 2)))
    found = look(store, runs.values())
    assert len(found.reference.images) == N // 2
    assert found.measured[runs[4]].samples == N // 2
    result = store.result(FLOAT)
    assert within(result, np.array([N + 5])) is None
    assert within(None, IMAGES) is None


def test_the_smallest_certain_loss_is_one_that_is_certain(store) -> None:
    runs = ladder(store)
    found = look(store, runs.values())
    certain = round(found.smallest_certain_loss / 100 * N)
    put(store, runs[2], certain)
    put(store, runs[3], certain - 1)
    again = look(store, runs.values())
    assert again.measured[runs[2]].degradation.low > 0
    assert again.measured[runs[2]].verdict == "hurts"
    assert again.measured[runs[3]].verdict == "undecided"


def test_the_tolerance_is_a_point_or_a_hundredth() -> None:
    assert tolerance_of(TOP1, 70.0) == 1.0
    assert tolerance_of(PerImageScore(lambda outputs, labels: outputs, "loss"), -3.0) == pytest.approx(0.03)


@pytest.mark.parametrize(("score", "known"), [(1.0, True), (0.7, False)])
def test_what_a_score_of_the_users_own_loses_is_predicted_only_where_it_is_right_or_wrong(
    tmp_path, score, known
) -> None:
    with create(tmp_path / "study", {}) as store:
        store.note("order", IMAGES.tolist())
        statistics = np.full((N, 1), score)
        store.append([TileResult(FLOAT, IMAGES, np.ones(N), statistics[:, 0], statistics, 0.1)])
        runs = ladder(store)
        screen(store, runs, dict.fromkeys(BITS, 0.5))
        found = look(store, runs.values(), metric=PerImageScore(lambda outputs, labels: outputs, "mine"))
    assert len(found.predicted) == len(BITS)
    assert all(np.isfinite(predicted.value) == known for predicted in found.predicted.values())
    assert all(expected.noise > 0 for expected in found.expected.values())
