"""What quantizing a layer does right there: local noise by site, mean shifts, values beyond their ranges.

The other half, what the rest of the network makes of it, is the gain: network noise over local noise
(layer-wise paper, section 4: intrinsic and extrinsic parts). B images, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantopsy.core import Plan, Role
from quantopsy.engine.exact import ExactEngine, LayerQuantizers
from quantopsy.graph.execute import Step, Values
from quantopsy.quant import QParams

_SAMPLED = 2**14  # values of an edge and tile that its quantile is taken from
TAIL = 0.999
"""The share of values that a tail begins behind."""


@dataclass(frozen=True)
class Edge:
    """An activation at a quantized site, on the images looked at.

    ``low``, ``high``: its extremes; ``grid_low``, ``grid_high``: the ends of its grid; ``step`` the grid's
    (NaN where it is not uniform). ``beyond``: share of its values outside the grid's ends, ``body``: the
    smallest ball about zero that holds :data:`TAIL` of its values. ``negative``: share of values below zero.
    ``typical``: how far from zero its median channel reaches, of those that are not always zero.
    """

    low: float
    high: float
    grid_low: float
    grid_high: float
    step: float
    beyond: float
    body: float
    negative: float
    typical: float


@dataclass(frozen=True)
class Local:
    """One layer quantized by its plan, all else float, looked at where it is.

    ``signal``: mean over images of ||y||^2 of its output; ``noise``: of ||y_q - y||^2; ``by_role``: the same
    with one site quantized alone. ``shift`` (C,): mean of y_q - y over images and positions; ``shift_share``:
    its part of the noise's energy. ``variance`` (C,): of y over images and positions, 0 for a dead channel;
    ``low``, ``high`` (C,): extremes of y. ``heard`` (I,): mean square of its first input by channel.
    """

    images: int
    signal: float
    noise: float
    by_role: Mapping[Role, float]
    shift: np.ndarray
    shift_share: float
    variance: np.ndarray
    low: np.ndarray
    high: np.ndarray
    heard: np.ndarray
    inputs: tuple[Edge, ...] = ()
    output: Edge | None = None

    @property
    def sqnr_db(self) -> float:
        """Local signal to quantization noise ratio."""
        return float(10 * np.log10(self.signal / self.noise)) if self.noise > 0 and self.signal > 0 else float("inf")


def look(engine: ExactEngine, batches: Iterable[Any], plans: Mapping[str, Plan]) -> dict[str, Local]:
    """The layers of ``plans`` (by name, the plan that quantizes it) on ``batches`` of inputs, in one float pass."""
    program = engine.program
    steps = {step.layer.name: step for step in program.steps if step.layer is not None}
    watched = {steps[name].index: _Seen(engine, steps[name], plan) for name, plan in plans.items()}

    def observe(step: Step, values: Values) -> None:
        if step.index in watched:
            watched[step.index].add(values)

    with torch.inference_mode():
        for inputs in batches:
            program.forward(program.place(inputs), observe)
    return {name: watched[steps[name].index].local() for name in plans}


@dataclass
class _SeenEdge:
    """Running statistics of one activation."""

    qparams: QParams
    axis: int
    low: float = float("inf")
    high: float = float("-inf")
    reach: Tensor = field(default_factory=lambda: torch.zeros(()))  # (C,) largest absolute values
    count: int = 0
    beyond: int = 0
    negative: int = 0
    bodies: list[float] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        low, high = x.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.count += x.numel()
        self.beyond += int((~self.qparams.covers(x)).sum())
        self.negative += int((x < 0).sum())
        size = x.abs()
        self.reach = torch.maximum(self.reach.to(size), _by_channel(size, self.axis).amax(1))
        # An odd stride: an even one would keep to some columns of a map, whose rows are even mostly.
        some = size.flatten()[:: (x.numel() // _SAMPLED) | 1]
        self.bodies.append(float(some.kthvalue(max(1, round(TAIL * len(some)))).values))

    def edge(self) -> Edge:
        grid_low, grid_high = self.qparams.outermost
        alive = self.reach[self.reach > 0]
        return Edge(
            low=self.low,
            high=self.high,
            grid_low=grid_low,
            grid_high=grid_high,
            step=_step(self.qparams),
            beyond=self.beyond / self.count,
            body=float(np.median(self.bodies)),
            negative=self.negative / self.count,
            typical=float(alive.median()) if len(alive) else 0.0,
        )


def _step(qparams: QParams) -> float:
    scale = getattr(qparams, "scale", None)
    return float(scale) if isinstance(scale, Tensor) and scale.numel() == 1 else float("nan")


class _Seen:
    """Running statistics of one layer."""

    def __init__(self, engine: ExactEngine, step: Step, plan: Plan) -> None:
        assert step.layer is not None
        self.engine, self.step = engine, step
        self.quantizers = engine.prepare(plan).quantizers[step.index]
        off = LayerQuantizers((), None, None, None)
        q = self.quantizers
        alone: dict[Role, LayerQuantizers] = {
            "input": replace(off, inputs=q.inputs),
            "weight": replace(off, weight=q.weight, shift=q.shift),
            "output": replace(off, output=q.output),
        }
        self.alone = {role: only for role, only in alone.items() if only != off}
        self.axis = step.layer.channel_axis
        self.edges = [_SeenEdge(qparams, self.axis) for _, qparams in q.inputs]
        self.leaving = None if q.output is None else _SeenEdge(q.output, self.axis)
        self.images = self.places = 0
        self.signal = self.noise = 0.0
        self.roles: dict[Role, float] = dict.fromkeys(self.alone, 0.0)
        self.sums: list[Tensor] = []
        self.first = step.layer.inputs[0]
        self.heard: list[Tensor] = []

    def add(self, values: Values) -> None:
        """One tile: ``values`` hold what the layer read and wrote."""
        y = values[self.step.writes]
        for edge, (name, _) in zip(self.edges, self.quantizers.inputs, strict=True):
            edge.add(values[name])
        if self.leaving is not None:
            self.leaving.add(y)
        d = self.engine.quantized(self.step, self.quantizers, {}, values) - y
        rows, moved = _by_channel(y, self.axis), _by_channel(d, self.axis)
        self.images += len(y)
        self.places += rows.shape[1]
        self.signal += _energy(y)
        self.noise += _energy(d)
        for role, only in self.alone.items():
            self.roles[role] += _energy(self.engine.quantized(self.step, only, {}, values) - y)
        x = _by_channel(values[self.first], self.axis)
        self.heard.append(x.square().mean(1, dtype=torch.float64) * len(y))
        exact = rows.double()
        new = [moved.sum(1, dtype=torch.float64), exact.sum(1), exact.square().sum(1), rows.amin(1), rows.amax(1)]
        if self.sums:
            old = self.sums
            sums = [a + b for a, b in zip(old[:3], new[:3], strict=True)]
            new = [*sums, torch.minimum(old[3], new[3]), torch.maximum(old[4], new[4])]
        self.sums = new

    def local(self) -> Local:
        """All tiles together."""
        shift, total_y, energy, low, high = (part.cpu().numpy() for part in self.sums)
        shift = shift / self.places
        total = self.places * float(np.square(shift).sum())
        return Local(
            images=self.images,
            signal=self.signal / self.images,
            noise=self.noise / self.images,
            by_role={role: noise / self.images for role, noise in self.roles.items()},
            shift=shift,
            shift_share=total / self.noise if self.noise > 0 else 0.0,
            variance=np.maximum(energy / self.places - np.square(total_y / self.places), 0.0),
            low=low,
            high=high,
            heard=(torch.stack(self.heard).sum(0) / self.images).cpu().numpy(),
            inputs=tuple(edge.edge() for edge in self.edges),
            output=None if self.leaving is None else self.leaving.edge(),
        )


def _by_channel(x: Tensor, axis: int) -> Tensor:
    """(C, N): the values of every channel; a number for each image, (B,), is one channel."""
    return x[None] if x.dim() == 1 else x.movedim(axis, 0).flatten(1)


def _energy(x: Tensor) -> float:
    return float(x.float().square().sum(dtype=torch.float64))
