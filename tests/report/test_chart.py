"""A chart: what its axes hold and show, and that the page and plotly draw the same."""

import json
import math

import numpy as np
import pytest
from browser import CHROMIUM, shown
from hypothesis import given
from hypothesis import strategies as st

from quantopsy.report import figures
from quantopsy.report.chart import Axis, Chart, Group, Line, Point, Section
from quantopsy.report.palette import DARK, LIGHT, Tone, bit_tones, mix
from quantopsy.report.sheet import Sheet, write

LINEAR, LOGARITHMIC = Axis("x"), Axis("y", logarithmic=True)
numbers = st.floats(-1e30, 1e30) | st.sampled_from([math.nan, math.inf, -math.inf])


def chart(points, x=LINEAR, y=LINEAR, **options):
    return Chart("title", x, y, (Group("group", tuple(points), Tone("accent")),), **options)


@pytest.mark.parametrize("axis", [LINEAR, LOGARITHMIC])
@given(values=st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), max_size=6))
def test_the_ends_are_around_everything_that_the_axis_holds(axis, values):
    low, high = axis.ends(values)
    assert low < high
    assert axis.holds(low)
    assert all(low <= value <= high for value in values if axis.holds(value))


def test_intervals_are_within_the_axes_and_equal_axes_have_one_pair_of_ends():
    made = chart([Point(1, 2, low=-7, high=9), Point(3, 4)])
    (x0, x1), (y0, y1) = made.ends()
    assert y0 <= -7 < 9 <= y1
    assert x0 > 0
    assert x1 < 4
    both = chart([Point(1, 2), Point(30, 4)], identity="equal")
    assert both.ends()[0] == both.ends()[1]


def test_lines_decide_the_ends_only_where_there_are_no_points():
    line = Line("far", ((0, 0), (100, 100)), Tone("worse"))
    assert chart([Point(1, 1), Point(2, 2)], lines=(line,)).ends()[0][1] < 3
    assert chart([], lines=(line,)).ends()[0][1] >= 100


def test_points_that_the_axes_cannot_hold_are_left_out():
    points = [Point(1, 0.0), Point(2, math.nan), Point(3, 5.0, low=-1, high=7), Point(math.inf, 1.0)]
    shown = chart(points, y=LOGARITHMIC).to_json()["groups"][0]["points"]
    assert [(p["x"], p["y"], p["low"]) for p in shown] == [(3.0, 5.0, -1.0)]
    assert chart(points[:2], y=LOGARITHMIC).to_json()["groups"] == []


@given(points=st.lists(st.builds(Point, numbers, numbers, numbers, numbers), max_size=4), log=st.booleans())
def test_whatever_the_numbers_the_page_gets_strict_json(points, log):
    lines = (Line("", tuple((point.x, point.y) for point in points), Tone("noise")),)
    json.dumps(chart(points, y=Axis("y", log), lines=lines).to_json(), allow_nan=False)


def test_equality_needs_axes_of_one_kind():
    with pytest.raises(ValueError, match="both axes are of one kind"):
        chart([], y=LOGARITHMIC, identity="equal")


def test_plotly_shows_the_same_points_intervals_and_lines():
    made = chart(
        [Point(1, 2, 1.5, 2.25, title="<b>\nsecond"), Point(2, 0.5, hollow=True)],
        x=Axis("across"),
        y=Axis("along", True),
        lines=(Line("fit", ((1, 1), (2, 4)), Tone("worse"), dashed=True),),
        hollow="rough",
    )
    line, points = figures.chart(made).data
    assert (list(line.x), list(line.y), line.line.dash) == ([1, 2], [1, 4], "dash")
    assert (list(points.x), list(points.y)) == ([1, 2], [2, 0.5])
    assert points.error_y.array[0] == 0.25
    assert points.error_y.arrayminus[0] == 0.5
    assert list(points.marker.symbol) == ["circle", "diamond-open"]
    assert points.hovertext[0] == "&lt;b&gt;<br>second"
    layout = figures.chart(made).layout
    np.testing.assert_allclose(layout.yaxis.range, np.log10(made.ends()[1]))
    assert layout.yaxis.type == "log"
    assert "open diamonds: rough" in layout.title.text


def test_a_tone_is_one_colour_in_both_schemes_and_on_the_page():
    tone = Tone("accent", "worse", 0.5)
    assert tone.of(LIGHT) == mix(LIGHT.accent, LIGHT.worse, 0.5)
    assert Tone("noise").of(DARK) == DARK.noise
    assert tone.css == "color-mix(in oklab,var(--worse) 50%,var(--accent))"
    with pytest.raises(ValueError, match="not of the palette"):
        Tone("pink")


def test_the_finest_bits_are_calm_and_the_coarsest_alarming():
    tones = bit_tones((3, 8, 5))
    assert list(tones) == [8, 5, 3]
    assert [tone.of(LIGHT) for tone in tones.values()] == [
        LIGHT.accent,
        mix(LIGHT.accent, LIGHT.worse, 0.5),
        LIGHT.worse,
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(
    ("x", "values", "marks"),
    [
        (Axis("epoch", whole=True), (0.0, 1.0, 2.0), {"0", "1", "2"}),
        (Axis("noise", logarithmic=True), (0.32, 0.41), {"0.32", "0.34", "0.36", "0.38", "0.4"}),
    ],
)
def test_axes_have_whole_marks_where_they_count_and_never_one_alone(tmp_path, x, values, marks):
    made = chart([Point(value, 0) for value in values], x, Axis("", names=("one",)))
    page = Sheet("heading", (), "lead", sections=(Section("key", "section", charts=(made,)),))
    text = set(shown(write(page, tmp_path / "page.html")).text)
    assert marks <= text
    assert not {"0.5", "1.5"} & text
