"""The store: append-only, whole tiles or nothing, and never another experiment's numbers."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.study import FILE, FLOAT, TileResult, create, open_existing, open_or_create

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
