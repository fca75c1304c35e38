"""Ways to compute one network side by side, as a table and in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from quantopsy.report.wording import MISSING, fixed, percent, share_reached, with_interval

if TYPE_CHECKING:
    from quantopsy.export.onnx.parity import Parity, Way


def parity_table(found: Parity) -> Table:
    """A row per way."""
    decimals = 1 if found.unit else 4
    lost = f"lost\n({found.unit})" if found.unit else "lost"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    headings = (
        "",
        found.metric,
        lost,
        "same\n(%)",
        "layers\nequal (%)",
        "within a\nstep (%)",
    )
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="right" if position else "left", overflow="fold")
    for way in found.ways:
        layers = way.layers
        table.add_row(
            Text(way.name),
            fixed(way.value[0], decimals),
            MISSING if way.name == "float" else with_interval(*way.lost, decimals),
            fixed(way.decisions, 1),
            MISSING if layers is None else share_reached(layers.equal),
            MISSING if layers is None else share_reached(layers.within_step),
        )
    return table


def parity_statements(found: Parity) -> Iterator[str]:
    """Where the ways part, and why; every layer is judged from the inputs that it had in that way."""
    from quantopsy.export.onnx.parity import CAUSES

    for way in found.ways[2:]:
        layers = way.layers
        if layers is None:
            yield f"{way.name}: it keeps no codes under the recipe's names, so only its outputs are compared."
        elif layers.first is not None:
            why = _sentence(CAUSES[layers.cause])
            yield f"{way.name}: `{layers.first}` is the first layer more than a step away. {why}"
        elif layers.cause == "rounding ties":
            ties = "" if layers.explained is None else f", of which ties explain {percent(layers.explained)}"
            example = "" if layers.example is None else f" For example {layers.example}."
            yield f"{way.name}: no layer is more than a step away; single steps at rounding ties{ties}.{example}"
        else:
            yield f"{way.name}: every layer is equal to the simulation."
        yield from _seen(way)


def _seen(way: Way) -> Iterator[str]:
    if way.first_seen is not None and way.layers is not None and way.layers.first is None:
        name, share = way.first_seen
        yield (
            f"{way.name}: from the network's inputs on, `{name}` is the first with values more than a step away "
            f"({percent(share)}): what layers before it differ in, the network multiplies."
        )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
