"""Tables in the width of a terminal."""

import io

import pytest
from rich.console import Console

from quantopsy.report.fitted import Column, fitted
from quantopsy.report.wording import ELLIPSIS

NAMES = ("features.3.block.1.depthwise", "classifier")
VALUES = ("-0.00587", "0.03504")


def printed(columns, width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(fitted(columns, width))
    return stream.getvalue()


def columns(*, spare: bool = True):
    return (
        Column("layer", NAMES, right=False, least=8),
        Column("lost", VALUES),
        Column("interval", ("-0.00731 to -0.00465", "0.02932 to 0.04119"), right=False, spare=1 if spare else 0),
        Column("share", ("20 %", "3 %"), spare=2 if spare else 0),
    )


@pytest.mark.parametrize("width", range(24, 90))
def test_numbers_are_never_cut_and_lines_never_too_long(width):
    text = printed(columns(), width)
    assert max(map(len, text.splitlines())) <= width
    for value in VALUES:
        assert value in text
    assert all(ELLIPSIS not in word or word.startswith(("f", "c")) for word in text.split())


def test_what_is_least_needed_goes_first_then_names_are_cut():
    assert "share" in printed(columns(), 80)
    assert NAMES[0] in printed(columns(), 80)
    narrow = printed(columns(), 50)
    assert "share" not in narrow
    assert "interval" in narrow
    assert "feat" in narrow
    assert NAMES[0] not in narrow
    assert "interval" not in printed(columns(), 30)


def test_what_cannot_fit_is_broken_over_lines_not_left_out():
    text = printed(columns(spare=False), 30)
    assert "".join(text.split()).count("5") >= 2
    assert ELLIPSIS not in "".join(line[12:] for line in text.splitlines())


def test_every_line_of_a_cell_is_cut_by_itself():
    cells = (("a.very.long.name.of.a.layer", "conv"), ("add", "add"))
    text = printed([Column("layer", cells, right=False, least=6), Column("lost", VALUES)], 24)
    assert "conv" in text
    assert "a.very.long.name.of.a.layer" not in text
