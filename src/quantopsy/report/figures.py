"""Plotly figures of an analysis; what each shows is computed in ``grid`` and ``distributions``."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from quantopsy.analysis.results import Results
from quantopsy.core.errors import QuantopsyError
from quantopsy.graph.network import Network
from quantopsy.report.chart import Chart
from quantopsy.report.distributions import channel_shares, channels, histogram, layer_row, ranges
from quantopsy.report.grid import Grid, cell_text, degradation_limit, grid, noise_limits, sqnr_text
from quantopsy.report.palette import LIGHT, ramp, strong_from
from quantopsy.report.sections import check_chart
from quantopsy.report.wording import (
    BEYOND_LINEAR,
    SCREENED,
    degradation_decimals,
    degradation_unit,
    elide,
    fixed,
    predicted,
    significant,
    with_interval,
)

View = Literal["degradation", "noise"]

_TEXT_UP_TO = 40
"""Layers up to which a number fits into a cell; beyond, hovering tells."""

_NAMES_UP_TO = 60
"""Layers up to which every column carries a name."""


def heatmap(results: Results, view: View = "degradation") -> go.Figure:
    """A row per bit-width, a column per layer in topological order (Figure 3 of the layer-wise paper).

    ``degradation`` writes it into the cells and saturates at 5 points (without points at a robust scale);
    ``noise`` colours by its logarithm and writes the SQNR in dB. Screened cells carry a mark.
    """
    if view not in get_args(View):
        raise QuantopsyError(f"view {view!r}", "there is none of that name", "give degradation or noise")
    cells = grid(results)
    trace, numbers = _degradation_trace(results, cells) if view == "degradation" else _noise_trace(results, cells)
    columns = list(range(len(cells.layers)))
    rows = list(range(len(cells.bits)))
    trace.update(x=columns, y=rows, hovertext=_hover(results, cells), hoverinfo="text", xgap=1, ygap=1)
    figure = go.Figure(trace)
    if len(columns) <= _TEXT_UP_TO:
        figure.add_trace(_numbers(trace, numbers, LIGHT.worse if view == "degradation" else LIGHT.noise))
    figure.add_trace(_screened_marks(cells))
    figure.update_layout(
        title=f"{results.model}: {view} of single layers" if results.model else None,
        template="plotly_white",
        height=170 + 34 * len(rows) + (110 if len(columns) <= _NAMES_UP_TO else 0),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        plot_bgcolor=LIGHT.surface,
    )
    figure.update_xaxes(showgrid=False, zeroline=False, title="layer, in topological order", **_names_axis(cells))
    figure.update_yaxes(
        autorange="reversed", tickvals=rows, ticktext=[str(bits) for bits in cells.bits], title="weight bits"
    )
    figure.update_yaxes(showgrid=False, zeroline=False)
    return figure


def layer_bars(results: Results, bits: int) -> go.Figure:
    """Degradation and noise of each layer at one bit-width, with their intervals (Figure 1b)."""
    cells = grid(results)
    row = _row(cells, bits)
    colours = np.where(cells.degradation[row] < 0, LIGHT.better, LIGHT.worse)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    columns = list(range(len(cells.layers)))
    hover = _hover(results, cells)[row]
    figure.add_trace(
        go.Bar(
            x=columns,
            y=cells.degradation[row],
            marker={"color": colours, "pattern": {"shape": np.where(cells.screened[row], "/", "").tolist()}},
            error_y={
                "array": cells.degradation_high[row] - cells.degradation[row],
                "arrayminus": cells.degradation[row] - cells.degradation_low[row],
                "thickness": 1,
                "width": 0,
            },
            hovertext=hover,
            hoverinfo="text",
        ),
        row=1,
        col=1,
    )
    figure.add_trace(
        go.Bar(
            x=columns,
            y=cells.noise[row],
            marker={
                "color": LIGHT.noise,
                "pattern": {"shape": np.where(cells.screened[row], "/", "").tolist()},
            },
            error_y={"array": cells.noise_stderr[row], "thickness": 1, "width": 0},
            hovertext=hover,
            hoverinfo="text",
        ),
        row=2,
        col=1,
    )
    figure.update_layout(title=f"Single layers at {bits} bits", template="plotly_white", showlegend=False, height=520)
    figure.update_yaxes(title=f"degradation{degradation_unit(results)}", row=1, col=1)
    figure.update_yaxes(title="noise", type="log", dtick=1, row=2, col=1)
    figure.update_xaxes(showgrid=False, **_names_axis(cells))
    return figure


def predicted_against_exact(results: Results) -> go.Figure:
    """Noise as screened against noise as measured, a point per cell that has both, and where they are equal.

    Colour tells the bits. Open diamonds are cells beyond the linear regime, where a first-order prediction
    is rough. There are no points where nothing was both screened and run.
    """
    return chart(check_chart(results))


def chart(shown: Chart) -> go.Figure:
    """A chart of the page as a figure of plotly's."""
    across, along = shown.ends()
    figure = go.Figure()
    if shown.identity:
        figure.add_trace(_line(across, along, shown.identity, LIGHT.muted, dashed=False, width=1.0))
    for line in shown.lines:
        x, y = [x for x, _ in line.corners], [y for _, y in line.corners]
        figure.add_trace(_line(x, y, line.label, line.tone.of(LIGHT), dashed=line.dashed))
    for group in shown.shown:
        points = group.points
        figure.add_trace(
            go.Scatter(
                x=[point.x for point in points],
                y=[point.y for point in points],
                mode="markers",
                marker={
                    "color": group.tone.of(LIGHT),
                    "size": 8,
                    "symbol": ["diamond-open" if point.hollow else "circle" for point in points],
                },
                error_y={
                    "array": [point.high - point.y for point in points],
                    "arrayminus": [point.y - point.low for point in points],
                    "thickness": 1,
                    "width": 0,
                },
                name=html.escape(group.label),
                hovertext=[html.escape(point.title).replace("\n", "<br>") for point in points],
                hoverinfo="text",
            )
        )
    hollow = any(point.hollow for group in shown.shown for point in group.points)
    note = f"; open diamonds: {shown.hollow}" if hollow and shown.hollow else ""
    figure.update_layout(title=html.escape(shown.title + note), template="plotly_white", height=520, width=680)
    for update, axis, ends in ((figure.update_xaxes, shown.x, across), (figure.update_yaxes, shown.y, along)):
        if axis.names:
            texts = [html.escape(name).replace("\n", "<br>") for name in axis.names]
            update(title=html.escape(axis.label), tickvals=list(range(len(texts))), ticktext=texts, range=list(ends))
        elif axis.logarithmic:
            tick = 1 if ends[1] > 100 * ends[0] else "D2"
            update(title=html.escape(axis.label), type="log", dtick=tick, range=np.log10(ends).tolist())
        else:
            update(title=html.escape(axis.label), range=list(ends))
    return figure


