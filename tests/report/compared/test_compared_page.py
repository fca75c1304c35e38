"""The page of a comparison: one file, nothing loaded, pictures that draw."""

from __future__ import annotations

import pytest
from browser import CHROMIUM, parsed, shown
from made_up import NASTY, layer_table
from made_up_study import write_study

import quantopsy as qp
from quantopsy.report.compared.page import page, write
from quantopsy.report.sheet import render

LAYERS = layer_table(20)


def test_nothing_is_loaded_from_anywhere(changed) -> None:
    document = render(page(changed))
    for tag, attributes in parsed(document).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
    assert "default-src 'none'" in document
    assert "url(" not in document


def test_every_layer_is_in_the_table_the_changed_one_first(changed) -> None:
    text = "\n".join(parsed(render(page(changed))).text)
    table = text[text.index("verdict\nSQNR (dB)") :]
    assert all(name in table for name in LAYERS["name"])
    assert table.index(LAYERS["name"][5]) < table.index(LAYERS["name"][0])
    assert "Only in \nafter\n: \nextra" in text


def test_the_same_comparison_gives_the_same_bytes(changed, tmp_path) -> None:
    first, second = write(changed, tmp_path / "a.html"), write(changed, str(tmp_path / "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_the_users_text_is_never_markup(tmp_path) -> None:
    layers = LAYERS.assign(name=[NASTY, *LAYERS["name"][1:]])
    studies = [write_study(tmp_path / name, layers, seed=seed) for seed, name in enumerate(("one", "two"))]
    hostile = parsed(render(page(qp.compare(*studies).compared)))
    assert [tag for tag, _ in hostile.tags].count("script") == 3
    assert NASTY in "".join(hostile.text)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to run the script in")
def test_its_script_draws_both_profiles(changed, tmp_path) -> None:
    done = shown(write(changed, tmp_path / "page.html"))
    assert done.body.get("data-ready") == "true"
    assert "data-error" not in done.body
    tags = [tag for tag, _ in done.tags]
    assert tags.count("polyline") == 4
    assert sum(attributes.get("class") == "point" for _, attributes in done.tags) == 2 * (20 + 21)
