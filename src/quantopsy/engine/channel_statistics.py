"""What the channels of activations are like: the plain statistics that transforms are found from. C channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError
from quantopsy.engine.calibration import look_at_values
from quantopsy.graph.execute import Program


@dataclass(frozen=True)
class ChannelStatistics:
    """Of the channels of one value over images and positions, (C,) float32 each on the CPU."""

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor


def channel_statistics(
    program: Program,
    batches: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, ChannelStatistics]:
    """Statistics of what every layer gives, by value, from one float pass over ``batches``.

    ``advance`` hears of every batch's images. Channels lie along the last axis behind linear layers and products,
    else along the second. Raises :class:`QuantopsyError` where there is no batch.
    """
    axes = {layer.output: layer.channel_axis for layer in program.network.layers}
    running: dict[str, _Running] = {}

    def look(name: str, value: Any) -> None:
        if name in axes and isinstance(value, Tensor) and value.dim() > 1:
            running.setdefault(name, _Running()).add(value.movedim(axes[name], 0).flatten(1))

    for inputs in batches:
        advance(look_at_values(program, inputs, look))
    if not running:
        raise QuantopsyError("statistics of channels", "there is no image to take them from", "give a batch")
    return {name: seen.statistics() for name, seen in running.items()}


@dataclass
class _Running:
    count: int = 0
    low: Tensor | None = None
    high: Tensor | None = None
    total: Tensor | None = None
    squares: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """A batch as (C, N)."""
        low, high = rows.amin(1).float().cpu(), rows.amax(1).float().cpu()
        exact = rows.double()
        total, squares = exact.sum(1).cpu(), exact.square().sum(1).cpu()
        self.count += rows.shape[1]
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def statistics(self) -> ChannelStatistics:
        assert self.low is not None
        assert self.high is not None
        assert self.total is not None
        assert self.squares is not None
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0)
        return ChannelStatistics(self.low, self.high, mean.float(), variance.sqrt().float())