def _line(
    x: Sequence[float], y: Sequence[float], label: str, colour: str, *, dashed: bool, width: float = 1.5
) -> go.Scatter:
    line = {"color": colour, "width": width, "dash": "dash" if dashed else "solid"}
    return go.Scatter(
        x=x, y=y, mode="lines", line=line, name=html.escape(label), showlegend=bool(label), hoverinfo="skip"
    )


def weight_histogram(results: Results, layer: str | int) -> go.Figure:
    """Weights of a layer, log count, the quantization range as dash-dot lines (Figure 6)."""
    shown = histogram(results, layer)
    figure = go.Figure(
        go.Bar(x=shown.centres, y=shown.counts, width=shown.widths, marker_color=LIGHT.accent, name="weights")
    )
    for edge in (shown.low, shown.high):
        figure.add_vline(edge, line={"dash": "dashdot", "color": LIGHT.worse, "width": 1.5})
    figure.update_layout(title=_title(results, layer), template="plotly_white", height=360, showlegend=False)
    figure.update_xaxes(title="weight")
    # From half a count, so that a bin with one weight in it, an outlier, shows.
    top = math.log10(max(float(shown.counts.max()), 1.0)) + 0.2
    figure.update_yaxes(title="count", type="log", dtick=1, range=[math.log10(0.5), top])
    return figure


