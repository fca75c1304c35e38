"""What is said and drawn of additivity, on made-up subsets with a known answer."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from made_up import additive_results
from rich.console import Console

from quantopsy.analysis.document import document
from quantopsy.analysis.significance import Interval
from quantopsy.report.additivity import additivity_headlines, additivity_section, additivity_statements
from quantopsy.report.terminal import print_additivity, print_results
from quantopsy.report.verdict import statements


def said(**options: object) -> str:
    return "\n".join(additivity_statements(additive_results(**options)))


def printed(results, width: int) -> str:
    stream = io.StringIO()
    print_additivity(results, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.05, "Noises add up: with random layers at 4 bits and the others at 8, noise is 1.05 (95 % interval"),
        (2.3, "Bias shift: sums under-estimate noise by a factor 2.3: "),
        (0.5, "Layers weaken each other: sums over-estimate noise by a factor 2.0: "),
        (1.2, "Noises add up only roughly: "),
    ],
)
def test_the_verdict_on_noise(factor, verdict) -> None:
    assert said(noise_factor=factor).startswith(verdict)


def test_noise_beyond_the_signal_is_not_judged() -> None:
    text = said(noise_factor=0.1, below_signal=False)
    assert text.startswith("Sums of noise say nothing")
    assert "Give a higher --low" in text


def test_sums_are_trusted_as_far_as_they_were_tried() -> None:
    text = said()
    assert "Sums of degradation can be trusted up to 16.0 points, the largest tried (within what 512 images" in text
    assert "slope 1.00 (" in text


def test_where_sums_break_is_said_with_both_numbers() -> None:
    text = said(breaks_at=9.0)
    # 0.8 points a layer: 11 layers are the last before the break, 13 the first beyond it.
    assert "can be trusted up to about 8.8 points (within" in text
    assert "beyond, they under-estimate: 10.4 points expected, 20.8 points measured." in text


def test_sums_that_are_wrong_from_the_start_are_not_trusted() -> None:
    assert "cannot be trusted: even small ones under-estimate, 0.8 points expected, 4.0 points" in said(loss_factor=5.0)


def test_too_few_images_are_called_so() -> None:
    text = said(spread=6.0)
    assert "Whether degradations add up cannot be told from 512 images" in text
    assert "can be trusted" not in text
    text = said(spread=6.0, loss_factor=4.0)
    assert "images can only tell within" in text


def test_the_screen_and_its_strongest_pair_are_told() -> None:
    text = said(noise_factor=2.3)
    assert "is off by 2 % of the measured noise in the median, the sum by a factor 2.3" in text
    assert "of the degradation by 0.4 points on average, the sum by 0.0." in text
    assert "reinforce each other: their noise together is 1.30 (95 % interval 1.20 to 1.40)" in text
    assert "`features.1.block.0.conv` with `features.1.block.2.conv`, 11 % of all noise" in text


def test_an_uncertain_interaction_is_no_interaction() -> None:
    results = additive_results()
    seen = replace(results.additivity.interaction, factor=Interval(1.1, 0.9, 1.3), share=0.01)
    text = "\n".join(additivity_statements(replace(results, additivity=replace(results.additivity, interaction=seen))))
    assert "no certain interaction" in text
    assert "`features" not in text


def test_screened_cells_and_a_stop_are_cautions() -> None:
    assert "Up to 7 single layers of a sum are screened: predicted, not run" in said(screened=7)
    results = additive_results()
    short = replace(results, additivity=replace(results.additivity, samples=64))
    assert "The run was stopped: 64 of 512 images." in "\n".join(additivity_statements(short))


def test_the_verdict_of_a_study_has_both_headlines() -> None:
    results = additive_results()
    assert len(additivity_headlines(results)) == 2
    assert all(sentence in statements(results) for sentence in additivity_headlines(results))
    assert additivity_headlines(replace(results, additivity=None)) == []


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("options", [{}, {"noise_factor": 2.3, "screened": 3, "breaks_at": 5.0}])
def test_the_terminal_shows_every_subset_within_its_width(width, options) -> None:
    lines = printed(additive_results(**options), width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == np.linspace(1, 20, 12).round().astype(int).tolist()
    assert rows[0][3] == ("2.30" if options else "1.05")
    assert rows[0][1].startswith("~") == bool(options)


def test_without_subsets_the_terminal_says_so() -> None:
    assert "No subset of layers has been run" in printed(replace(additive_results(), additivity=None), 80)
    stream = io.StringIO()
    print_results(additive_results(), Console(file=stream, width=80))
    assert "Noises add up" in stream.getvalue()


def test_the_charts_show_measured_screened_and_the_line() -> None:
    results = additive_results(noise_factor=2.3)
    noise, degradation = additivity_section(results).charts
    screened, measured = noise.groups
    assert [p.y / p.x for p in measured.points] == pytest.approx([2.3] * 12)
    assert all(p.hollow for p in screened.points)
    (line,) = noise.lines
    assert [y / x for x, y in line.corners] == pytest.approx([results.additivity.noise_ratio.value] * 2)
    (line,) = degradation.lines
    fit = results.additivity.degradation.fit
    assert line.corners[1][1] == pytest.approx(fit.intercept.value + fit.slope.value * line.corners[1][0])
    assert "20 layers at 4 bits" in measured.points[-1].title
    for chart in (noise, degradation):
        json.dumps(chart.to_json(), allow_nan=False)


def test_the_signal_is_drawn_where_sums_exceed_it() -> None:
    assert len(additivity_section(additive_results()).charts[0].lines) == 1
    results = additive_results(below_signal=False)
    _, signal = additivity_section(results).charts[0].lines
    assert {x for x, _ in signal.corners} == {results.additivity.signal}


def test_without_a_sum_of_degradations_only_noise_is_drawn() -> None:
    results = additive_results()
    table = results.additivity.table.assign(degradation_expected=np.nan, degradation_predicted=np.nan)
    bare = replace(results, additivity=replace(results.additivity, table=table, degradation=None))
    assert len(additivity_section(bare).charts) == 1
    assert "Sums of degradation are not known" in "\n".join(additivity_statements(bare))
    json.dumps(document(bare), allow_nan=False)


def test_the_document_has_all_of_it() -> None:
    made = document(additive_results(noise_factor=2.3))["additivity"]
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["bias_shift"] is True
    assert made["noise_ratio"]["low"] < 2.3 < made["noise_ratio"]["high"]
    assert made["degradation"]["fit"]["slope"]["value"] == pytest.approx(1.0)
    assert [row["low_layers"] for row in made["subsets"]][-1] == 20
    assert document(replace(additive_results(), additivity=None))["additivity"] is None
