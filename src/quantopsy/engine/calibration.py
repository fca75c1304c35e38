"""Ranges of activations: one pass over the calibration images, memory of one batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quantopsy.calibrate import Observer, fit, observer, output_shift, quantized_weight, realise
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.graph.execute import Program, Step, Values
from quantopsy.graph.images import ImageAxis, image_axis
from quantopsy.graph.network import GridSources, Layer, Network
from quantopsy.graph.operators import WEIGHTED_SUMS
from quantopsy.quant import QParams


@dataclass
class ChannelMean:
    """The running mean of every channel of one value, channels along ``axis``."""

    axis: int
    total: Tensor | None = None
    count: int = 0

    def update(self, x: Tensor) -> None:
        """Add a batch."""
        axis = self.axis % x.dim()
        total = x.sum([dim for dim in range(x.dim()) if dim != axis], dtype=torch.float64).cpu()
        self.total = total if self.total is None else self.total + total
        self.count += x.numel() // x.shape[axis]

    @property
    def mean(self) -> Tensor:
        """(C,) float64."""
        assert self.total is not None
        return self.total / self.count


@dataclass(frozen=True)
class Wanted:
    """What plans need to know of activations.

    ``statistics``: (value, kind of statistics), with a spec that needs it. ``means``: (value, axis) whose mean per
    channel is needed.
    """

    statistics: Mapping[tuple[str, Hashable], Spec] = field(default_factory=dict)
    means: frozenset[tuple[str, int]] = frozenset()


@dataclass(eq=False)
class Calibration:
    """What was seen of every value that a plan wants quantized; turns specs into qparams.

    ``sources`` as of :attr:`Network.grid_sources`: a value re-arranged is on the grid of the value it was.
    ``given``: what specs mean by ``given:HASH``, shifts (C,) and roundings (bool, of the weight's shape).
    ``encodings``: qparams that are known already, by value or weight and spec; they go before the statistics.
    Picklable: carries observers (statistics), no activations.
    """

    observers: dict[tuple[str, Hashable], Observer] = field(default_factory=dict)
    means: dict[tuple[str, int], ChannelMean] = field(default_factory=dict)
    sources: GridSources = field(default_factory=GridSources)
    images: int = 0
    given: dict[str, Tensor] = field(default_factory=dict)
    encodings: dict[tuple[str, Spec], QParams] = field(default_factory=dict, repr=False)

    def qparams(self, value: str, spec: Spec) -> QParams:
        """The qparams that ``spec`` means for ``value``: the same object for the same question."""
        key = (self.sources.of(value, spec), spec)
        if key not in self.encodings:
            kind = observer(spec, self.sources.axis(key[0])).key
            self.encodings[key] = realise(spec, self.observers[key[0], kind])
        return self.encodings[key]

    def give(self, tensor: Tensor) -> str:
        """Keep ``tensor``; the name, ``given:HASH``, by which a spec means it."""
        tensor = tensor.detach().cpu().contiguous()
        seal = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        name = f"given:{seal.hexdigest()[:12]}"
        self.given[name] = tensor
        return name

    def quantized_weight(self, layer: Layer, spec: Spec, weight: Tensor, *, corrected: bool = True) -> Tensor:
        """The layer's ``weight`` as ``spec`` wants it: see :func:`quantopsy.calibrate.quantized_weight`.

        Without ``corrected`` as it is on its grid.
        """
        up = None if spec.rounding == "nearest" else self._given(layer, spec.rounding)
        known = self.encodings.get((str(layer.weight), spec))
        wanted = spec if corrected else replace(spec, correction="none")
        try:
            return quantized_weight(wanted, weight, axis=layer.weight_axis, up=up, qparams=known)
        except QuantopsyError as error:
            raise QuantopsyError(f"weight of layer {layer.name!r}", error.reason, error.remedy) from error

    def weight_qparams(self, layer: Layer, spec: Spec, weight: Tensor) -> QParams:
        """The grid of the layer's ``weight``."""
        known = self.encodings.get((str(layer.weight), spec))
        return fit(spec, weight, axis=layer.weight_axis) if known is None else known

    def shift(self, layer: Layer, spec: Spec, change: Tensor) -> Tensor:
        """(C,): what the bias takes away from every channel of the layer's result.

        With the correction ``bias`` what ``change`` of the layer's weight adds to the channel's mean. Raises
        :class:`QuantopsyError` where that layer is neither a convolution nor linear.
        """
        if spec.correction != "bias":
            return self._given(layer, spec.correction)
        if layer.op not in WEIGHTED_SUMS:
            raise QuantopsyError(
                f"weight of layer {layer.name!r}",
                f"the correction of a bias does not know {layer.op}",
                "leave its correction out in a --plan",
            )
        return output_shift(change.cpu(), self.means[layer.inputs[0], layer.channel_axis].mean, layer.groups)

    def range(self, value: str) -> tuple[float, float]:
        """Least and greatest number seen in ``value``."""
        seen = next(statistics for (name, _), statistics in self.observers.items() if name in self._names(value))
        return float(seen.low.amin()), float(seen.high.amax())

    def has(self, value: str) -> bool:
        """Whether anything was observed of ``value``."""
        return any(name in self._names(value) for name, _ in self.observers)

    def _given(self, layer: Layer, name: str) -> Tensor:
        if name not in self.given:
            raise QuantopsyError(
                f"weight of layer {layer.name!r}", f"{name} is not at hand", "apply the recipe that it comes from"
            )
        return self.given[name]

    def _names(self, value: str) -> tuple[str, str]:
        """The values that have the numbers of ``value``."""
        return self.sources.whole.get(value, value), value


def edges(layer: Layer, role: str) -> tuple[str, ...]:
    """Names of the values that a layer's ``input`` or ``output`` site means."""
    return layer.inputs if role == "input" else (layer.output,)


def tensors_at(network: Network, site: Site, spec: Spec) -> tuple[str, ...]:
    """Names of the tensors that ``site`` means with ``spec``: the layer's weight, if it has one, or the values whose
    grids its values have."""
    layer = network.layer(site.layer)
    if site.role == "weight":
        return () if layer.weight is None else (layer.weight,)
    return tuple(network.grid_sources.of(value, spec) for value in edges(layer, site.role))


def grids_of(network: Network, plan: Plan, calibration: Calibration) -> Iterator[tuple[Site, list[QParams]]]:
    """The sites of ``plan`` with a grid for each of their values, in order.

    A weight that is the sum of several tensors is on no grid of its own and left out.
    """
    for site, spec in plan.sites:
        layer = network.layer(site.layer)
        if site.role != "weight":
            yield site, [calibration.qparams(value, spec) for value in edges(layer, site.role)]
        elif layer.weight is not None and spec.tensors == 1:
            yield site, [calibration.weight_qparams(layer, spec, network.tensors[layer.weight])]


def grid_ends(network: Network, plan: Plan, calibration: Calibration) -> dict[str, dict[str, list[list[list[float]]]]]:
    """Lowest and highest level of the grids of every site of ``plan``: ``{layer: {role: [[[low, high], ...], ...]}}``.

    For each value of a site a pair for each of its grids, groups of a channel together, to six significant digits.
    """
    found: dict[str, dict[str, list[list[list[float]]]]] = {}
    for site, grids in grids_of(network, plan, calibration):
        found.setdefault(site.layer, {})[site.role] = [ends_of(grid) for grid in grids]
    return found


def ends_of(grid: QParams) -> list[list[float]]:
    """``[[low, high], ...]`` of one grid, or of the grids of every channel, to six significant digits."""
    low, high = (end.double().cpu() for end in grid.ends)
    if low.ndim == 2:
        low, high = low.amin(1), high.amax(1)
    pairs = zip(low.reshape(-1).tolist(), high.reshape(-1).tolist(), strict=True)
    return [[float(f"{end:.6g}") for end in pair] for pair in pairs]


def wanted_statistics(network: Network, plans: Iterable[Plan]) -> Wanted:
    """What the activations of ``plans`` need."""
    statistics: dict[tuple[str, Hashable], Spec] = {}
    means: set[tuple[str, int]] = set()
    sites: dict[Site, set[Spec]] = {}
    for plan in plans:
        for site, spec in plan.sites:
            sites.setdefault(site, set()).add(spec)
    by_name = {layer.name: layer for layer in network.layers}
    for (name, role), specs in sites.items():
        layer = by_name[name]
        for spec in specs:
            if role == "weight":
                if spec.correction == "bias":
                    means.add((layer.inputs[0], layer.channel_axis))
                continue
            for value in edges(layer, role):
                source = network.grid_sources.of(value, spec)
                statistics.setdefault((source, observer(spec, network.grid_sources.axis(source)).key), spec)
    return Wanted(statistics, frozenset(means))


def calibrate(
    program: Program,
    batches: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
    wanted: Wanted,
    advance: Callable[[int], None] | None = None,
) -> Calibration:
    """Observe ``wanted`` in one float pass over ``batches``."""
    sources = program.network.grid_sources
    calibration = Calibration(
        {(value, kind): observer(spec, sources.axis(value)) for (value, kind), spec in wanted.statistics.items()},
        {(value, axis): ChannelMean(axis) for value, axis in sorted(wanted.means)},
        sources,
    )
    by_value: dict[str, list[Observer | ChannelMean]] = {}
    for (value, _), statistics in calibration.observers.items():
        by_value.setdefault(value, []).append(statistics)
    for (value, _), mean in calibration.means.items():
        by_value.setdefault(value, []).append(mean)
    turned = ImagesInFront(program)

    def look(name: str, tensor: Any) -> None:
        for statistics in by_value.get(name, ()):
            if isinstance(statistics, ChannelMean):
                statistics.update(tensor)
                continue
            in_front = turned(name, tensor, statistics.axis)
            if in_front is None:
                statistics.update(tensor)
            else:
                statistics.update(in_front, turned.images)

    for batch in batches:
        turned.begin(batch)
        for (value, _), seen in calibration.observers.items():
            if turned.along(value, seen.axis):
                raise QuantopsyError(
                    f"grids by channel of {value!r}",
                    "that value has its images where other layers have channels",
                    "quantize activations per tensor, or this layer's by a --plan",
                )
        size = look_at_values(program, batch, look)
        calibration.images += size
        if advance is not None:
            advance(size)
    return calibration


class ImagesInFront:
    """Values with their images outermost: where they are is told from two images of the first batch of several."""

    def __init__(self, program: Program) -> None:
        self.images = 0
        self._program = program
        self._axes: dict[str, ImageAxis | None] = {}
        self._dims: dict[str, int] = {}

    def begin(self, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> None:
        """What follows is of the batch ``inputs``."""
        arranged = self._program.network.arrange(inputs)
        self.images = len(arranged[0])
        if self.images > 1 and not self._axes:
            two, one = (self._program.place([x[:count] for x in arranged]) for count in (2, 1))
            with torch.inference_mode():
                self._program.forward(two, keep=True)
                self._program.forward(one, keep=True)
            self._dims = {name: x.dim() for name, x in two.items() if isinstance(x, Tensor)}
            self._axes = {name: image_axis(two[name], one[name], 2) for name in self._dims}

    def __call__(self, name: str, value: Tensor, axis: int | None = None) -> Tensor | None:
        """The ``value`` called ``name`` as (B rows, ...), the rows of an image together.

        None where images cannot be told apart, or turning them would move the channels along ``axis``.
        """
        if self.images == 1:
            return value
        found = self._axes[name]
        return None if found is None or not self.tells(name, axis) else found.in_front(value, self.images)

    def along(self, name: str, axis: int | None) -> bool:
        """Whether images lie along ``axis`` of the value called ``name``."""
        found = self._axes.get(name)
        return found is not None and axis is not None and found.dim > 0 and found.dim == axis % self._dims[name]

    def tells(self, name: str, axis: int | None = None) -> bool:
        """Whether the value called ``name`` can be turned."""
        if self.images == 1:
            return True
        found = self._axes[name]
        return found is not None and (axis is None or not found.dim)


def look_at_values(
    program: Program, inputs: Sequence[Tensor] | Mapping[str, Tensor], look: Callable[[str, Any], None]
) -> int:
    """One float pass: ``look(name, value)`` at every value of the network. Returns the number of images.

    Raises :class:`QuantopsyError` naming the layer where ``look`` raises one.
    """

    def looked(name: str, value: Any, layer: str) -> None:
        try:
            look(name, value)
        except QuantopsyError as error:
            raise QuantopsyError(
                f"values at layer {layer!r}",
                f"not all are finite ({error.reason})",
                "look for a division by zero, an overflow, or a wrong preprocessing before this layer",
            ) from error

    def observe(step: Step, values: Values) -> None:
        looked(step.writes, values[step.writes], step.layer.name if step.layer else step.writes)

    with torch.inference_mode():
        values = program.place(inputs)
        size = int(next(iter(values.values())).shape[0])
        for name in program.network.input_names:
            looked(name, values[name], name)
        program.forward(values, observe)
    return size
