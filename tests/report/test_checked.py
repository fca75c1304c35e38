"""What a check says on the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import sample_models
from rich.console import Console

import quantopsy as qp
from quantopsy.graph.network import Unquantized
from quantopsy.report.checked import cautions, print_checked, statements
from quantopsy.report.wording import shape


@pytest.fixture(scope="module")
def checked():
    return qp.check(sample_models.network(), sample_models.data())


def printed(checked, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_checked(checked, console)
    return console.file.getvalue()


def test_the_words_have_the_numbers(checked) -> None:
    told = replace(checked, images=400, pass_seconds=2.0, gib=0.25)
    first, metric, values, cost = statements(told)
    assert "100 %" in first
    assert metric == "Float top1 on 40 of 400 images: 75.0 (59.8 to 85.8) points."  # Wilson's interval of 30 of 40
    assert values.startswith(f"Input `x` ({shape((3, 12, 12))}) holds values from ")
    assert "takes 2.0 s on cpu" in cost
    assert "0.25 GiB" in cost
    assert cautions(told) == []


def test_costs_are_passes_times_what_one_takes(checked) -> None:
    text = printed(replace(checked, passes={"screen": 8.0, "auto": 30.0, "exact": 330.0}, pass_seconds=60.0), 80)
    costs = [line.split() for line in text.splitlines() if line.split()[:1] and line.split()[0] in checked.passes]
    assert costs == [
        ["screen", "8", "min", "0", "s", "8"],
        ["auto", "at", "most", "30", "min", "0", "s", "at", "most", "30"],
        ["exact", "5", "h", "30", "min", "330"],
    ]


def test_what_limits_an_analysis_is_said(checked) -> None:
    network = replace(checked.network, unquantized=(Unquantized("head", "aten.cumsum", "model.py:3"),))
    doubtful = replace(
        checked, network=network, at_chance="float top1 is a guess", images=7, bad=("a.jpg: no picture",)
    )
    floats, chance, few, bad = cautions(doubtful)
    assert floats.endswith("1 operator, listed below.")
    assert chance == "Float top1 is a guess."
    assert few.startswith("7 images cannot tell")
    assert "a.jpg: no picture" in bad
    assert "cumsum" in printed(doubtful, 80)
    assert "model.py:3" in printed(doubtful, 80)


@pytest.mark.parametrize("width", [80, 160])
def test_no_line_is_wider_than_the_terminal(checked, width) -> None:
    assert max(map(len, printed(checked, width).splitlines())) <= width
