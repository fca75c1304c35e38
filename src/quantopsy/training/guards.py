"""What goes wrong in quantization-aware training, noticed and kept in bounds; every guard says what it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantopsy.core import QuantopsyError
from quantopsy.training.network import QuantizedLayer, TrainableNetwork

FURTHEST = 32.0
"""A step size that has grown or shrunk by more than this factor has run away."""

RECENT = 0.02
"""Weight of the newest step in the running frequency of oscillations."""

OFTEN = 0.05
"""Oscillations a step above which a weight is frozen."""


def first_not_finite(network: TrainableNetwork, inputs: Any) -> str | None:
    """The first layer, in order, whose weight, grid or result for ``inputs`` is not finite; None where all are."""
    for layer in network.quantized_layers:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters()):
            return layer.layer.name
    names = [layer.layer.name for layer in network.quantized_layers]
    reached: list[str] = []
    found: list[str] = []

    def look(name: str, value: Tensor) -> None:
        reached.append(name)
        if not bool(torch.isfinite(value).all()):
            found.append(name)

    try:
        with torch.no_grad():
            network.run(inputs, look)
    except QuantopsyError:  # a grid refuses NaN: it is of the layer that comes next
        found.append(names[len(reached)])
    return found[0] if found else None


class ScaleGuard:
    """Keeps step sizes positive and within a factor :data:`FURTHEST` of where they started."""

    def __init__(self, network: TrainableNetwork) -> None:
        self._bounds: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for quantizer in network.quantizers:
            for parameter in quantizer.rate_groups().get("scale", []):
                start = parameter.detach().abs()
                self._bounds.append((parameter, start / FURTHEST, start * FURTHEST))
        self.kept = 0

    @torch.no_grad()
    def apply(self) -> None:
        """Put back what has run away; ``kept`` counts the step sizes."""
        for parameter, low, high in self._bounds:
            outside = int(((parameter < low) | (parameter > high)).sum())
            if outside:
                self.kept += outside
                parameter.copy_(torch.minimum(torch.maximum(parameter, low), high))


class OscillationGuard:
    """Freezes weights that jump to and fro between two codes (Nagel et al. 2022, section 4.3, algorithm 1).

    A weight oscillates at a step when its code changes in the direction opposite to its last change. Where the running
    frequency of that passes :data:`OFTEN` the weight stays at its running mean code's value from then on.
    """

    def __init__(self, network: TrainableNetwork) -> None:
        self._layers = [layer for layer in network.quantized_layers if layer.weight_quantizer]
        self._seen: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def apply(self) -> None:
        """To be called behind every step of the optimizer."""
        for index, layer in enumerate(self._layers):
            self._look(self._seen.get(index), index, layer)

    def _look(self, seen: dict[str, Tensor] | None, index: int, layer: QuantizedLayer) -> None:
        weight, quantizer = layer.weight, layer.weight_quantizer
        assert weight is not None
        assert quantizer is not None
        grid = quantizer.qparams
        codes = grid.encode(layer.latent_weight())
        bits = torch.tensor(quantizer.bits)
        if seen is None or not torch.equal(seen["bits"], bits):  # codes of other bits are other codes
            none = torch.zeros_like(weight)
            self._seen[index] = {
                "bits": bits,
                "codes": codes,
                "mean": codes.float(),
                "way": none.to(torch.int8),
                "often": none.clone(),
                "frozen": none.bool(),
                "held": none.clone(),
                "ever": none.bool() if seen is None else seen["ever"],
            }
            return
        way = torch.sign(codes - seen["codes"]).to(torch.int8)
        turned = (way != 0) & (way == -seen["way"])
        seen["way"] = torch.where(way != 0, way, seen["way"])
        seen["often"].lerp_(turned.float(), RECENT)
        seen["mean"].lerp_(codes.float(), RECENT)
        seen["codes"] = codes
        newly = ~seen["frozen"] & (seen["often"] > OFTEN)
        if bool(newly.any()):
            seen["held"] = torch.where(newly, grid.decode(seen["mean"].round().to(torch.int32)), seen["held"])
            seen["frozen"] |= newly
            seen["ever"] |= newly
        if bool(seen["frozen"].any()):
            held = quantizer.latent(seen["held"], among=weight)
            weight.copy_(torch.where(seen["frozen"], held, weight))

    @property
    def frozen(self) -> int:
        """Weights that were frozen so far, each once; those that other bits have set free again too."""
        return sum(int(seen["ever"].sum()) for seen in self._seen.values())

    def state(self) -> dict[int, dict[str, Tensor]]:
        """For a checkpoint."""
        return self._seen

    def restore(self, state: Mapping[int, dict[str, Tensor]]) -> None:
        """The inverse of :meth:`state`."""
        self._seen = dict(state)