def channel_ranges(results: Results, layer: str | int) -> go.Figure:
    """Smallest and largest weight of every output channel of a layer."""
    low, high = channels(results, layer)
    figure = go.Figure(
        go.Bar(
            x=np.arange(len(low)),
            base=low,
            y=high - low,
            customdata=np.stack([low, high], axis=1),
            hovertemplate="channel %{x}<br>%{customdata[0]:.4g} to %{customdata[1]:.4g}<extra></extra>",
            marker_color=LIGHT.accent,
        )
    )
    figure.update_layout(title=_title(results, layer), template="plotly_white", height=360)
    figure.update_xaxes(title="output channel")
    figure.update_yaxes(title="weight, lowest to highest")
    return figure


def equalized_ranges(before: Network, after: Network, layer: str) -> go.Figure:
    """The share of its tensor's range that every channel of a layer uses, before and after a transform.

    Channels that the layer makes above, channels that it reads below; all at 1 is what equalization is after.
    """
    shares = (
        ("before", channel_shares(before, layer), LIGHT.muted),
        ("after", channel_shares(after, layer), LIGHT.accent),
    )
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.16)
    for row, (side, title) in enumerate((("out", "output channel"), ("into", "input channel")), start=1):
        for name, found, colour in shares:
            share = getattr(found, side)
            figure.add_trace(
                go.Scatter(
                    x=np.arange(len(share)),
                    y=np.where(share > 0, share, np.nan),  # no weight at all has no place on a logarithmic axis
                    mode="markers",
                    marker={"color": colour, "size": 6, "symbol": "circle-open" if name == "before" else "circle"},
                    name=name,
                    showlegend=row == 1,
                    hovertemplate="channel %{x}<br>%{y:.3g} of the range<extra></extra>",
                ),
                row=row,
                col=1,
            )
        figure.update_xaxes(title=title, row=row, col=1)
    shown = before.layer(layer)
    figure.update_layout(title=html.escape(f"{shown.name} ({shown.op})"), template="plotly_white", height=520)
    figure.update_yaxes(title="share of the range", type="log", dtick=1)
    return figure


def activation_ranges(results: Results, layer: str | int) -> go.Figure:
    """Calibrated ranges of a layer's inputs and of its output."""
    shown = ranges(results, layer)
    figure = go.Figure(
        go.Bar(
            y=[name for name, _, _ in shown],
            base=[low for _, low, _ in shown],
            x=[high - low for _, low, high in shown],
            orientation="h",
            text=[f"{significant(low)} to {significant(high)}" for _, low, high in shown],
            marker_color=LIGHT.accent,
        )
    )
    figure.update_layout(title=_title(results, layer), template="plotly_white", height=160 + 44 * len(shown))
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="activation")
    return figure


def _degradation_trace(results: Results, cells: Grid) -> tuple[go.Heatmap, list[list[str]]]:
    limit = degradation_limit(results)
    scale = "" if results.unit == "points" else "<br>(95th percentile)"
    trace = go.Heatmap(
        z=cells.degradation,
        zmin=-limit,
        zmax=limit,
        colorscale=ramp(LIGHT.better, LIGHT.zero, LIGHT.worse),
        colorbar={
            "title": {"text": f"degradation{degradation_unit(results)}{scale}", "side": "right"},
            "tickvals": [-limit, -limit / 2, 0, limit / 2, limit],
            "ticktext": [
                f"{fixed(-limit, 0) if limit >= 1 else significant(-limit)} or less",
                significant(-limit / 2, 2),
                "0",
                significant(limit / 2, 2),
                f"{significant(limit, 1)} or more",
            ],
        },
    )
    return trace, [[cell_text(value, limit) for value in row] for row in cells.degradation]


