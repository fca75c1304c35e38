"""A table of schemes in words, on the terminal and as a page."""

from __future__ import annotations

import io
from dataclasses import replace

import pandas as pd
import pytest
from browser import CHROMIUM, parsed, shown
from made_up import NASTY
from rich.console import Console

from quantopsy.analysis.results import EVALUATION_IMAGES
from quantopsy.analysis.scheme_table import COLUMNS, QUESTION_COLUMNS, QUESTIONS, SchemeTable
from quantopsy.analysis.schemes import WHOLE_NETWORK_SCHEMES
from quantopsy.report.figures import chart as drawn
from quantopsy.report.schemes import cautions, chart, page, print_schemes, statements, write
from quantopsy.report.sheet import render

LOST = (54.2, -0.3, 0.9, 0.1, 54.8, 0.3, 0.9)


@pytest.fixture
def table() -> SchemeTable:
    """A MobileNet: nothing left per tensor, activations harmless, the others undecided."""
    rows = [
        (
            name, 8 if "weight" in specs else None, 8 if "input" in specs else None, 97.6 - lost, lost, lost - 1.4,
            lost + 1.3, "hurts" if lost > 50 else "harmless" if name == "activations only" else "undecided",
            10.0, 1.0, 15.2, 0.9, 330, 4.0,
        )
        for (name, specs), lost in zip(WHOLE_NETWORK_SCHEMES.items(), LOST, strict=True)
    ]  # fmt: skip
    changes = {"granularity": (-54.5, "better"), "symmetry": (1.2, "undecided"), "activations": (-0.6, "unchanged")}
    questions = [
        (name, *QUESTIONS[name], 8, change, change - 0.2, change + 0.3, told)
        for name, (change, told) in changes.items()
    ]
    return SchemeTable(
        model="zoo:mobilenet_v2_10",
        data="photographs",
        metric="top1",
        unit="points",
        float_value=97.6,
        float_low=95.3,
        float_high=98.8,
        samples=330,
        schemes=pd.DataFrame(rows, columns=list(COLUMNS)).astype({"weight_bits": "Int64", "activation_bits": "Int64"}),
        questions=pd.DataFrame(questions, columns=list(QUESTION_COLUMNS)),
        settings={"bits": [8], "calibration": "others"},
        tolerance=1.0,
        seconds=36.0,
    )


def test_the_values_stand_side_by_side_then_who_loses(table) -> None:
    values, verdicts, *_ = statements(table)
    assert values == (
        "top1 is 97.6 % in float (95 % interval 95.3 to 98.8, 330 images); at 8 bits 43.4 % asymmetric per tensor, "
        "97.9 % symmetric per channel, 96.7 % asymmetric per channel, 97.5 % activations only."
    )
    assert "2 are certain to lose top1: asymmetric per tensor; weights only, asymmetric per tensor" in verdicts
    assert "1 is harmless, losses above 1.0 points ruled out: activations only" in verdicts
    assert verdicts.endswith("4 are undecided.")


def test_what_granularity_symmetry_and_activations_do(table) -> None:
    granularity, symmetry, activations = statements(table)[2:]
    assert "per channel instead of per tensor, at 8 bits, saves 54.5 points (95 % interval 54.2 to 54.7)" in granularity
    assert "makes no difference that can be told: 1.2 points more is lost" in symmetry
    assert "makes no difference that matters: 0.6 points less is lost" in activations


def test_what_limits_it_is_said(table) -> None:
    assert cautions(table) == []
    assert any("stopped" in text for text in cautions(replace(table, complete=False)))
    on_evaluation = replace(table, settings={**table.settings, "calibration": EVALUATION_IMAGES})
    assert any("--calibration" in text for text in cautions(on_evaluation))


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(table, width) -> None:
    stream = io.StringIO()
    print_schemes(table, Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert all(name.split(",")[0] in text for name in WHOLE_NETWORK_SCHEMES)
    assert ("SQNR" in text) == (width == 120)
    assert "W8A8" in text


def test_the_chart_has_float_and_every_scheme_with_its_interval(table) -> None:
    shown_chart = chart(table)
    assert len(shown_chart.x.names) == 8
    points = {int(point.x): point for group in shown_chart.groups for point in group.points}
    assert sorted(points) == list(range(8))
    assert points[1].y == pytest.approx(43.4)
    assert (points[1].low, points[1].high) == pytest.approx((97.6 - 55.5, 97.6 - 52.8))
    axis = drawn(shown_chart).layout.xaxis
    assert axis.ticktext[0] == "float"
    assert "<br>" in axis.ticktext[-1]


def test_where_lower_is_better_the_interval_is_above(table) -> None:
    schemes = table.schemes.assign(value=lambda rows: 97.6 + rows["degradation"])
    point = next(p for g in chart(replace(table, schemes=schemes)).groups for p in g.points if p.x == 1.0)
    assert point.low < point.y < point.high


def test_the_page_has_the_table_and_escapes_names(table) -> None:
    document = parsed(render(page(replace(table, model=NASTY, data=NASTY))))
    assert [tag for tag, _ in document.tags].count("script") == 3
    assert NASTY in "".join(document.text)
    assert all(name in document.text for name in WHOLE_NETWORK_SCHEMES)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_its_script_names_the_schemes(table, tmp_path) -> None:
    done = shown(write(table, tmp_path / "page.html"))
    assert done.body.get("data-ready") == "true"
    assert "data-error" not in done.body
    assert sum(attributes.get("class") == "point" for _, attributes in done.tags) == 8
    assert done.text.count("asymmetric per tensor") == 3  # twice below the chart, once in the table
