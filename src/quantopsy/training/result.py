"""What a training leaves, as plain values for the page and for whoever reads ``training.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantopsy.core.recipe import Expected, Recipe
from quantopsy.graph.network import Layer
from quantopsy.quant import LevelsQParams, QParams, UniformQParams
from quantopsy.training.history import History
from quantopsy.training.network import TrainableNetwork
from quantopsy.training.settings import TrainingSettings

BINS = 64
"""Of the histograms of weights that are kept beside learned levels."""


@dataclass(frozen=True)
class Levels:
    """A trained weight beside its grid (DDQ, Figures 1 and 5(b)): of one layer, its first channel where every channel
    has a grid. ``counts`` of the weights between ``edges``; ``start`` and ``levels``: the grid before and after."""

    name: str
    bits: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    start: tuple[float, ...]
    levels: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """A training: what happened, and what its best network is worth on images it has not seen.

    ``held_out``: whether those are other images than the data's validation part, which chose the best epoch.
    ``average_bits`` of a weight; ``bitops`` now and at most, where they are limited.
    """

    folder: Path
    model: str
    data: str
    evaluation: str
    held_out: bool
    settings: TrainingSettings
    history: History
    expected: Expected
    average_bits: float
    bitops: tuple[float, float] | None
    levels: tuple[Levels, ...]
    kinds: Mapping[str, str]
    seconds: float
    recipe: Recipe

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the recipe is a file of its own."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("recipe", "folder")}
        return {
            **values,
            "settings": asdict(self.settings),
            "history": self.history.to_json(),
            "expected": asdict(self.expected),
            "levels": [asdict(levels) for levels in self.levels],
        }


def first_levels(network: TrainableNetwork) -> dict[str, tuple[float, ...]]:
    """The levels of every weight's grid, or of its first channel's."""
    return {
        layer.layer.name: _table(layer.weight_quantizer.qparams)
        for layer in network.quantized_layers
        if layer.weight_quantizer is not None
    }


def levels_of(network: TrainableNetwork, first: Mapping[str, tuple[float, ...]]) -> Iterator[Levels]:
    for layer in network.quantized_layers:
        if layer.weight_quantizer is None:
            continue
        weight, grid = layer.latent_weight().detach().cpu().float(), layer.weight_quantizer.qparams
        if grid.axis is not None:
            weight = weight.select(grid.axis, 0)
        counts, edges = np.histogram(weight.numpy(), bins=BINS)
        name = layer.layer.name
        yield Levels(
            name,
            layer.weight_quantizer.bits,
            tuple(edges.tolist()),
            tuple(counts.tolist()),
            first[name],
            _table(grid),
        )


def kind(layer: Layer) -> str:
    """``depthwise``, ``pointwise``, or the operation's name."""
    if layer.weight_shape is None or not layer.op.startswith("conv"):
        return layer.op
    if layer.groups > 1 and layer.groups == layer.output_shape[0]:
        return "depthwise"
    return "pointwise" if all(size == 1 for size in layer.weight_shape[2:]) else layer.op


def _table(grid: QParams) -> tuple[float, ...]:
    """The levels of a grid, of the first where it has one for every channel, ascending; none of a piecewise one."""
    if isinstance(grid, UniformQParams):
        codes = torch.arange(grid.qmin, grid.qmax + 1)
        return tuple(((codes - grid.zero_point.flatten()[0].cpu()) * grid.scale.flatten()[0].cpu()).tolist())
    if isinstance(grid, LevelsQParams):
        levels = grid.levels.reshape(-1, grid.levels.shape[-1])[0]
        return tuple((levels * grid.scale.flatten()[0]).tolist())
    return ()
