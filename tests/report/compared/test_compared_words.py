"""What a comparison says, and that it says no more."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas as pd
from made_up import layer_table

from quantopsy.analysis.comparison import Compared
from quantopsy.report.compared.words import cautions, heading, statements, worst_first

LAYERS = layer_table(20)


def said(compared: Compared) -> list[str]:
    (difference,) = compared.differences
    return statements(difference, compared)


def test_the_whole_network_comes_first_with_the_same_images(changed) -> None:
    first = said(changed)[0]
    assert first.startswith("The whole network: `before` loses")
    assert re.search(r"; \d\d\.\d points more of top1 is lost \(95 % interval .*, over the same 300 images\)\.$", first)


def test_the_layer_that_changed_is_named_with_its_numbers(changed) -> None:
    row = changed.differences[0].layers.iloc[5]
    sentence = said(changed)[1]
    assert sentence.startswith(
        "0 layers got better, 1 worse, quantized alone (certain at 95 %, corrected for 40 looks): "
    )
    assert f"`{LAYERS['name'][5]}` {row['degradation_before']:.1f} → {row['degradation_after']:.1f} points" in sentence
    assert f"(difference {row['degradation_change']:.1f}, 95 % interval" in sentence


def test_noise_is_told_apart_from_the_loss(changed) -> None:
    sentence = next(text for text in said(changed) if text.startswith("By noise"))
    assert f"1 layer is louder: `{LAYERS['name'][9]}` (SQNR" in sentence


def test_what_limits_it_is_said(changed, alike) -> None:
    limits = cautions(changed.differences[0], changed)
    assert any("scheme (per-tensor, per-channel)" in text for text in limits)
    assert any(text == "1 layer of `after` has no partner: `extra`." for text in limits)
    assert any("different images" in text for text in cautions(alike.differences[0], alike))


def test_where_nothing_changed_it_says_what_can_be_ruled_out(alike) -> None:
    layers = alike.differences[0].layers
    reach = layers[["degradation_change_low", "degradation_change_high"]].abs().to_numpy().max()
    sentence = said(alike)[1]
    assert "none is certain to lose more top1 than before, or less" in sentence
    assert f"a change above {reach:.1f} points is ruled out" in sentence
    assert "no difference can be told" in said(alike)[0]
    assert "each over its own images" in said(alike)[0]


def test_an_improvement_is_a_loss_that_became_less(changed) -> None:
    (difference,) = changed.differences
    assert difference.whole is not None
    turned = replace(difference.whole, degradation=difference.whole.degradation.scaled(-1.0))
    first = statements(replace(difference, whole=turned), changed)[0]
    assert re.search(r"; \d\d\.\d points less of top1 is lost \(95 % interval (\d+\.\d) to (\d+\.\d)", first)


def test_a_loss_that_became_a_gain_is_called_one(changed) -> None:
    (difference,) = changed.differences
    results = difference.after.results
    gained = replace(results, whole=results.whole.assign(degradation=-0.4))
    view = replace(difference.after, results=gained)
    assert "`after` gains 0.4 points of top1" in statements(replace(difference, after=view), changed)[0]


def test_views_are_called_by_what_tells_them_apart(changed, widths) -> None:
    assert heading(changed.differences[0], changed) == "after against before, weights at 8 bits"
    assert [heading(d, widths) for d in widths.differences] == ["6 bits against 8 bits", "4 bits against 8 bits"]


def test_certain_changes_come_first_then_noise(changed) -> None:
    layers = worst_first(changed.differences[0])
    assert layers["layer"].tolist()[:2] == [5, 9]
    loudness = layers["sqnr_change_db"].abs().tolist()[1:]
    assert loudness == sorted(loudness, reverse=True)


def test_what_is_screened_is_said_to_be(changed) -> None:
    (difference,) = changed.differences
    layers = difference.layers.copy()
    layers["method_after"] = pd.Series(["screened"] * 7 + ["exact"] * 13)
    limits = cautions(replace(difference, layers=layers), changed)
    assert any(text.startswith("Of 7 of 20 layers one side or both are screened") for text in limits)
    row = worst_first(replace(difference, layers=layers)).iloc[0]
    assert row["screened_after"]
    sentence = statements(replace(difference, layers=layers), changed)[1]
    assert f"{row['degradation_before']:.1f} → ~{row['degradation_after']:.1f} points" in sentence
