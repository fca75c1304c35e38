"""How often a float pass is timed beside the work, on a made-up clock."""

from __future__ import annotations

import pytest

from quantopsy.analysis.pace import FIRST, WORK_PER_PASS, Pace


class Clock:
    """An engine whose float pass takes as long as it is told."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.timed: list[float] = []

    def float_pass(self, inputs: object) -> tuple[tuple[()], float]:
        self.timed.append(self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0])
        return (), self.timed[-1]


def test_the_first_pass_of_a_process_does_not_count() -> None:
    clock = Clock(9.0, 2.0)
    assert Pace(clock).beside(None, 10) == pytest.approx(0.2)
    assert len(clock.timed) == FIRST


def test_a_pass_is_timed_again_once_enough_was_done() -> None:
    clock = Clock(*[2.0] * FIRST, 6.0)
    pace = Pace(clock)
    pace.beside(None, 10)
    pace.worked(0.9 * WORK_PER_PASS * 2.0)
    assert pace.beside(None, 10) == pytest.approx(0.2)
    assert len(clock.timed) == FIRST
    pace.worked(0.2 * WORK_PER_PASS * 2.0)
    assert pace.beside(None, 20) == pytest.approx(0.3)
    assert len(clock.timed) == FIRST + 1
    assert pace.beside(None, 20) == pytest.approx(0.3)


@pytest.mark.parametrize("tile", [0.5, 8.0, 70.0])
def test_timing_costs_a_small_share_of_long_work(tile) -> None:
    clock = Clock(1.0)
    pace = Pace(clock)
    for _ in range(1000):
        pace.beside(None, 1)
        pace.worked(tile)
    assert sum(clock.timed) <= FIRST + 1000 * tile / WORK_PER_PASS
    assert len(clock.timed) >= FIRST + 1000 * tile / (WORK_PER_PASS + tile) - 1
