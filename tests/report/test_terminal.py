"""The terminal at the widths that people have."""

import io
from dataclasses import replace

import pytest
from made_up import make_results, nasty_results, quiet_results, screened_results, set_cell
from rich.console import Console

from quantopsy.core.allocation import Allocation, Outcome
from quantopsy.core.recipe import Expected, Mended, Repair, Step
from quantopsy.report.terminal import print_allocation, print_repair, print_results, shade
from quantopsy.report.verdict import cautions, statements
from quantopsy.report.wording import ELLIPSIS, MINUS


def printed(results, width=80, encoding="utf-8", show=print_results, **options):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(results, Console(file=stream, width=width, **options))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("made", [make_results, nasty_results, quiet_results, screened_results])
def test_no_line_is_wider_than_the_terminal(made, width):
    assert max(map(len, printed(made(), width).splitlines())) <= width


@pytest.mark.parametrize("width", [80, 160])
def test_the_guilty_layer_has_all_its_numbers(results, width):
    line = next(line for line in printed(results, width).splitlines() if line.startswith("   5 "))
    for part in ("features.1.block.0.conv", "99 %", "54.1", "50.2 to 58.0"):
        assert part in line


@pytest.mark.parametrize("width", [80, 160])
def test_what_was_not_run_is_marked_and_explained(width):
    results = screened_results()
    coarse = printed(replace(results, bits=(3, 4, 5), cells=results.cells[results.cells["bits"] < 6]), width)
    line = next(line for line in coarse.splitlines() if line.startswith("   5 "))
    for part in ("~1900?", "~54.1", "~(50.2 to 58.0)"):
        assert part in line
    assert "~ screened: predicted, not run" in coarse
    assert "? beyond the linear regime: noise prediction is rough" in coarse
    assert "all cells are screened: predicted, not run" in coarse


def test_the_strip_tells_how_many_cells_are_screened(results):
    assert "100 of 120 cells are screened: predicted, not run" in printed(screened_results())
    assert "screened" not in printed(results)
    assert "~" not in printed(results)


def test_sums_of_screened_layers_are_marked():
    rows = printed(screened_results()).partition("Whole network, beside")[2].splitlines()
    marked = {row.split()[0]: row.count("~") for row in rows if row.strip()[:1].isdigit()}
    assert {bits: marked[bits] for bits in "8765"} == {"8": 0, "7": 2, "6": 2, "5": 2}


def test_the_verdict_is_the_pages(results):
    words = " ".join(printed(results, 400).split())
    for sentence in (*statements(results), *cautions(results)):
        assert sentence.replace("`", "") in words


@pytest.mark.parametrize(("width", "bands"), [(80, 3), (160, 1)])
def test_the_strip_has_a_character_per_layer(width, bands):
    rows = [line[8:] for line in printed(make_results(150), width).splitlines() if line.startswith(" 8 bits")]
    assert len(rows) == bands
    strip = "".join(rows)
    assert len(strip) == 150
    assert strip[5] == "█"
    assert strip[9] == "-"


def test_shades_grow_with_the_degradation():
    assert [shade(value, 5)[0] for value in (0, 0.4, 1, 3, 4, 5, 99)] == list("··░▒▓██")
    assert shade(-2, 5) == ("-", "bold blue")
    assert shade(float("nan"), 5)[0] == " "


def test_without_colour_there_are_no_escapes(results):
    assert "\x1b" not in printed(results)
    assert "\x1b[" in printed(results, force_terminal=True, color_system="truecolor")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_substitutes(encoding):
    rows = [line for line in printed(make_results(), encoding=encoding).splitlines() if line.startswith(" 8 bits")]
    assert rows == [" 8 bits " + (".....#...-.........." if encoding == "ascii" else rows[0][8:])]
    assert rows[0][13] == "#"


def test_an_unfinished_run_prints(results):
    empty = replace(results, cells=results.cells.iloc[:0], whole=results.whole.iloc[:0][[]], complete=False)
    assert "stopped before" in printed(empty)


def on_few_images(results):
    """The whole network at 5 bits was run on 75 images, of which float has 99 %."""
    few = results.whole["bits"] == 5
    whole = results.whole.assign(
        samples=results.whole["samples"].mask(few, 75),
        float_value=results.whole["float_value"].mask(few, 99.0),
        value=results.whole["value"].mask(few, 26.9),
    )
    return replace(results, whole=whole)