def _noise_trace(results: Results, cells: Grid) -> tuple[go.Heatmap, list[list[str]]]:
    bottom, top = noise_limits(results)
    with np.errstate(divide="ignore"):
        logarithm = np.log10(cells.noise)
    first, last = math.ceil(bottom), math.floor(top)
    ticks = list(range(first, last + 1, max(1, (last - first) // 4)))
    trace = go.Heatmap(
        # No noise at all has no logarithm; it belongs at the quiet end, not among the unmeasured.
        z=np.where(np.isneginf(logarithm), bottom, logarithm),
        zmin=bottom,
        zmax=top,
        colorscale=ramp(LIGHT.zero, LIGHT.noise),
        colorbar={
            "title": {"text": "noise", "side": "right"},
            "tickvals": ticks,
            "ticktext": [significant(10.0**tick, 1) for tick in ticks],
        },
    )
    return trace, [[sqnr_text(value) for value in row] for row in cells.sqnr_db]


def _numbers(trace: go.Heatmap, numbers: list[list[str]], full: str) -> go.Scatter:
    """The numbers in the cells, each in the colour that its cell allows; plotly's own choice is at times unreadable."""
    depth = {full: strong_from(LIGHT, full), LIGHT.better: strong_from(LIGHT, LIGHT.better)}
    row, column = np.nonzero(np.isfinite(trace.z))
    # A diverging scale has its zero in the middle, the other one at its low end.
    zero = 0.0 if trace.zmin == -trace.zmax else trace.zmin
    share = np.clip((trace.z[row, column] - zero) / (trace.zmax - zero), -1, 1)
    turn = np.where(share < 0, depth[LIGHT.better], depth[full])
    return go.Scatter(
        x=column,
        y=row,
        mode="text",
        text=[numbers[r][c] for r, c in zip(row, column, strict=True)],
        textfont={"size": 11, "color": np.where(np.abs(share) >= turn, LIGHT.strong, LIGHT.faint)},
        hoverinfo="skip",
        showlegend=False,
    )


def _screened_marks(cells: Grid) -> go.Scatter:
    row, column = np.nonzero(cells.screened)
    return go.Scatter(
        x=column - 0.36,
        y=row - 0.3,
        mode="markers",
        marker={"symbol": "circle", "size": 4, "color": LIGHT.ink},
        opacity=0.6,
        name=SCREENED,
        hoverinfo="skip",
        showlegend=bool(len(row)),
    )


def _names_axis(cells: Grid) -> dict[str, object]:
    if len(cells.layers) > _NAMES_UP_TO:
        return {}
    names = [html.escape(elide(name, 26)) for name in cells.names]
    return {"tickvals": list(range(len(names))), "ticktext": names, "tickangle": -60}


def _hover(results: Results, cells: Grid) -> list[list[str]]:
    """Text of every cell, escaped: plotly reads a subset of HTML."""
    decimals = degradation_decimals(results)
    unit = f" {results.unit}" if results.unit else ""
    sources = results.layers["source"].tolist()
    ops = results.layers["op"].tolist()
    text = []
    for row, bits in enumerate(cells.bits):
        line = []
        for column, name in enumerate(cells.names):
            head = [f"<b>{html.escape(elide(name, 60))}</b>", html.escape(str(ops[column]))]
            if isinstance(sources[column], str):
                head.append(html.escape(sources[column]))
            if math.isnan(cells.noise[row, column]) and math.isnan(cells.degradation[row, column]):
                line.append("<br>".join([*head, f"{bits} bits, not measured"]))
                continue
            lost = with_interval(
                cells.degradation[row, column],
                cells.degradation_low[row, column],
                cells.degradation_high[row, column],
                decimals,
            )
            screened = bool(cells.screened[row, column])
            method = SCREENED if screened else "exact"
            noise = predicted(significant(cells.noise[row, column]), screened)
            stderr = cells.noise_stderr[row, column]
            if math.isfinite(stderr):
                noise += f" ± {significant(stderr, 2)}"
            line.append(
                "<br>".join(
                    [
                        *head,
                        f"{bits} bits, {method}",
                        f"degradation {predicted(lost, screened)}{unit}",
                        f"noise {noise}, SQNR {sqnr_text(cells.sqnr_db[row, column]) or '?'} dB",
                        *([BEYOND_LINEAR] if cells.rough[row, column] else []),
                    ]
                )
            )
        text.append(line)
    return text


def _row(cells: Grid, bits: int) -> int:
    if bits not in cells.bits:
        known = ", ".join(str(value) for value in sorted(cells.bits))
        raise QuantopsyError(f"bits {bits!r}", "they were not analysed", f"give one of {known}")
    return cells.bits.index(bits)


def _title(results: Results, layer: str | int) -> str:
    row = layer_row(results, layer)
    return html.escape(f"{row['name']} ({row['op']})")
