"""Profiles of layers over one another (layer-wise paper, Figures 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

from quantopsy.analysis.comparison import Compared, View
from quantopsy.core import QuantopsyError
from quantopsy.report.chart import Axis, Chart, Group, Line, Point
from quantopsy.report.compared.words import called
from quantopsy.report.palette import Tone, bit_tones
from quantopsy.report.wording import (
    degradation_decimals,
    degradation_unit,
    fixed,
    predicted,
    with_interval,
)


def columns(compared: Compared) -> Mapping[str, list[int]]:
    """For each study (by label) the column of each of its layers, so that partners share one.

    A layer without a partner has a column of its own, behind the layer before it. A network of another
    architecture than the first has its own order from 0: there is nothing to line up.
    """
    base, *others = {view.label: view for view in compared.views}.values()
    order: list[Hashable] = [(base.label, layer) for layer in range(len(base.results.layers))]
    keys: dict[str, list[Hashable]] = {base.label: list(order)}
    apart: dict[str, list[int]] = {}
    matchings = {d.after.label: d.matching for d in compared.differences if d.after.label != base.label}
    for view in others:
        matching, layers = matchings[view.label], len(view.results.layers)
        if not matching.pairs:
            apart[view.label] = list(range(layers))
            continue
        partner = {pair.after: pair.before for pair in matching.pairs}
        mine: list[Hashable] = []
        for layer in range(layers):
            key = (base.label, partner[layer]) if layer in partner else (view.label, layer)
            if layer not in partner:
                order.insert(order.index(mine[-1]) + 1 if mine else 0, key)
            mine.append(key)
        keys[view.label] = mine
    place = {key: index for index, key in enumerate(order)}
    return {**{label: [place[key] for key in mine] for label, mine in keys.items()}, **apart}


def profile_chart(compared: Compared, quantity: Literal["degradation", "noise"]) -> Chart:
    """Layers in order against what quantizing each alone costs, a line per view.

    ``degradation`` in the metric's unit with its intervals, or ``noise`` over the float network's own signal:
    1 / SQNR, which networks of different outputs have in common.
    """
    if quantity not in ("degradation", "noise"):
        raise QuantopsyError(f"profile {quantity!r}", "there is none of that name", "give degradation or noise")
    places = columns(compared)
    groups = [
        Group(called(view, compared), _points(view, places[view.label], quantity), tone)
        for view, tone in zip(compared.views, _tones(compared), strict=True)
    ]
    first = compared.views[0].results
    y = Axis(f"degradation{degradation_unit(first)}") if quantity == "degradation" else Axis("noise / signal", True)
    return Chart(
        "Degradation of single layers" if quantity == "degradation" else "Noise of single layers over the signal",
        Axis("layer, in topological order", whole=True),
        y,
        tuple(groups),
        tuple(Line("", tuple((p.x, p.y) for p in group.points if y.holds(p.y)), group.tone) for group in groups),
        hollow="screened (predicted)",
        wide=True,
    )


def _points(view: View, places: Sequence[int], quantity: str) -> tuple[Point, ...]:
    decimals, unit = degradation_decimals(view.results), view.results.unit
    points = []
    for row in view.cells.sort_index().itertuples(index=False):
        screened = row.method == "screened"
        over_signal = 10.0 ** (-row.sqnr_db / 10.0)
        # The standard error of the noise, as a share of it: the signal's own is small beside it.
        spread = over_signal * row.noise_stderr / row.noise if row.noise > 0 else math.nan
        lost = with_interval(row.degradation, row.degradation_low, row.degradation_high, decimals)
        title = "\n".join(
            [
                row.name,
                f"{row.op}, {view.name}, {'screened (predicted)' if screened else 'exact'}",
                f"degradation {predicted(lost, screened)}{f' {unit}' if unit else ''}",
                f"SQNR {predicted(fixed(row.sqnr_db, 1), screened)} dB",
            ]
        )
        x = float(places[row.layer])
        if quantity == "degradation":
            points.append(Point(x, row.degradation, row.degradation_low, row.degradation_high, title, screened))
        else:
            low = max(over_signal - 2.0 * spread, 0.2 * over_signal)
            points.append(Point(x, over_signal, low, over_signal + 2.0 * spread, title, screened))
    return tuple(points)


_ROLES = ("accent", "worse", "noise", "muted", "better")


def _tones(compared: Compared) -> list[Tone]:
    """A colour for each study, paler at fewer bits; of a single study the colours of its bit-widths."""
    labels = list(dict.fromkeys(view.label for view in compared.views))
    if len(labels) == 1:
        tones = bit_tones(view.bits for view in compared.views)
        return [tones[view.bits] for view in compared.views]
    widths = sorted({view.bits for view in compared.views}, reverse=True)
    return [
        Tone(_ROLES[labels.index(view.label) % len(_ROLES)], "surface", 0.7 * widths.index(view.bits) / len(widths))
        for view in compared.views
    ]
