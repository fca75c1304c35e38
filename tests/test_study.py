"""The store: append-only, whole tiles or nothing, and never another experiment's numbers."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.study import (
    FILE,
    FLOAT,
    Cost,
    Draw,
    RunnerUp,
    ScreenTile,
    TileResult,
    create,
    open_existing,
    open_or_create,
)

PLAN = Plan.of({Site("conv", "weight"): Spec(bits=4)})


def tile(run: int, images: list[int], width: int = 1) -> TileResult:
    """A result whose numbers say which image they are of."""
    numbers = np.asarray(images, dtype=np.float64)
    return TileResult(run, np.asarray(images), numbers, numbers / 10, np.tile(numbers[:, None], width), 0.5)


def test_results_come_back_by_image(tmp_path) -> None:
    with create(tmp_path, {"model": "a"}) as store:
        run = store.run(PLAN)
        store.append([tile(FLOAT, [4, 0]), tile(run, [4, 0], 3)])
        store.append([tile(run, [7, 2], 3)])
        result = store.result(run)
        assert result.images.tolist() == [0, 2, 4, 7]
        assert result.energy.tolist() == [0, 2, 4, 7]
        assert result.statistics.shape == (4, 3)
        assert result.seconds == 1.0
        assert result.on(np.array([2, 7])).agreement.tolist() == [0.2, 0.7]
        assert store.images(FLOAT).tolist() == [0, 4]
        assert store.result(store.run(Plan.of({Site("x", "input"): Spec()}))) is None


def test_equal_plans_share_a_run(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        assert store.run(PLAN) == store.run(Plan.of(dict(PLAN.sites)))
        assert store.run(PLAN) != store.run(Plan.of({Site("conv", "weight"): Spec(bits=5)}))
        assert store.run(Plan()) == FLOAT


def test_a_tile_is_committed_whole_or_not_at_all(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        run = store.run(PLAN)

        def failing():
            yield tile(run, [1])
            raise RuntimeError("killed in the middle")

        with pytest.raises(RuntimeError):
            store.append(failing())
        assert store.images(run).tolist() == []


def test_another_experiment_is_refused_with_the_difference_named(tmp_path) -> None:
    create(tmp_path, {"model": "a", "metric": "top1"}).close()
    with pytest.raises(QuantopsyError, match=r"model was a, now b.*--fresh"):
        open_or_create(tmp_path, {"model": "b", "metric": "top1"}, fresh=False)
    with open_or_create(tmp_path, {"model": "a", "metric": "top1"}, fresh=False) as store:
        store.append([tile(FLOAT, [1])])
    with open_or_create(tmp_path, {"model": "b"}, fresh=True) as store:
        assert store.images(FLOAT).tolist() == []


def test_damaged_or_absent_studies_are_named(tmp_path) -> None:
    with pytest.raises(QuantopsyError, match=r"has no study.sqlite"):
        open_existing(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(QuantopsyError, match=r"cannot be opened|is damaged"):
        open_existing(tmp_path)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        run = store.run(PLAN)
        store.append([tile(run, [0])])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(QuantopsyError, match=r"cannot be written .*full.*run the same command again"):
            store.append([tile(run, list(range(1, 20000)), 20)])
        assert store.images(run).tolist()[0] == 0
    assert sqlite3.connect(tmp_path / FILE).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def screen_tile(images: list[int], probes: int = 2, margins: int = 1, kind: str = "margin") -> ScreenTile:
    """Scores of two columns that say which image, column and probe they are of."""
    numbers = np.asarray(images, dtype=np.float64)
    e = numbers[None, :, None] + 1000 * np.arange(2)[:, None, None] + 100 * np.arange(probes)
    return ScreenTile(np.asarray(images), np.tile(numbers[:, None], margins), e, kind)


DESIGN = {"columns": [["a", "weight", {"bits": 4}, "w"], ["b", "weight", {"bits": 4}, "v"]], "probes": 1, "seed": 0}


def test_scores_of_the_screen_come_back_tile_by_tile(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        number = store.screen(DESIGN)
        tiles = [screen_tile([5, 1], 2), screen_tile([0, 2, 4], 1, 0, "none"), screen_tile([3], 2, 32, "pixel margins")]
        for each in tiles:
            store.append_screened(number, each)
    with open_existing(tmp_path) as store:
        assert store.screen_design(number) == DESIGN
        found = store.screened(number)
        assert store.screened_images(number).tolist() == [0, 1, 2, 3, 4, 5]
        assert [each.kind for each in found] == ["margin", "none", "pixel margins"]
        for one, other in zip(found, tiles, strict=True):
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.e, other.e)
            assert one.e.dtype == np.float32
            np.testing.assert_array_equal(one.margins, other.margins)


def test_a_screen_of_another_design_is_another_screen(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        number = store.screen(DESIGN)
        assert store.screen(dict(reversed(DESIGN.items()))) == number
        other = store.screen({**DESIGN, "seed": 1})
        assert other != number
        store.append_screened(number, screen_tile([0]))
        assert store.screened(other) == []
        assert store.screened_images(other).tolist() == []


def test_runners_up_come_back_by_image(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        assert store.runner_up() is None
        for images in ([4, 0], [2]):
            numbers = np.asarray(images, dtype=np.float64)[:, None]
            store.append([tile(FLOAT, images)], RunnerUp(np.asarray(images), np.tile(numbers, 3), numbers / 3))
        found = store.runner_up()
        assert found.images.tolist() == [0, 2, 4]
        np.testing.assert_array_equal(found.gaps, np.tile([[0], [2], [4]], 3))
        np.testing.assert_array_equal(found.statistics[:, 0], np.array([0, 2, 4]) / 3)


def test_runners_up_may_have_no_columns_at_all(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        store.append([tile(FLOAT, [1, 0])], RunnerUp(np.array([1, 0]), np.empty((2, 0)), np.empty((2, 0))))
        found = store.runner_up()
        assert found.images.tolist() == [0, 1]
        assert found.gaps.shape == found.statistics.shape == (2, 0)


def test_of_draws_the_newest_counts_until_it_is_forgotten(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        run = store.run(PLAN)
        assert store.draw(run) is None
        store.set_draw(run, Draw(np.array([0, 3]), np.array([0.5, 1.0]), 1))
        store.set_draw(run, Draw(np.array([0, 3, 7]), np.array([0.1, 0.2, 1 / 3]), 2))
        found = store.draw(run)
        assert found.images.tolist() == [0, 3, 7]
        assert found.probabilities.tolist() == [0.1, 0.2, 1 / 3]
        assert found.seed == 2
        store.forget_draw(run)
        store.forget_draw(run)
        assert store.draw(run) is None


def test_costs_are_kept_in_order(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        store.spend(Cost("float", 32, 0.5, 0.015))
        store.spend(Cost("screen", 16, 2.0, 0.02))
        assert store.costs() == [("float", 32, 0.5, 0.015), ("screen", 16, 2.0, 0.02)]


def test_a_study_of_an_older_format_is_refused(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        store.note("version", 1)
    with pytest.raises(QuantopsyError, match=r"was written in format 1, not \d; start again with --fresh"):
        open_existing(tmp_path)
