"""The verdict says what the intervals support, and no more."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import additive_results, make_results, quiet_results, screened_results, set_cell

from quantopsy.analysis.results import Check
from quantopsy.report.tables import headline_bits, ranked, run_and_screened, verdicts_given
from quantopsy.report.verdict import cautions, statements


def sentences(results):
    return [*statements(results), *cautions(results)]


def said(results):
    return "\n".join(sentences(results))


def test_what_hurts_comes_first_and_how_sure_that_is(results):
    assert sentences(results)[0] == (
        "1 of 20 layers hurts top-1 at 8 bits when quantized alone (certain at 95 %, corrected for 100 different "
        "cells), in points: `features.1.block.0.conv` (conv, models/mobilenet.py:35) 54.1 (50.2 to 58.0)."
    )


def test_a_loss_of_the_whole_network_has_its_interval(results):
    assert (
        "8-bit per-tensor quantization costs 72.1 points of top-1 (95 % interval 68.1 to 76.1): "
        "97.0 % in float, 24.9 % quantized, on 512 images."
    ) in sentences(results)


def test_the_level_is_the_results(results):
    text = said(replace(results, level=0.9))
    assert "certain at 90 %" in text
    assert "(90 % interval 68.1 to 76.1)" in text
    assert "95 %" not in text


def test_the_noise_of_the_loudest_is_told(results):
    assert "1 layer of 20 accounts for 99 % of the summed noise at 8 bits" in said(results)
    quiet = set_cell(make_results(), 5, 8, noise=0.01, verdict="undecided")
    assert "1 layer of 20 accounts" not in said(quiet)


def test_only_the_verdict_makes_guilty(results):
    loud = set_cell(results, 7, 8, degradation=3.0, degradation_low=1.0, degradation_high=5.0)
    assert ranked(loud, 8)["guilty"].sum() == 1
    implied = set_cell(results, 7, 8, verdict="hurts")
    assert ranked(implied, 8)["guilty"].sum() == 2
    assert "2 of 20 layers hurt top-1" in said(implied)


def test_an_improvement_is_called_one(results):
    assert "Quantizing `features.2.block.0.conv` (conv, models/mobilenet.py:39) alone improves top-1" in said(results)
    assert "by 0.9 points (95 % interval 0.3 to 1.5)" in said(results)


def test_disagreement_of_sum_and_whole_is_said(results):
    assert "do not add up at 8 bits" in said(results)
    assert "less than the whole network loses (95 % interval" in said(results)


def test_a_sum_is_only_as_sure_as_the_images_make_it(results):
    loose = replace(results, whole=results.whole.assign(degradation_sum_stderr=20.0))
    assert "Single layers add up at 8 bits as far as 512 images can tell" in said(loose)
    unknown = said(replace(results, whole=results.whole.assign(degradation_sum_stderr=np.nan)))
    assert "The degradations of single layers sum to" in unknown
    assert "add up" not in unknown


def test_nothing_measurable_is_called_nothing_measurable():
    text = said(quiet_results())
    assert "costs no measurable top-1" in text
    assert "includes zero" in text
    assert (
        "No layer is certain to hurt top-1 at 8 bits when quantized alone: 512 images can only rule out losses above "
        "0.4 points, each at 95 %."
    ) in text
    assert "20 layers are harmless at 8 bits: losses above 1.0 points are ruled out." in text
    assert "Single layers add up at 8 bits" in text
    assert "alone improves" not in text


def test_a_loss_without_a_guilty_layer_is_said():
    quiet = quiet_results()
    whole = quiet.whole.assign(degradation=3.0, degradation_low=2.0, degradation_high=4.0)
    text = said(replace(quiet, whole=whole))
    assert "No layer is certain to hurt" in text
    assert "the whole network's loss shows only when layers are quantized together" in text


def test_a_whole_network_that_improves_is_not_called_a_loss():
    quiet = quiet_results()
    whole = quiet.whole.assign(degradation=-3.0, degradation_low=-4.0, degradation_high=-2.0)
    assert "improves top-1 by 3.0 points (95 % interval 2.0 to 4.0)" in said(replace(quiet, whole=whole))


def test_screened_cells_are_named():
    results = screened_results()
    assert (
        "100 of 120 cells are screened: predicted from gradients, not run; 60 of them beyond the linear regime"
    ) in said(results)
    only_screened = replace(results, cells=results.cells.assign(method="screened", verdict="undecided"))
    text = said(only_screened)
    assert "All 120 cells are screened" in text
    assert "No layer is certain to hurt top-1 at 8 bits when quantized alone; none was run" in text
    assert "(20 of 20 layers are screened): `quantopsy additivity` tells" in text
    assert "improves top-1 at 8 bits" not in text


def test_a_layer_that_hurts_by_prediction_is_called_screened():
    results = screened_results()
    coarse = replace(results, bits=(3, 4, 5), cells=results.cells[results.cells["bits"] < 6])
    assert "`features.1.block.0.conv` (conv, models/mobilenet.py:35) ~54.1 (50.2 to 58.0)" in said(coarse)
    assert "It is screened: not run, because the prediction or a higher bit-width leaves no doubt" in said(coarse)
    assert "It is screened" not in said(results)


def test_the_check_of_the_screen_is_told():
    results = screened_results()
    assert (
        "Check of the screen: on 20 cells in the linear regime that were also run, predicted noise is 0.98 of the "
        "measured one (0.85 to 1.12 for eight in ten), rank correlation 0.99; predicted degradation is off by 0.6 "
        "points on average of all cells run, 0.2 on 6 drawn at random."
    ) in statements(results)


def test_what_the_check_does_not_know_is_left_out():
    results, nan = screened_results(), float("nan")
    few = Check(2, 0, (0.9, 0.95, 1.0), nan, 0.6, nan, 0.5)
    assert (
        "Check of the screen: on 2 cells in the linear regime that were also run, predicted noise is 0.95 of the "
        "measured one; predicted degradation is off by 0.6 points on average of all cells run."
    ) in statements(replace(results, check=few))
    nothing = Check(0, 0, (nan, nan, nan), nan, nan, nan, nan)
    assert "Check of the screen" not in said(replace(results, check=nothing))
    assert "nan" not in said(replace(results, check=nothing))


@pytest.mark.parametrize(
    ("mode", "cells", "sentence"),
    [
        ("auto", 37, "37 verdicts are open: more --budget would settle them."),
        ("auto", 1, "1 verdict is open: more --budget would settle it."),
        ("screen", 37, "37 verdicts are open: --mode auto would settle them."),
    ],
)
def test_open_verdicts_are_counted(mode, cells, sentence):
    results = screened_results()
    assert sentence in cautions(replace(results, settings={**results.settings, "mode": mode}, open_cells=cells))


@pytest.mark.parametrize(("mode", "cells"), [("exact", 37), ("auto", 0)])
def test_nothing_is_said_of_open_verdicts_where_a_budget_does_not_help(mode, cells):
    results = screened_results()
    text = "\n".join(cautions(replace(results, settings={"mode": mode}, open_cells=cells)))
    assert "open" not in text


def test_images_drawn_by_design_are_no_caution():
    results = screened_results()
    assert "fewer than" not in said(replace(results, complete=False))
    assert "stopped before every cell was screened" in said(replace(results, complete=False))


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
    assert sentences(results)[-1] == results.warnings[0]


def test_without_intervals_nothing_is_judged(results):
    nothing = {"degradation_low": np.nan, "degradation_high": np.nan}
    blind = replace(
        results, cells=results.cells.assign(**nothing, verdict="undecided"), whole=results.whole.assign(**nothing)
    )
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


def test_verdicts_are_corrected_for_every_different_cell(results):
    weightless = int(results.layers["weight_shape"].isna().sum())
    assert weightless > 0
    assert verdicts_given(results) == 20 * 6 - 5 * weightless


def test_a_layer_without_weights_is_checked_once():
    results = screened_results()
    everywhere = results.cells.assign(method="exact", screened_noise=0.9 * results.cells["noise"])
    both = run_and_screened(replace(results, cells=everywhere))
    weightless = results.layers.loc[results.layers["weight_shape"].isna(), "layer"]
    assert len(both) == verdicts_given(results)
    assert (both.loc[both["layer"].isin(weightless), "bits"] == 8).all()
    assert both["beyond"].sum() == 3 * (20 - len(weightless))


def test_other_bit_widths_have_intervals_and_their_images_where_they_are_not_all(results):
    few = results.whole["bits"] == 5
    mixed = replace(results, whole=results.whole.assign(samples=results.whole["samples"].mask(few, 75)))
    assert "7 bits 72.1 (68.1 to 76.1), 6 bits" in said(mixed)
    assert "5 bits 72.1 (68.1 to 76.1, 75 images)" in said(mixed)


@pytest.mark.parametrize(("screened", "summed"), [(0, True), (2, True), (3, False), (20, False)])
def test_a_sum_of_predictions_is_no_headline(results, screened, summed):
    cells = results.cells
    predicted = (cells["bits"] == 8) & (cells["layer"] < screened)
    some = replace(
        results,
        cells=cells.assign(method=cells["method"].mask(predicted, "screened")),
        whole=results.whole.assign(degradation_sum_stderr=np.nan if screened else 2.0),
    )
    text = said(some)
    assert ("sum to" in text) == summed
    assert (f"({screened} of 20 layers are screened): `quantopsy additivity` tells" in text) == (not summed)


def test_where_subsets_were_run_nobody_is_sent_to_run_them():
    found = additive_results()
    cells = found.cells.assign(method="screened")
    assert "`quantopsy additivity` tells" not in said(replace(found, cells=cells))


@pytest.mark.parametrize(
    ("loss_change", "ways"), [(np.nan, "give --loss, or --mode exact"), (0.1, "give --mode exact")]
)
def test_a_metric_that_is_not_predicted_is_said_so(loss_change, ways):
    results = screened_results()
    screened = results.cells["method"] == "screened"
    blank = {
        name: results.cells[name].mask(screened) for name in ("degradation", "degradation_low", "degradation_high")
    }
    text = said(replace(results, cells=results.cells.assign(**blank, loss_change=loss_change)))
    assert f"This metric is not predicted, only noise is: {ways}." in text
    assert "37 verdicts are open: --mode exact would settle them." in text
    assert "not predicted" not in said(results)


def test_a_verdict_that_follows_from_another_bit_width_says_so(results):
    implied = set_cell(results, 7, 8, verdict="hurts", verdict_bits=6)
    assert ", as at 6 bits" in said(implied)
    assert "as at" not in said(results)
