"""What the figures show, checked on made-up results."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import NASTY, SIGNAL, make_results, nasty_results, screened_results, set_cell

from quantopsy.core import QuantopsyError
from quantopsy.report import figures
from quantopsy.report.distributions import channels, histogram, ranges
from quantopsy.report.grid import cell_text, degradation_limit, grid, noise_limits


def test_the_grid_has_a_row_per_bit_width_and_a_column_per_layer(results):
    cells = grid(results)
    assert cells.bits == (8, 7, 6, 5, 4, 3)
    assert cells.layers == tuple(range(20))
    assert (cells.degradation[:, 5] == 54.1).all()
    assert cells.degradation[0, 9] == -0.9
    assert cells.noise[0, 5] == 30.0
    assert cells.sqnr_db[0, 5] == pytest.approx(10 * np.log10(SIGNAL / 30.0))
    assert not cells.screened.any()


def test_unmeasured_cells_are_holes(results):
    partial = replace(results, cells=results.cells[results.cells["layer"] != 2])
    cells = grid(partial)
    assert np.isnan(cells.degradation[:, 2]).all()
    assert not cells.screened[:, 2].any()


def test_colour_saturates_at_five_points_or_robustly(results):
    assert degradation_limit(results) == 5
    in_shares = replace(results, unit="", cells=results.cells.assign(degradation=results.cells["degradation"] / 100))
    assert 0.01 <= degradation_limit(in_shares) <= 1
    nothing = replace(results, unit="", cells=results.cells.assign(degradation=np.nan))
    assert degradation_limit(nothing) == 1


def test_noise_limits_survive_no_noise(results):
    assert noise_limits(replace(results, cells=results.cells.assign(noise=0.0))) == (0, 1)
    bottom, top = noise_limits(results)
    assert top == pytest.approx(np.log10(results.cells["noise"].max()))
    assert bottom >= top - 8


@pytest.mark.parametrize(
    ("value", "text"),
    [(54.1, "54"), (0.04, "0"), (-0.04, "0"), (0.26, "0.3"), (-0.9, "\N{MINUS SIGN}0.9"), (float("nan"), "")],
)
def test_numbers_in_cells_are_short(value, text):
    assert cell_text(value, 5) == text


def test_heatmap_writes_numbers_only_where_they_fit(results):
    assert [trace.mode for trace in figures.heatmap(results).data[1:]] == ["text", "markers"]
    assert [trace.mode for trace in figures.heatmap(make_results(150)).data[1:]] == ["markers"]


def test_heatmap_shows_the_degradation_saturated_at_five(results):
    trace = figures.heatmap(results).data[0]
    assert (trace.zmin, trace.zmax) == (-5, 5)
    np.testing.assert_array_equal(trace.z, grid(results).degradation)
    assert "54.1 (50.2 to 58.0) points" in trace.hovertext[0][5]
    assert "models/mobilenet.py:35" in trace.hovertext[0][5]


def test_noise_view_is_logarithmic_and_writes_the_sqnr(results):
    trace, numbers, _ = figures.heatmap(results, "noise").data
    assert trace.z[0][5] == pytest.approx(np.log10(30.0))
    assert numbers.text[5] == "11"


def test_no_noise_is_the_quiet_end_of_the_scale(results):
    trace = figures.heatmap(replace(results, cells=results.cells.assign(noise=0.0)), "noise").data[0]
    assert np.isfinite(np.asarray(trace.z, dtype=float)).all()


def test_screened_cells_are_marked():
    marks = figures.heatmap(screened_results()).data[-1]
    assert len(marks.x) == 100
    assert marks.showlegend
    assert "screened" in marks.name


def test_hover_text_says_what_is_predicted_and_how_well():
    hover = figures.heatmap(screened_results()).data[0].hovertext
    assert "8 bits, exact" in hover[0][5]
    assert "7 bits, screened (predicted)" in hover[1][5]
    assert "~54.1 (50.2 to 58.0) points" in hover[1][5]
    assert "beyond the linear regime" not in hover[1][5]
    assert "beyond the linear regime: noise prediction is rough" in hover[-1][5]


def test_predicted_stands_against_exact():
    results = set_cell(screened_results(), 6, 8, linear=False)
    line, points = figures.predicted_against_exact(results).data
    assert tuple(line.x) == tuple(line.y)
    np.testing.assert_allclose(points.y, 0.9 * np.asarray(points.x))
    assert len(points.x) == 20
    assert list(points.marker.symbol).count("diamond-open") == 1
    assert "30.0 measured, 27.0 predicted" in points.hovertext[5]
    assert points.name == "8 bits"


def test_each_bit_width_has_its_colour_in_the_check():
    results = screened_results()
    cells = results.cells.assign(method="exact", screened_noise=results.cells["noise"])
    _, *points = figures.predicted_against_exact(replace(results, cells=cells)).data
    assert [trace.name for trace in points] == [f"{bits} bits" for bits in (8, 7, 6, 5, 4, 3)]
    assert len({trace.marker.color for trace in points}) == 6


def test_without_a_screen_the_check_is_empty(results):
    assert len(figures.predicted_against_exact(results).data) == 1


def test_hover_text_is_escaped():
    hover = figures.heatmap(nasty_results()).data[0].hovertext[0][5]
    assert "<script" not in hover
    assert "&lt;" in hover


def test_bars_carry_their_intervals(results):
    lost, noise = figures.layer_bars(results, 8).data
    assert lost.y[5] == 54.1
    assert lost.error_y.array[5] == pytest.approx(3.9)
    assert lost.error_y.arrayminus[5] == pytest.approx(3.9)
    assert noise.error_y.array[5] == pytest.approx(1.2)


def test_histogram_has_the_range_and_how_much_of_it_is_used(results):
    guilty, sound = histogram(results, 5), histogram(results, 6)
    weight = results.distributions["features.1.block.0.conv"]
    assert guilty.low == weight.weight_edges[0]
    assert guilty.high == weight.weight_edges[-1]
    assert guilty.counts.sum() == 8 * 200
    assert 0 < guilty.central_share < 1
    assert sound.high < guilty.high
    lines = figures.weight_histogram(results, 5).layout.shapes
    assert [line.x0 for line in lines] == [guilty.low, guilty.high]
    assert {line.line.dash for line in lines} == {"dashdot"}


def test_channel_ranges_show_the_channel_that_reaches_farthest(results):
    low, high = channels(results, "features.1.block.0.conv")
    assert (high - low).argmax() == 3
    bar = figures.channel_ranges(results, 5).data[0]
    np.testing.assert_allclose(np.asarray(bar.base, dtype=float) + np.asarray(bar.y, dtype=float), high)


def test_activation_ranges_list_inputs_then_output(results):
    assert ranges(results, 4) == [("input 1", 0, 6), ("input 2", 0, 6), ("output", -8.5, 11.25)]
    assert list(figures.activation_ranges(results, 4).data[0].y) == ["input 1", "input 2", "output"]


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda r: figures.weight_histogram(r, "features.1.block.0.con"), "nearest are features.1.block.0.conv"),
        (lambda r: figures.weight_histogram(r, 4), "it has no weight to show"),
        (lambda r: figures.channel_ranges(r, 4), "it has no weight to show"),
        (lambda r: figures.layer_bars(r, 2), "give one of 3, 4, 5, 6, 7, 8"),
        (lambda r: figures.heatmap(r, "colour"), "give degradation or noise"),
    ],
)
def test_what_is_not_there_is_an_error_that_helps(results, draw, said):
    with pytest.raises(QuantopsyError, match=said):
        draw(results)


def test_a_hostile_name_finds_its_layer():
    assert figures.weight_histogram(nasty_results(), NASTY).layout.title.text.startswith("&lt;/script")
