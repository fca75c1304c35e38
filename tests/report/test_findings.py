"""Findings in words and pictures, on made-up results."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from made_up import make_results
from rich.console import Console

from quantopsy.analysis.causes import FIXES
from quantopsy.analysis.results import Results
from quantopsy.core import Finding, Removed
from quantopsy.engine.layer_noise import Edge, Local
from quantopsy.report.findings import TITLES, findings_section, findings_sentences
from quantopsy.report.page import render
from quantopsy.report.terminal import print_findings

EVIDENCE = {
    "local_sqnr_db": 12.0,
    "gain": 0.5,
    "shift_share": 0.4,
    "peak": 90.0,
    "typical_channel_peak": 2.0,
    "peak_ratio": 45.0,
    "wide_channels": 1.0,
    "channels": 32.0,
    "in_channel_outlier_ratio": 6.0,
    "beyond_share": 0.02,
    "excess": 0.3,
    "range_ratio": 1.7,
    "noise_over_roundings_alone": 9.0,
    "step_ratio_0": 2.04,
    "branch_ratio": 8.0,
    "wasted_share": 0.5,
    "reach_over_body": 5.0,
    "reach_over_channels": 3.0,
    "bias_codes": 3e9,
}


def local(shift: float) -> Local:
    """A layer with a mean shift."""
    edge = Edge(0.0, 4.0, 0.0, 4.0, 4 / 255, 0.0, 3.0, 0.0, 2.0)
    each = np.full(4, shift)
    return Local(64, 100.0, 2.0, {"weight": 2.0}, each, shift, each + 1, -each, each, each, (edge,), edge)


def with_findings(*findings: Finding) -> Results:
    """Made-up results that somebody asked for causes."""
    results = make_results()
    bits = max(results.bits)
    names = results.layers["name"].tolist()
    return replace(
        results,
        findings=findings,
        diagnosed=(bits,),
        locals={bits: {name: local(0.1 + 0.01 * i) for i, name in enumerate(names)}},
    )


def finding(cause: str, **fields: object) -> Finding:
    """Of the first layer."""
    results = make_results()
    removed = Removed((0.91, 0.88, 0.95), (12.3, 8.0, 15.0))
    made = Finding(
        results.layers["name"][0], max(results.bits), cause, True, "severe", ("weight",), EVIDENCE,
        {"weight": 0.9, "input": 0.1, "output": 0.0}, "a change", removed, FIXES[cause],
    )  # fmt: skip
    return replace(made, **fields)


@pytest.mark.parametrize("cause", TITLES)
def test_every_cause_has_a_sentence_with_evidence_test_and_fixes(cause) -> None:
    text = findings_sentences(with_findings(finding(cause)))[0]
    assert TITLES[cause] in text
    assert "91 % of the noise goes" in text
    assert "12.3" in text
    assert "8.0 to 15.0" in text
    assert all(fix in text for fix in FIXES[cause])
    assert "weight 90 %" in text
    assert "nan" not in text
    assert text.endswith(".")


def test_a_tail_is_worded_by_its_channels() -> None:
    tail = {
        "peak_over_rms": 9.0,
        "expected": 3.4,
        "tailed_grids": 5.0,
        "grids": 8.0,
        **{k: EVIDENCE[k] for k in ("gain", "shift_share", "local_sqnr_db")},
    }
    text = findings_sentences(with_findings(finding("weight_outlier", evidence=tail)))[0]
    assert (
        "In 5 of 8 channels the largest weight is 9.0 root mean squares from zero, where a bell curve's is 3.4" in text
    )


def test_a_second_cause_follows_the_first_of_its_layer() -> None:
    second = finding("bias_shift", primary=False)
    first, also = findings_sentences(with_findings(second, finding("dead_channel")))[:2]
    assert TITLES["dead_channel"] in first
    assert also.startswith(f"`{second.layer}`, also: ")


def test_without_findings_it_says_that_nothing_hurts() -> None:
    assert findings_sentences(make_results()) == []
    assert "no layer costs enough" in findings_sentences(with_findings())[0]


def test_mean_shifts_of_all_layers_are_summed_up() -> None:
    text = " ".join(findings_sentences(with_findings()))
    results = with_findings()
    last = results.layers["name"].iloc[-1]
    assert "half of the layers have more than" in text
    assert f"`{last}`" in text


def test_the_page_shows_gain_and_channels() -> None:
    section = findings_section(with_findings(finding("dead_channel")))
    titles = [chart.title for chart in section.charts]
    assert titles[0].startswith("Local noise and gain")
    assert any("mean shift" in title for title in titles)
    page = render(with_findings(finding("dead_channel")))
    assert 'id="why' in page
    assert TITLES["dead_channel"] in page
    assert findings_section(make_results()) is None


def test_why_stands_between_the_verdict_and_the_layers() -> None:
    page = render(with_findings(finding("dead_channel")))
    places = [page.index(f'<h2 id="{key}">') for key in ("verdict", "why", "profile", "cells")]
    assert places == sorted(places)


def test_the_terminal_says_why_and_does_not_repeat_the_analysis() -> None:
    stream = io.StringIO()
    print_findings(with_findings(finding("dead_channel")), Console(file=stream, width=400))
    text = stream.getvalue()
    assert TITLES["dead_channel"] in text
    assert "Worst layers" not in text
    assert "costs 72.1 points" not in text


def test_bit_widths_that_were_looked_at_are_in_order() -> None:
    said = findings_sentences(replace(with_findings(), diagnosed=(4, 8, 5)))[0]
    assert said.startswith("At 8, 5, 4 bits no layer costs enough")
