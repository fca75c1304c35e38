"""What the tensors of one layer look like, ready to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from quantopsy.analysis.results import Distribution, Results
from quantopsy.core.errors import QuantopsyError
from quantopsy.core.names import unknown
from quantopsy.graph.network import Network
from quantopsy.transforms.scale_classes import matrices

_CENTRAL = 0.99
"""Share of the weights that "nearly all" stands for; what lies outside are the outliers."""


@dataclass(frozen=True)
class Histogram:
    """Bars of shape (bins,), the range from ``low`` to ``high``, and how much of it is in use.

    ``low`` and ``high`` are the ends of the weight's grid; where they are not known, the smallest and
    largest weight, zero included: a grid always represents it.
    ``central_share`` is the part of that range that the central 99 % of the weights take up.
    """

    centres: np.ndarray
    widths: np.ndarray
    counts: np.ndarray
    low: float
    high: float
    central_share: float


def layer_row(results: Results, layer: str | int) -> pd.Series:
    """The row of ``results.layers`` with that name or topological position."""
    column = "layer" if isinstance(layer, int) else "name"
    rows = results.layers[results.layers[column] == layer]
    if rows.empty:
        raise unknown(str(layer), results.layers[column].astype(str).tolist(), "layer")
    return rows.iloc[0]


def of_layer(results: Results, layer: str | int) -> Distribution:
    """The layer's distribution; an empty one where none was kept."""
    return results.distributions.get(layer_row(results, layer)["name"], Distribution())


def histogram(results: Results, layer: str | int) -> Histogram:
    """The weight histogram of a layer. Raises where the layer has no weight."""
    found = histogram_of(of_layer(results, layer))
    if found is None:
        raise _weightless(layer)
    return found


def histogram_of(distribution: Distribution) -> Histogram | None:
    """The histogram with its range; ``None`` where there is no weight."""
    edges, counts = distribution.weight_edges, distribution.weight_counts
    if edges is None or counts is None:
        return None
    edges, counts = np.asarray(edges, dtype=float), np.asarray(counts, dtype=float)
    low, high = distribution.weight_range or (min(0.0, float(edges[0])), max(0.0, float(edges[-1])))
    reached = np.concatenate([[0.0], np.cumsum(counts)]) / max(counts.sum(), 1.0)
    tail = (1 - _CENTRAL) / 2
    inner = np.interp([tail, 1 - tail], reached, edges)
    share = float((inner[1] - inner[0]) / (high - low)) if high > low else 1.0
    return Histogram((edges[:-1] + edges[1:]) / 2, np.diff(edges), counts, low, high, share)


def channels(results: Results, layer: str | int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest weight per output channel, each (C_out,). Raises where there is no weight."""
    distribution = of_layer(results, layer)
    if distribution.channel_low is None or distribution.channel_high is None:
        raise _weightless(layer)
    return np.asarray(distribution.channel_low, dtype=float), np.asarray(distribution.channel_high, dtype=float)


@dataclass(frozen=True)
class ChannelShares:
    """Of a layer's channels the largest absolute weight over that of the whole tensor: (O,) out, (I,) into it.

    The share of a per-tensor grid that a channel uses; 0 of one without weights.
    """

    out: np.ndarray
    into: np.ndarray


def channel_shares(network: Network, layer: str) -> ChannelShares:
    """How evenly the weights of a layer use a grid that they share. Raises where there is no weight."""
    found = network.layer(layer)
    weight = network.weight(found)
    if weight is None:
        raise _weightless(layer)
    kernels = matrices(found, weight).abs().amax(3)  # (G, O / G, I / G)
    whole = kernels.max().clamp(min=1e-30)
    return ChannelShares(*((kernels.amax(dim).flatten() / whole).cpu().numpy() for dim in (2, 1)))


def ranges(results: Results, layer: str | int) -> list[tuple[str, float, float]]:
    """(edge, low, high) of the calibrated activation ranges, inputs before the output."""
    return ranges_of(of_layer(results, layer))


def ranges_of(distribution: Distribution) -> list[tuple[str, float, float]]:
    """As :func:`ranges`; inputs are numbered where there are several."""
    several = len(distribution.input_ranges) > 1
    edges = [
        (f"input {index + 1}" if several else "input", float(low), float(high))
        for index, (low, high) in enumerate(distribution.input_ranges)
    ]
    if distribution.output_range is not None:
        edges.append(("output", float(distribution.output_range[0]), float(distribution.output_range[1])))
    return edges


def _weightless(layer: Any) -> QuantopsyError:
    return QuantopsyError(f"layer {layer!r}", "it has no weight to show", "choose a convolution or a linear layer")
