"""What a check of a model found, in words and tables on the terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.text import Text

from quantopsy.analysis.check import Checked, InputValues
from quantopsy.core.plain import plain
from quantopsy.report.fitted import Column, fitted
from quantopsy.report.terminal import bullets, print_part
from quantopsy.report.wording import (
    capital,
    count,
    duration,
    interval_decimals,
    percent,
    shape,
    si,
    significant,
    with_interval,
)

_FEW = 20
"""Images below which their metric says nothing of all of them."""

_CHANNELS = 4
"""Up to so many are named one by one."""


def statements(checked: Checked) -> list[str]:
    """What there is to quantize, what the float network is worth, and what each mode of an analysis takes."""
    coverage = checked.network.coverage
    decimals = interval_decimals(pd.Series([checked.value.low]), pd.Series([checked.value.high]), checked.metric.unit)
    value = with_interval(checked.value.value, checked.value.low, checked.value.high, decimals)
    of = f"{checked.looked_at} of {count(checked.images, 'image')}"
    return [
        f"Ready for an analysis: folded, the network gives what yours gives; {percent(coverage['macs_share'])} of "
        f"{si(coverage['macs'])} MACs can be quantized, {si(coverage['parameters'])} parameters.",
        f"Float {checked.metric.name} on {of}: {value}{f' {checked.metric.unit}' if checked.metric.unit else ''}.",
        *map(_input_sentence, checked.inputs),
        f"A float pass over all images takes {duration(checked.pass_seconds)} on {checked.device} "
        f"({count(checked.threads, 'thread')}); images in flight take about {significant(checked.gib, 2)} GiB.",
    ]


def cautions(checked: Checked) -> list[str]:
    """What an analysis would stumble over, or what makes it say less."""
    found = []
    if checked.network.unquantized:
        found.append(
            "Left in float, in the analysis and in every file that is exported: "
            f"{count(len(checked.network.unquantized), 'operator')}, listed below."
        )
    if checked.at_chance is not None:
        found.append(f"{capital(checked.at_chance)}.")
    if checked.images < _FEW:
        found.append(f"{count(checked.images, 'image')} cannot tell which layers hurt; a few hundred can.")
    if checked.bad:
        found.append(f"Left out, because unreadable: {count(len(checked.bad), 'image')}, the first {checked.bad[0]}.")
    return found


def print_checked(checked: Checked, console: Console) -> None:
    """Print words, layers by operation, and what stays float."""
    print_part(console, bullets(statements(checked), cautions(checked)))
    rows = checked.operations().to_dict("records")
    columns = (
        Column("operation", [row["op"] for row in rows], right=False, least=12),
        Column("layers", [str(row["layers"]) for row in rows]),
        Column("MACs", [percent(row["macs_share"]) for row in rows]),
        Column("parameters", [si(row["parameters"]) for row in rows]),
    )
    print_part(console, fitted(columns, console.width), "Layers by operation")
    modes = [(mode, passes, "at most " if mode == "auto" else "") for mode, passes in checked.passes.items()]
    costs = (
        Column("--mode", [mode for mode, _, _ in modes], right=False),
        Column("about", [f"{most}{duration(passes * checked.pass_seconds)}" for _, passes, most in modes]),
        Column("passes", [f"{most}{passes:.0f}" for _, passes, most in modes]),
    )
    heading = f"What an analysis at {count(len(checked.bits), 'bit-width')} takes"
    note = Text("`quantopsy analyze` has the same arguments; --samples N takes fewer images", style="dim")
    print_part(console, Group(fitted(costs, console.width), note), heading)
    if floats := [asdict(item) for item in checked.network.unquantized]:
        told = (
            Column("operator", [item["operator"].removeprefix("aten.") for item in floats], right=False, least=12),
            Column("where", [item["name"] for item in floats], right=False, least=12),
            Column("source", [item["source"] or "" for item in floats], right=False, style="dim", least=12),
        )
        print_part(console, fitted(told, console.width), "Stays float")
    print_part(console, Text(f"{count(checked.looked_at, 'image')}, {duration(checked.seconds)}", style="dim"))


def checked_document(checked: Checked) -> dict[str, Any]:
    """Plain JSON values: what ``quantopsy check --json`` prints."""
    return {
        "model": checked.model,
        "data": checked.data,
        "metric": checked.metric.name,
        "unit": checked.metric.unit,
        "float": checked.value.value,
        "float_interval": plain([checked.value.low, checked.value.high]),
        "classes": checked.classes,
        "chance": checked.chance,
        "at_chance": checked.at_chance is not None,
        "images": checked.images,
        "samples": checked.looked_at,
        "bad": list(checked.bad),
        "inputs": [asdict(values) for values in checked.inputs],
        "coverage": dict(checked.network.coverage),
        "operations": checked.operations().to_dict("records"),
        "unquantized": [asdict(item) for item in checked.network.unquantized],
        "passes": dict(checked.passes),
        "pass_seconds": checked.pass_seconds,
        "memory_gib": checked.gib,
        "warnings": cautions(checked),
        "seconds": checked.seconds,
    }


def _input_sentence(values: InputValues) -> str:
    spread = f"from {significant(values.low)} to {significant(values.high)}"
    told = f"Input `{values.name}` ({shape(values.shape)}) holds values {spread}"
    if len(values.mean) > _CHANNELS:
        return f"{told}."
    mean, std = (", ".join(significant(value, 2) for value in side) for side in (values.mean, values.std))
    by = " by channel" if len(values.mean) > 1 else ""
    return f"{told}; mean{by} {mean}, deviation {std}."
