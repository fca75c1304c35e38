"""The verdict says what the intervals support, and no more."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import make_results, quiet_results, screened_results, set_cell

from quantopsy.report.tables import headline_bits, ranked
from quantopsy.report.verdict import cautions, statements, verdict


def said(results):
    return "\n".join(verdict(results))


def test_a_loss_comes_first_with_its_interval(results):
    assert verdict(results)[0] == (
        "8-bit per-tensor quantization costs 72.1 points of top-1 (95 % interval 68.1 to 76.1): "
        "97.0 % in float, 24.9 % quantized, on 512 images."
    )


def test_the_guilty_layer_is_named_with_operator_source_and_interval(results):
    assert "1 of 20 layers costs top-1 beyond the interval" in said(results)
    assert "`features.1.block.0.conv` (conv, models/mobilenet.py:35) 54.1 (50.2 to 58.0)" in said(results)
    assert "1 layer of 20 accounts for 99 % of the summed noise at 8 bits" in said(results)


def test_an_improvement_is_called_one(results):
    assert "Quantizing `features.2.block.0.conv` (conv, models/mobilenet.py:39) alone improves top-1" in said(results)
    assert "by 0.9 points (95 % interval 0.3 to 1.5)" in said(results)


def test_disagreement_of_sum_and_whole_is_said(results):
    assert "do not add up at 8 bits" in said(results)
    assert "below the whole network's 95 % interval 68.1 to 76.1" in said(results)


def test_nothing_measurable_is_called_nothing_measurable():
    text = said(quiet_results())
    assert "costs no measurable top-1" in text
    assert "includes zero" in text
    assert "No single layer costs top-1 beyond its interval at 8 bits." in text
    assert "Single layers add up at 8 bits" in text
    assert "alone improves" not in text


def test_a_loss_without_a_guilty_layer_is_said():
    quiet = quiet_results()
    whole = quiet.whole.assign(degradation=3.0, degradation_low=2.0, degradation_high=4.0)
    text = said(replace(quiet, whole=whole))
    assert "No single layer" in text
    assert "the loss appears only when layers are quantized together" in text


def test_a_whole_network_that_improves_is_not_called_a_loss():
    quiet = quiet_results()
    whole = quiet.whole.assign(degradation=-3.0, degradation_low=-4.0, degradation_high=-2.0)
    first = verdict(replace(quiet, whole=whole))[0]
    assert "improves top-1 by 3.0 points (95 % interval 2.0 to 4.0)" in first


def test_screened_cells_are_named_and_never_guilty():
    results = screened_results()
    assert "100 of 120 cells are screened" in said(results)
    only_screened = replace(results, cells=results.cells.assign(method="screened", degradation_low=1.0))
    text = said(only_screened)
    assert "All 120 cells are screened" in text
    assert "none can be called guilty" in text


def test_a_stopped_run_is_incomplete(results):
    stopped = replace(results, cells=results.cells[results.cells["layer"] < 15], complete=False)
    stopped = set_cell(stopped, 0, 8, samples=32)
    text = "\n".join(cautions(stopped))
    assert "stopped before every cell had every image" in text
    assert "30 of 120 cells are missing" in text
    assert "1 cell has fewer than the 512 images, the least 32" in text


def test_a_baseline_that_may_be_zero_is_said(results):
    text = said(replace(results, float_value=0.2, float_low=0.0, float_high=1.1))
    assert "there is nothing to lose" in text


def test_warnings_are_passed_on(results):
    assert verdict(results)[-1] == results.warnings[0]


def test_chance_is_named_when_the_guilty_are_no_more_than_chance_makes():
    quiet = quiet_results(150)
    doubtful = set_cell(quiet, 7, 8, degradation=0.5, degradation_low=0.02, degradation_high=0.98)
    assert "Of 150 such intervals about 4 would lie above zero by chance alone" in said(doubtful)
    clear = set_cell(quiet, 7, 8, degradation=50.0, degradation_low=48.0, degradation_high=52.0)
    assert "by chance alone" not in said(clear)


def test_without_intervals_nothing_is_judged(results):
    nothing = {"degradation_low": np.nan, "degradation_high": np.nan}
    blind = replace(results, cells=results.cells.assign(**nothing), whole=results.whole.assign(**nothing))
    text = said(blind)
    assert "no interval is known" in text
    assert "costs" not in text
    assert "nan" not in text


def test_an_empty_run_still_has_a_verdict(results):
    empty = replace(results, cells=results.cells.iloc[:0], whole=results.whole.iloc[:0][[]], complete=False)
    text = said(empty)
    assert "the whole network was not measured quantized" in text
    assert "120 of 120 cells are missing" in text


@pytest.mark.parametrize(("bits", "headline"), [((3, 4, 8), 8), ((4, 6), 6), ((10, 12), 10)])
def test_the_verdict_starts_from_eight_bits_or_the_nearest(bits, headline):
    assert headline_bits(make_results(bits=bits)) == headline


def test_ranking_puts_the_guilty_first_then_the_loudest(results):
    table = ranked(results, 8)
    assert table["layer"].iloc[0] == 5
    assert table["guilty"].sum() == 1
    rest = table["noise"].iloc[1:].to_numpy()
    assert (np.diff(rest) <= 0).all()
    assert table["noise_share"].sum() == pytest.approx(1.0)


def test_statements_do_not_repeat_cautions(results):
    assert not set(statements(results)) & set(cautions(results))
