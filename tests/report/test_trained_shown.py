"""A training's page: what is drawn of it."""

from __future__ import annotations

from types import SimpleNamespace

from quantopsy.report.trained import levels_charts
from quantopsy.training.result import Levels

EVEN, UNEVEN = (-0.30000001, -0.1, 0.1, 0.3), (-0.4, -0.1, 0.1, 0.3)


def levels(name: str, after: tuple[float, ...]) -> Levels:
    return Levels(name, 2, (-0.5, 0.0, 0.5), (10, 12), EVEN, after)


def test_only_levels_that_have_moved_are_drawn() -> None:
    done = SimpleNamespace(levels=(levels("still", EVEN), levels("moved", UNEVEN)))
    assert [chart.title for chart in levels_charts(done)] == ["moved, 2 bits"]
    assert levels_charts(SimpleNamespace(levels=(levels("still", EVEN),))) == ()
