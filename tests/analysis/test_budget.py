"""Budgets: how they are written, and what has been spent."""

from __future__ import annotations

import math

import pytest

from quantopsy.analysis.budget import Budget, pass_seconds, passes_spent
from quantopsy.core import QuantopsyError
from quantopsy.study import Cost, create


@pytest.mark.parametrize(
    ("text", "seconds", "passes"),
    [
        ("90s", 90, None),
        ("10m", 600, None),
        ("1.5h", 5400, None),
        (" 2 m ", 120, None),
        ("30", None, 30),
        ("30p", None, 30),
        ("12.5 passes", None, 12.5),
    ],
)
def test_a_budget_is_a_time_or_a_number_of_passes(text, seconds, passes) -> None:
    assert Budget.parse(text) == Budget(seconds=seconds, passes=passes)


@pytest.mark.parametrize("text", ["", "m", "0", "0s", "-3", "10 minutes", "1e3", "ten", "5d", "30 p s", "٣", "nan"])
def test_anything_else_is_one_line_with_the_forms_that_are_meant(text) -> None:
    with pytest.raises(QuantopsyError, match=r"budget .*is no time and no number of passes; write 10m, 90s, 1h or 30"):
        Budget.parse(text)


def test_a_budget_reads_as_it_is_meant() -> None:
    assert [str(Budget.parse(text)) for text in ("90s", "45s", "2h", "30")] == [
        "1.5 min",
        "45 s",
        "120 min",
        "30 passes",
    ]


def test_passes_are_counted_in_the_float_passes_of_their_own_moment(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        assert pass_seconds(store) is None
        assert math.isnan(passes_spent(store, 100))
        store.spend(Cost("float", 10, 1.0, 0.1))
        assert passes_spent(store, 100) == 0.0
        store.spend(Cost("float", 10, 9.0, 0.9))  # a busy moment: the median does not care
        store.spend(Cost("float", 20, 2.0, 0.1))
        assert pass_seconds(store) == pytest.approx(0.1)
        store.spend(Cost("screen", 50, 20.0, 0.1))
        store.spend(Cost("screen", 50, 180.0, 0.9))  # the work takes as much longer as a pass does
        store.spend(Cost("exact", 50, 5.0, 0.1))
        assert passes_spent(store, 100) == pytest.approx(4.5)


def test_what_a_pass_takes_is_of_the_newest_tiles(tmp_path) -> None:
    with create(tmp_path, {}) as store:
        for pace in (0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1):
            store.spend(Cost("float", 10, 10 * pace, pace))
        assert pass_seconds(store) == pytest.approx(0.1)
