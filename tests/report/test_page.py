"""The page: one file, no requests, nothing of the user's run as markup, and a script that runs."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import CHROMIUM, parsed, shown
from made_up import NASTY, additive_results, make_results, nasty_results, screened_results, set_cell

from quantopsy.report.page import render, write
from quantopsy.report.payload import payload


def test_nothing_is_loaded_from_anywhere(results):
    document = render(results)
    for tag, attributes in parsed(document).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert "default-src 'none'" in document
    assert "@import" not in document
    assert "url(" not in document


def test_the_page_is_light():
    assert len(render(make_results(150)).encode()) < 1_000_000


def test_the_users_text_is_never_markup():
    hostile, plain = parsed(render(nasty_results())), parsed(render(make_results()))
    assert [tag for tag, _ in hostile.tags].count("script") == [tag for tag, _ in plain.tags].count("script")
    assert NASTY in "".join(hostile.text)


def test_the_same_results_give_the_same_bytes(tmp_path):
    first, second = write(make_results(), tmp_path / "a.html"), write(make_results(), str(tmp_path / "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_the_verdict_stands_first_in_words(results):
    document = render(results)
    assert document.index("costs 72.1 points of top-1") < document.index('id="chart"')
    assert "<code>features.1.block.0.conv</code>" in document


def test_what_stays_float_is_listed_with_operator_and_source(results):
    text = " ".join(parsed(render(results)).text)
    assert "aten.softmax.int" in text
    assert "models/mobilenet.py:88" in text


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_the_payload_is_strict_json(results, broken):
    cells = results.cells.assign(sqnr_db=broken, degradation_low=np.nan, agreement=np.nan)
    layers = results.layers.assign(source=None, macs=broken, parameters=broken)
    json.dumps(payload(replace(results, cells=cells, layers=layers)), allow_nan=False)


def test_the_payload_has_every_cell_as_measured(results):
    data = payload(results)
    assert data["start"] == {"bits": 8, "layer": 5}
    assert len(data["cells"]) == 120
    guilty = next(cell for cell in data["cells"] if (cell["layer"], cell["bits"]) == (5, 8))
    assert (guilty["degradation"], guilty["low"], guilty["high"]) == (54.1, 50.2, 58.0)
    assert (guilty["tint"], guilty["rank"], guilty["guilty"]) == (1.0, 0, True)
    assert data["layers"][5]["channels"]["text"].startswith("Channel 3 of 8 reaches farthest")


def test_predicted_against_exact_needs_three_cells(results):
    assert payload(results)["charts"] == {}
    assert 'id="check"' not in render(results)
    screened = screened_results()
    assert 'id="check-chart-0"' in render(screened)
    kept = screened.cells["screened_noise"].where(screened.cells["layer"].isin([0, 1]) | (screened.cells["bits"] < 8))
    assert payload(replace(screened, cells=screened.cells.assign(screened_noise=kept)))["charts"] == {}


def test_the_page_marks_what_is_screened():
    data = payload(screened_results())
    cells = {(cell["layer"], cell["bits"]): cell for cell in data["cells"]}
    exact, screened, rough = cells[5, 8], cells[5, 7], cells[5, 3]
    assert [cell["screened"] for cell in (exact, screened, rough)] == [False, True, True]
    assert [cell["rough"] for cell in (exact, screened, rough)] == [False, False, True]
    assert all(cell["guilty"] for cell in (exact, screened, rough))
    assert screened["texts"]["interval"] == "~(50.2 to 58.0)"
    assert (screened["texts"]["method"], rough["texts"]["method"]) == ("screened", "screened, rough")


def test_the_level_is_everywhere_the_results(results):
    document = render(replace(results, level=0.9))
    assert "90&nbsp;% interval" in document
    assert "90 % interval" in document
    assert "95 % interval" not in document


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
class TestInABrowser:
    def test_the_script_runs_and_opens_the_worst_layer(self, tmp_path, results):
        page = shown(write(results, tmp_path / "page.html"))
        assert page.body.get("data-ready") == "true"
        assert "data-error" not in page.body
        cells = [attributes for tag, attributes in page.tags if tag == "rect" and attributes.get("class") == "cell"]
        assert len(cells) == 120
        assert any("features.1.block.0.conv, 8 bits; degradation 54.1" in text for text in page.text)

    def test_the_address_chooses_layer_bits_and_view(self, tmp_path):
        page = shown(write(make_results(150), tmp_path / "page.html"), "#layer=70&bits=4&view=noise")
        assert "data-error" not in page.body
        assert any(re.match(r"features\.17\.block\.1\.depthwise, 4 bits;", text) for text in page.text)
        assert any("SQNR in dB" in text for text in page.text)

    def test_hostile_names_and_missing_numbers_draw(self, tmp_path):
        nasty = nasty_results()
        holes = replace(nasty, cells=nasty.cells[nasty.cells["layer"] != 2].assign(degradation_high=np.nan))
        page = shown(write(holes, tmp_path / "page.html"), "#layer=5&bits=99")
        assert page.body.get("data-ready") == "true"
        assert "data-error" not in page.body
        assert NASTY in page.text

    def test_screened_cells_are_marked(self, tmp_path):
        page = shown(write(screened_results(), tmp_path / "page.html"))
        notches = [a for tag, a in page.tags if tag == "path" and "notch" in a.get("class", "")]
        assert len(notches) == 100 + 2  # and two in the legend
        assert any("screened (predicted)" in text for text in page.text)
        rough = [a for tag, a in page.tags if tag == "path" and "rough" in a.get("class", "")]
        assert len(rough) == 60 + 1
        assert "data-error" not in page.body

    def test_a_screened_layer_is_hollow_and_called_so(self, tmp_path):
        page = shown(write(screened_results(), tmp_path / "page.html"), "#layer=5&bits=4")
        said = next(text for text in page.text if text.startswith("features.1.block.0.conv, 4 bits;"))
        assert "degradation ~54.1 (50.2 to 58.0) points" in said
        assert "screened (predicted), 512 images, hurts; beyond the linear regime" in said
        assert any(tag == "rect" and "fill-opacity:0.08" in (a.get("style") or "") for tag, a in page.tags)

    def test_predicted_is_drawn_against_exact(self, tmp_path):
        results = set_cell(screened_results(), 6, 8, linear=False)
        page = shown(write(results, tmp_path / "page.html"))
        points = [tag for tag, a in page.tags if a.get("class") == "point"]
        assert (points.count("circle"), points.count("path")) == (19, 1)
        assert "beyond the linear regime" in page.text
        assert "data-error" not in page.body

    def test_arrow_keys_go_through_the_points_of_a_chart(self, tmp_path):
        path = write(screened_results(), tmp_path / "page.html")
        press = """<script>
            const picture = document.querySelector("#check-chart-0 svg");
            for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft"])
              picture.dispatchEvent(new KeyboardEvent("keydown", { key }));
        </script></body>"""
        path.write_text(path.read_text().replace("</body>", press))
        page = shown(path)
        chart = payload(screened_results())["charts"]["check-chart-0"]
        first = min((p for group in chart["groups"] for p in group["points"]), key=lambda p: p["x"])
        assert page.text.count(first["title"]) == 2  # at its point, and read out
        assert "data-error" not in page.body

    def test_additivity_is_drawn_with_its_table(self, tmp_path):
        page = shown(write(additive_results(noise_factor=2.3), tmp_path / "page.html"))
        assert "Do single layers add up?" in page.text
        points = [tag for tag, a in page.tags if a.get("class") == "point"]
        assert (points.count("circle"), points.count("path")) == (24, 24)
        assert len([tag for tag, _ in page.tags if tag == "polyline"]) == 2
        assert "sum of noises" in page.text
        assert "data-error" not in page.body

    def test_a_run_that_measured_nothing_draws(self, tmp_path, results):
        empty = replace(
            results,
            cells=results.cells.iloc[:0],
            whole=results.whole.iloc[:0][[]],
            distributions={},
            complete=False,
        )
        page = shown(write(empty, tmp_path / "page.html"))
        assert page.body.get("data-ready") == "true"
        assert "data-error" not in page.body


def test_the_whole_network_stands_beside_float_on_the_same_images(results):
    few = results.whole["bits"] == 5
    mixed = replace(results, whole=results.whole.assign(samples=results.whole["samples"].mask(few, 75)))
    assert "Some bit-widths were run on fewer images" in render(mixed)
    assert "Some bit-widths were run on fewer images" not in render(results)
    assert "<td>75</td><td>97.0</td>" in render(mixed)


def test_a_verdict_that_follows_from_another_bit_width_says_so(results):
    cells = payload(set_cell(results, 7, 8, verdict="hurts", verdict_bits=6))["cells"]
    verdicts = {(cell["layer"], cell["bits"]): cell["texts"]["verdict"] for cell in cells}
    assert verdicts[7, 8] == "hurts (as at 6 bits)"
    assert verdicts[5, 8] == "hurts"
