"""Ranges of activations: one pass over the calibration images, memory of one batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quantopsy.calibrate import Observer, observer, realise
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.graph.execute import Program, Step, Values
from quantopsy.graph.network import Layer, Network
from quantopsy.quant import QParams


@dataclass
class Calibration:
    """What was seen of every value that a plan wants quantized; turns specs into qparams.

    ``origins`` as of :attr:`Network.origins`: a value re-arranged is on the grid of the value it was.
    Picklable: carries observers (statistics), no activations.
    """

    observers: dict[tuple[str, Hashable], Observer] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    images: int = 0
    _realised: dict[tuple[str, Spec], QParams] = field(default_factory=dict, repr=False)

    def qparams(self, value: str, spec: Spec) -> QParams:
        """The qparams that ``spec`` means for ``value``: the same object for the same question."""
        key = (self._origin(value), spec)
        if key not in self._realised:
            self._realised[key] = realise(spec, self.observers[key[0], observer(spec).key])
        return self._realised[key]

    def range(self, value: str) -> tuple[float, float]:
        """Least and greatest number seen in ``value``."""
        value = self._origin(value)
        seen = next(statistics for (name, _), statistics in self.observers.items() if name == value)
        return float(seen.low), float(seen.high)

    def has(self, value: str) -> bool:
        """Whether anything was observed of ``value``."""
        value = self._origin(value)
        return any(name == value for name, _ in self.observers)

    def _origin(self, value: str) -> str:
        return self.origins.get(value, value)


def edges(layer: Layer, role: str) -> tuple[str, ...]:
    """Names of the values that a layer's ``input`` or ``output`` site means."""
    return layer.inputs if role == "input" else (layer.output,)


def wanted_statistics(network: Network, plans: Iterable[Plan]) -> dict[tuple[str, Hashable], Spec]:
    """(value, kind of statistics) that the activations of ``plans`` need, with a spec that needs it."""
    wanted: dict[tuple[str, Hashable], Spec] = {}
    sites: dict[Site, set[Spec]] = {}
    for plan in plans:
        for site, spec in plan.sites:
            sites.setdefault(site, set()).add(spec)
    by_name = {layer.name: layer for layer in network.layers}
    for (name, role), specs in sites.items():
        if role == "weight":
            continue
        for spec in specs:
            key = observer(spec).key
            for value in edges(by_name[name], role):
                wanted.setdefault((network.origin(value), key), spec)
    return wanted


def calibrate(
    program: Program,
    batches: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
    wanted: Mapping[tuple[str, Hashable], Spec],
    advance: Callable[[int], None] | None = None,
) -> Calibration:
    """Observe ``wanted`` in one float pass over ``batches``."""
    calibration = Calibration({key: observer(spec) for key, spec in wanted.items()}, program.network.origins)
    by_value: dict[str, list[Observer]] = {}
    for (value, _), statistics in calibration.observers.items():
        by_value.setdefault(value, []).append(statistics)

    def look(name: str, tensor: Any, layer: str) -> None:
        try:
            for statistics in by_value.get(name, ()):
                statistics.update(tensor)
        except QuantopsyError as error:
            raise QuantopsyError(
                f"values at layer {layer!r}",
                f"not all are finite ({error.reason})",
                "look for a division by zero, an overflow, or a wrong preprocessing before this layer",
            ) from error

    def observe(step: Step, values: Values) -> None:
        look(step.writes, values[step.writes], step.layer.name if step.layer else step.writes)

    with torch.inference_mode():
        for batch in batches:
            values = program.place(batch)
            size = next(iter(values.values())).shape[0]
            for name in program.network.input_names:
                look(name, values[name], name)
            program.forward(values, observe)
            calibration.images += size
            if advance is not None:
                advance(size)
    return calibration
