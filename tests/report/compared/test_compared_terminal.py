"""A comparison on a terminal: it fits, and it says the same without colour and beyond ASCII."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from made_up import layer_table
from rich.console import Console

from quantopsy.report.compared.terminal import print_compared

LAYERS = layer_table(20)


def printed(compared, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_compared(compared, Console(file=stream, width=width, force_terminal=False))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 160])
def test_it_fits_and_names_the_layer_that_changed(changed, width) -> None:
    text = printed(changed, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.lstrip().startswith("after against before, weights at 8 bits")
    table = text[text.index("Layers that changed most") :]
    assert table.index(LAYERS["name"][5]) < table.index(LAYERS["name"][9])
    assert "worse" in table


def test_each_profile_is_a_row_and_a_hole_where_there_is_no_partner(changed) -> None:
    text = printed(changed, 120)
    lines = text[text.index("Degradation of single layers") :].splitlines()
    before, after = (next(line for line in lines if line.startswith(f"{name} ")) for name in ("before", "after"))
    start = len("before ")
    assert len(after) - start == 21
    assert before[start + 19] == " "
    assert after[start + 5] == "█"


def test_louder_layers_have_higher_blocks(widths) -> None:
    text = printed(widths, 120)
    lines = text[text.index("Noise of single layers") :].splitlines()
    rows = [line for line in lines if line.startswith(("8 bits ", "6 bits ", "4 bits "))]
    assert len(rows) == 3
    heights = ["▁▂▃▄▅▆▇█".index(row[len("8 bits ")]) for row in rows]
    assert heights == sorted(heights)
    assert heights[0] < heights[-1]


def test_a_terminal_of_ascii_gets_ascii(changed) -> None:
    assert printed(changed, 80, "ascii").isascii()


def test_profiles_alone_need_no_difference(changed) -> None:
    text = printed(replace(changed, differences=(), views=changed.views[:1]), 80)
    assert "Layers that changed" not in text
    assert "Noise of single layers" in text
