"""A comparison on a terminal: what changed in words, the layers that changed most, and all profiles as strips."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pandas as pd
from rich.console import Console, Group
from rich.text import Text

from quantopsy.analysis.comparison import Compared, Difference, View
from quantopsy.report.compared.profile import columns
from quantopsy.report.compared.words import (
    before_to_after,
    called,
    cautions,
    heading,
    in_decibels,
    statements,
    worst_first,
)
from quantopsy.report.fitted import Column, fitted
from quantopsy.report.grid import degradation_limit
from quantopsy.report.terminal import BLOCKS, SHADES, bullets, print_part, ruler, shade
from quantopsy.report.wording import (
    PREDICTED,
    Writer,
    degradation_unit,
    elide,
    interval,
    predicted,
    signed,
    significant,
)

_WORST = 10
"""Layers in the table; the page has them all."""

_WIDE = 110
"""Columns from which what was before and after has columns of its own; below, it stands under the name."""

_LABEL = 18
"""Room for the name of a profile, at most."""

_STYLES = {"worse": "bold red", "better": "bold blue", "undecided": "dim", "unchanged": ""}


def print_compared(compared: Compared, console: Console, worst: int = _WORST) -> None:
    """Print what a person wants to know of a comparison before opening its page."""
    for difference in compared.differences:
        lines = bullets(statements(difference, compared), cautions(difference, compared))
        print_part(console, lines, heading(difference, compared))
        if not difference.layers.empty:
            print_part(console, layer_table(difference, compared, console.width, worst), "Layers that changed most")
    unit = degradation_unit(compared.views[0].results)
    print_part(console, degradation_strips(compared, console.width), f"Degradation of single layers{unit}")
    print_part(console, noise_strips(compared, console.width), "Noise of single layers over the network's own signal")


def layer_table(difference: Difference, compared: Compared, width: int, worst: int = _WORST) -> Group:
    """The ``worst`` layers, those that certainly changed first, fitted to ``width`` columns."""
    write, wide = Writer.of(difference.before.results), width >= _WIDE
    layers = worst_first(difference).head(worst)
    rows = [_texts(row, write) for _, row in layers.iterrows()]
    unit = degradation_unit(difference.before.results)
    names = [row["name"] for row in rows]
    spans = [Text(row["span"], style="dim") for row in rows]
    changes = [Text(row["change"], style=_STYLES[row["verdict"]]) for row in rows]
    below = [Text(f"{row['lost']}; {row['sqnr']}", style="dim") for row in rows]
    on_loss = Column("verdict", [Text(row["verdict"], style=_STYLES[row["verdict"]]) for row in rows], right=False)
    on_noise = Column("noise", [Text(row["noise"], style=_STYLES[row["noise"]]) for row in rows], right=False)
    sqnr = [Text(row["sqnr_change"], style=_STYLES[row["noise"]]) for row in rows]
    number = Column("no.", [row["layer"] for row in rows], style="dim", spare=2)
    if wide:
        columns: tuple[Column, ...] = (
            number,
            Column("layer", names, right=False, least=12),
            Column("degradation", [row["lost"] for row in rows], spare=3),
            Column("change", changes),
            Column(f"{100 * compared.level:g} %", spans, right=False),
            on_loss,
            Column("SQNR (dB)", [row["sqnr"] for row in rows], spare=4),
            Column("change", sqnr),
            on_noise,
        )
    else:
        # Numbers stand under the name, which has at least their room.
        room = max((line.cell_len for line in below), default=0)
        stacked = [(elide(name, room), line) for name, line in zip(names, below, strict=True)]
        columns = (
            number,
            Column("layer", stacked, right=False),
            Column("change", list(zip(changes, spans, strict=True))),
            on_loss,
            Column("SQNR", sqnr, spare=1),
            replace(on_noise, spare=3),
        )
    notes = [f"change: of the degradation{unit}, positive is worse; of the SQNR, in dB, negative is worse"]
    if layers[["screened_before", "screened_after"]].to_numpy().any():
        notes.append(f"{PREDICTED} screened: predicted, not run")
    return Group(fitted(columns, width), *[Text(note, style="dim") for note in notes])


def _texts(row: pd.Series, write: Writer) -> dict[str, str]:
    screened = bool(row["screened_before"] or row["screened_after"])
    return {
        "layer": str(row["layer"]),
        "name": str(row["name"]),
        "lost": before_to_after(row, "degradation", write.number),
        "change": predicted(signed(row["degradation_change"], write.decimals), screened),
        "span": interval(row["degradation_change_low"], row["degradation_change_high"], write.decimals),
        "verdict": str(row["verdict"]),
        "sqnr": before_to_after(row, "sqnr_db", in_decibels),
        "sqnr_change": predicted(signed(row["sqnr_change_db"], 1), screened),
        "noise": str(row["noise_verdict"]),
    }


def degradation_strips(compared: Compared, width: int) -> Group:
    """A row per profile, a character per layer, partners under one another."""
    limit = degradation_limit(compared.views[0].results)
    strips = _strips(compared, width, lambda view, layer: shade(_value(view, layer, "degradation"), limit))
    steps = [f"{mark} from {below * limit:.2g}" for (below, _), (_, mark) in pairwise(SHADES)]
    legend = ", ".join([f"{SHADES[0][1]} less", *steps, f"- improves by {SHADES[0][0] * limit:.2g} or more"])
    return Group(strips, Text(legend, style="dim"))


def noise_strips(compared: Compared, width: int) -> Group:
    """The same of noise over signal, on one logarithmic scale for all."""
    known = [value for view in compared.views for value in -view.cells["sqnr_db"].to_numpy(dtype=float)]
    finite = [value for value in known if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)

    def block(view: View, layer: int) -> tuple[str, str]:
        loudness = -_value(view, layer, "sqnr_db")
        if math.isnan(loudness):
            return " ", ""
        share = 0.0 if loudness <= low else 1.0 if high == low else min(1.0, (loudness - low) / (high - low))
        return BLOCKS[min(len(BLOCKS) - 1, int(share * len(BLOCKS)))], "magenta"

    ends = [significant(10 ** (end / 10), 2) for end in (low, high)]
    return Group(
        _strips(compared, width, block),
        Text(f"{BLOCKS[0]} {ends[0]} to {BLOCKS[-1]} {ends[1]} of the signal's energy, logarithmic", style="dim"),
    )


def _value(view: View, layer: int, name: str) -> float:
    cells = view.cells
    return float(cells[name][layer]) if layer in cells.index else math.nan


def _strips(compared: Compared, width: int, mark: Callable[[View, int], tuple[str, str]]) -> Text:
    """``mark`` of every layer of every view at the layer's column, in as many bands as ``width`` asks for."""
    places = columns(compared)
    names = [elide(called(view, compared), _LABEL) for view in compared.views]
    label = max(map(len, names)) + 1
    room = max(10, (width - label) // 10 * 10)
    total = 1 + max(max(places[view.label]) for view in compared.views)
    rows = [{place: mark(view, layer) for layer, place in enumerate(places[view.label])} for view in compared.views]
    strip = Text(no_wrap=True)
    for start in range(0, total, room):
        band = range(start, min(start + room, total))
        strip.append(" " * label + ruler(band) + "\n", style="dim")
        for name, row in zip(names, rows, strict=True):
            strip.append(name.ljust(label))
            for place in band:
                strip.append(*row.get(place, (" ", "")))
            strip.append("\n")
    return strip