def test_the_whole_network_stands_beside_float_on_the_same_images(results):
    rows = printed(on_few_images(results)).partition("Whole network, beside")[2].splitlines()
    found = {row.split()[0]: " ".join(row.split()[1:]) for row in rows if row.strip()}
    assert found["float"].startswith("512 97.0")
    assert found["8"].startswith("512 97.0 → 24.9 72.1")
    assert found["5"].startswith("75 99.0 → 26.9 72.1")


@pytest.mark.parametrize("width", [80, 160])
def test_a_verdict_that_follows_from_another_bit_width_says_so(results, width):
    implied = set_cell(results, 7, 8, verdict="hurts", verdict_bits=6, degradation_low=-0.2, degradation_high=1.9)
    assert "hurts (as at 6 bits)" in printed(implied, width)
    assert "as at" not in printed(results, width)


@pytest.mark.parametrize("width", [80, 160])
def test_long_numbers_are_never_cut(results, width):
    small = replace(
        results,
        unit="",
        cells=results.cells.assign(degradation=-0.00587, degradation_low=-0.00731, degradation_high=-0.00465),
        whole=results.whole.assign(degradation=-0.00587, degradation_low=-0.00731, degradation_high=-0.00465),
    )
    lines = printed(small, width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(f"{MINUS}0.0073 to {MINUS}0.0046" in line for line in lines) >= 16
    for word in " ".join(lines).split():
        assert "…" not in word or word[0].isalpha()


def test_a_network_that_was_not_run_whole_has_no_table(results):
    assert "Whole network" in printed(results)
    assert "Whole network" not in printed(replace(results, whole=results.whole.iloc[:0]))


LONG = "backbone.features.denseblock4.denselayer16.conv2"
EXPECTED = Expected("top1", "points", 80, 0.95, *[(97.5, 94.25, 99.0)] * 6)


def with_repair(results):
    spans = (-12.3, -23.4, -10.1), (10.84, 9.5, 12.0), (65.5, 59.9, 71.2)
    fixes = ("weight scales per channel, clipped (mse)", "activations clipped (percentile:99.99)")
    steps = [Step(f"{name}: {words}", (name,), "scales", True, "", *spans) for name in (LONG, "up") for words in fixes]
    steps.append(
        Step("weights rounded for the output of blocks of layers (AdaRound)", (), "free", False, "", *spans),
    )
    layers = (Mended(LONG, (4.0, 1.0), None),)
    return replace(results, repaired=Repair(4, "any", 0.5, True, tuple(steps), EXPECTED, layers, (0.1, 0.0, 0.2)))


def with_allocation(results):
    uses = {"size": 1.234e6, "bitops": 1.234e9, "latency": 12.34}
    words = ("noise", "chosen, on images held out", "greedy, degradation, uniform 8 bits")
    outcomes = tuple(Outcome(name, uses, 1.0, 1.234e-5, (65.55, 59.95, 71.25)) for name in words)
    done = Allocation(
        criterion="noise", correction="analytic", along="size", limits=uses, uses=uses, bits={LONG: 4, "up": 8},
        activation_bits={LONG: 8}, rivals=outcomes, front=outcomes, greedy=(), uniform=outcomes[2:], baseline=4,
        baseline_uses=uses, expected=EXPECTED, noise_ratio=(0.4, 0.3, 0.5), decisions=None,
    )  # fmt: skip
    return replace(results, allocated=done)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize(("made", "show"), [(with_repair, print_repair), (with_allocation, print_allocation)])
def test_tables_of_remedies_cut_names_and_never_numbers(results, made, show, width):
    text = printed(made(results), width, show=show)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for word in " ".join(lines).split():
        assert ELLIPSIS not in word or word[0].isalpha()
    wanted = [f"{MINUS}12.3", "+984 %", "65.5"] if made is with_repair else ["1.234 MB", "1.234G", "1.23e", "12.34"]
    for number in wanted:
        assert sum(number in line for line in lines) >= (5 if made is with_repair else 3)
    assert ("scales" in text.partition("What was tried")[2].replace("weight scales", "")) == (
        made is with_repair and width == 160
    )


def test_what_was_tried_is_told_apart_on_a_narrow_terminal(results):
    text = " ".join(printed(with_repair(results), 80, show=print_repair).partition("What was tried")[2].split())
    assert "up: weight scales per channel, kept" in text
    assert "weights rounded for the output dropped" in text
    assert "of blocks of layers (AdaRound)" in text
