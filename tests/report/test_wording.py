"""Numbers as people write them."""

import math

import pytest

from quantopsy.report.palette import DARK, LIGHT, contrast, mix, ramp, strong_from
from quantopsy.report.wording import MINUS, duration, elide, fixed, flattened, interval, percent, si, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (54.12, "54.1"),
        (0.04567, "0.0457"),
        (12345.6, "12300"),
        (1.5e-7, f"1.50e{MINUS}7"),
        (-3.14159, f"{MINUS}3.14"),
        (0.0009996, "0.00100"),
        (999.7, "1000"),
        (float("nan"), "\N{EM DASH}"),
    ],
)
def test_significant_digits(value, text):
    assert significant(value) == text


def test_no_negative_zero():
    assert fixed(-0.04, 1) == "0.0"
    assert fixed(-0.06, 1) == f"{MINUS}0.1"


@pytest.mark.parametrize(("value", "text"), [(12.34e6, "12.3 M"), (999_600, "1.00 M"), (0, "0"), (576, "576")])
def test_si(value, text):
    assert si(value) == text


def test_shares_do_not_round_to_all_or_nothing():
    assert [percent(x) for x in (0, 0.001, 0.5, 0.999, 1)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]


def test_durations():
    assert [duration(x) for x in (1.234, 42, 185, 7800)] == ["1.2 s", "42 s", "3 min 5 s", "2 h 10 min"]


@pytest.mark.parametrize("width", [1, 2, 5, 9, 30])
def test_names_lose_their_middle(width):
    short = elide("features.stem.conv", width)
    assert len(short) == min(width, 18)
    assert width < 9 or (short.startswith("fea") and short.endswith("onv"))


def test_an_interval_that_is_not_known_is_empty():
    assert interval(math.nan, 1.0, 1) == ""


def test_of_a_single_image_an_interval_has_no_ends():
    inf = float("inf")
    assert interval(-inf, inf, 2) == f"{MINUS}\N{INFINITY} to \N{INFINITY}"
    assert interval(inf, inf, 2) == ""  # decibels of nothing


def test_settings_flatten_by_dots():
    values = {"bits": [8, 4], "changes": {"range": "min_max"}, "fresh": False, "layers": []}
    assert dict(flattened(values)) == {"bits": "8, 4", "changes.range": "min_max", "fresh": "false", "layers": "none"}


@pytest.mark.parametrize("palette", [LIGHT, DARK])
@pytest.mark.parametrize("name", ["worse", "better", "noise"])
def test_numbers_are_legible_on_every_colour(palette, name):
    full = getattr(palette, name)
    turn = strong_from(palette, full)
    for step in range(101):
        ink = palette.strong if step / 100 >= turn else palette.faint
        assert contrast(ink, mix(palette.zero, full, step / 100)) >= 4.5


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_words_are_legible(palette):
    for ink in (palette.ink, palette.muted, palette.accent, palette.worse, palette.better):
        assert contrast(ink, palette.page) >= 4.5
        assert contrast(ink, palette.surface) >= 4.5


def test_a_ramp_goes_through_its_stops():
    scale = ramp("#0000ff", "#ffffff", "#ff0000", steps=4)
    assert scale[0] == (0.0, "#0000ff")
    assert scale[4] == (0.5, "#ffffff")
    assert scale[-1] == (1.0, "#ff0000")
