"""Where layers stand in a profile, and what is drawn of them."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import layer_table
from made_up_study import write_study

import quantopsy as qp
from quantopsy.core import QuantopsyError
from quantopsy.report import figures
from quantopsy.report.compared.profile import columns, profile_chart

LAYERS = layer_table(20)


def test_partners_stand_in_one_column_and_others_behind_their_predecessor(changed) -> None:
    places = columns(changed)
    assert places["after"] == list(range(21))
    assert places["before"] == [*range(19), 20]


def test_layers_before_the_first_partner_come_first(tmp_path) -> None:
    later = LAYERS[3:].reset_index(drop=True).assign(layer=range(17))
    compared = qp.compare(write_study(tmp_path / "one", later), write_study(tmp_path / "two", LAYERS)).compared
    assert columns(compared) == {"one": list(range(3, 20)), "two": list(range(20))}


def test_another_architecture_has_its_own_order(tmp_path) -> None:
    other = LAYERS.assign(name="other." + LAYERS["name"], op="linear", weight_shape=[(7, 7)] * 20)
    compared = qp.compare(write_study(tmp_path / "one", LAYERS[:12]), write_study(tmp_path / "two", other)).compared
    assert columns(compared) == {"one": list(range(12)), "two": list(range(20))}


def test_a_profile_has_a_group_and_a_line_for_each_view(changed, widths) -> None:
    chart = profile_chart(changed, "degradation")
    assert [group.label for group in chart.groups] == ["before", "after"]
    assert [len(group.points) for group in chart.groups] == [20, 21]
    point = chart.groups[1].points[5]
    row = changed.differences[0].layers.iloc[5]
    assert (point.x, point.y) == (5.0, row["degradation_after"])
    assert point.low < point.y < point.high
    assert [corner for corner, _ in chart.lines[0].corners] == [*range(19), 20]
    assert [group.label for group in profile_chart(widths, "noise").groups] == ["8 bits", "6 bits", "4 bits"]


def test_noise_is_over_the_signal(changed) -> None:
    row = changed.differences[0].layers.iloc[9]
    point = profile_chart(changed, "noise").groups[1].points[9]
    assert point.y == pytest.approx(10 ** (-row["sqnr_db_after"] / 10))
    assert point.y == pytest.approx(4e-3, rel=0.3)
    assert point.low < point.y < point.high


def test_no_two_views_look_alike(changed, widths) -> None:
    for compared in (changed, widths):
        tones = [group.tone.css for group in profile_chart(compared, "noise").groups]
        assert len(set(tones)) == len(compared.views)


def test_a_notebook_has_the_same_picture(changed) -> None:
    figure = figures.chart(profile_chart(changed, "noise"))
    names = [trace.name for trace in figure.data if trace.mode == "markers"]
    assert names == ["before", "after"]
    assert np.asarray(figure.data[-1].y).shape == (21,)


def test_there_is_no_other_profile(changed) -> None:
    with pytest.raises(QuantopsyError, match="give degradation or noise"):
        profile_chart(changed, "accuracy")
