"""Faults of known kind and place: pure functions from a sound network to one that does not survive its grids.

Wherever it can be, the float function is unchanged: what a fault does to one layer, its readers undo. A fault
that is not, is planted where the float metric hardly notices. ``KINDS`` has them all.

O output and I input channels of a weight, C channels of a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

import torch
from compensated import (
    LARGEST_OF_RELU6,
    Change,
    Channels,
    RefusedError,
    channels_seen,
    rescaled,
    shifted,
    unread,
    with_parameters,
)
from torch import Tensor

from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.calibrate import fit, fixed
from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.calibration import edges
from quantopsy.graph.network import Layer, Network
from quantopsy.quant.grouping import aligned

INT32 = 2.0**31
_TILE = 32


@dataclass(frozen=True)
class Subject:
    """A network that is sound under its plan, with its images (N, ...) and those that ranges come from.

    ``plan`` is a JSON plan over ``scheme``, as ``analyze --plan`` takes it.
    """

    name: str
    network: Network
    images: Tensor
    labels: Tensor
    calibration: Tensor
    scheme: str = "per-tensor"
    plan: Mapping[str, Any] | None = None

    @cached_property
    def seen(self) -> dict[str, Channels]:
        """Every value by channel, over the images and those for calibration."""
        return channels_seen(self.network, [*self.images.split(_TILE), *self.calibration.split(_TILE)])

    @cached_property
    def calibration_seen(self) -> dict[str, Channels]:
        """The same over the images for calibration alone."""
        return channels_seen(self.network, self.calibration.split(_TILE))

    def first(self, count: int) -> Subject:
        """The same with only ``count`` of its images."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    @property
    def full(self) -> Plan:
        """What the whole network is put on, at 8 bits."""
        return full_plan(self.network, grids(self.scheme, 8), self.plan)


@dataclass(frozen=True)
class Fault:
    """One fault: of which kind, at which layer, ``where`` in it (as the kind understands it), how strong."""

    kind: str
    layer: str
    where: tuple[int, ...] = ()
    strength: float = 1.0


@dataclass(frozen=True)
class Planted:
    """A subject with a fault, and the truth about it.

    ``sites``: where its noise can come from, each with the cause that then holds; which of them makes how
    much is for a measurement to say. ``exact``: whether the float function is claimed to be unchanged.
    """

    subject: Subject
    fault: Fault
    sites: Mapping[Site, str]
    exact: bool

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of its sites."""
        return tuple(dict.fromkeys(site.layer for site in self.sites))


@dataclass(frozen=True)
class Kind:
    """How one kind of fault is planted.

    ``places``: where it can be, in random order. ``plant``: the faulty subject; raises :class:`RefusedError`.
    ``weakest``, ``strongest``: the range of its strengths. ``silent``: it costs nothing where integers are
    simulated by floats.
    """

    places: Callable[[Subject, Random], Iterator[Fault]]
    plant: Callable[[Subject, Fault], Planted]
    weakest: float
    strongest: float
    silent: bool = False


def plant(subject: Subject, fault: Fault) -> Planted:
    """``subject`` with ``fault``; raises :class:`RefusedError` where the algebra does not allow it."""
    return KINDS[fault.kind].plant(subject, fault)


# One weight far beyond the others.


def _weight_outlier_places(subject: Subject, random: Random) -> Iterator[Fault]:
    for layer in _weighted(subject, random):
        weight = _weight(subject, layer)
        # The less goes in, the less the float network notices.
        quiet = subject.seen[layer.inputs[0]].rms.argsort()[:3].tolist()
        channel = random.choice(quiet)
        per_group, outputs = weight.shape[1], weight.shape[0] // layer.groups
        output = channel // per_group * outputs + random.randrange(outputs)
        taps = [random.randrange(size) for size in weight.shape[2:]]
        yield Fault("weight_outlier", layer.name, (output, channel % per_group, *taps))


def _weight_outlier(subject: Subject, fault: Fault) -> Planted:
    """The weight at ``where`` becomes ``strength`` times the largest of the layer, its sign kept."""
    layer = subject.network.layer(fault.layer)
    weight = _weight(subject, layer).clone()
    weight[fault.where] = torch.copysign(fault.strength * weight.abs().max(), weight[fault.where])
    network = with_parameters(subject.network, layer, weight)
    sites = {Site(layer.name, "weight"): "weight_outlier"}
    return Planted(replace(subject, network=network), fault, sites, exact=False)


# A channel rescaled, and undone behind it.


def _channel_places(kind: str) -> Callable[[Subject, Random], Iterator[Fault]]:
    """Channels whose scaling tells on the weight's grid first, or on the activation's, or that are dead."""

    def places(subject: Subject, random: Random) -> Iterator[Fault]:
        for layer in _weighted(subject, random):
            if subject.full[Site(layer.name, "weight")].granularity != "per_tensor":
                continue
            of_value, of_weight = subject.seen[layer.output].reach, _reach(_weight(subject, layer))
            if kind == "dead_channel":
                chosen = ((of_value == 0.0) & (of_weight > 0.0)).nonzero()[:, 0].tolist()
            else:
                ratio = of_weight / of_value if kind == "channel_imbalance" else of_value / of_weight
                possible = (of_weight > 0.0) & (of_value > 1e-3 * of_value.max())
                if layer.activation == "relu6":  # bounds the activation's range, and so how far the weight's can grow
                    possible &= (LARGEST_OF_RELU6 * ratio > 2 * of_weight.max()) & (kind == "channel_imbalance")
                ordered = torch.where(possible, ratio, 0.0).argsort(descending=True)
                chosen = ordered[: min(3, int(possible.sum()))].tolist()
            if chosen:
                yield Fault(kind, layer.name, (random.choice(chosen),))

    return places


def _channel(subject: Subject, fault: Fault) -> Planted:
    """The output channels ``where`` times ``strength``, their readers' input channels divided by it."""
    layer = subject.network.layer(fault.layer)
    scale = torch.ones(len(subject.seen[layer.output].low))
    scale[list(fault.where)] = fault.strength
    change = rescaled(subject.network, layer, scale, subject.seen)
    sites = {Site(layer.name, "weight"): "channel_imbalance", **_at_values(subject, change, "activation_outlier")}
    sites |= {Site(reader.name, "weight"): "channel_imbalance" for reader in change.readers}
    return Planted(replace(subject, network=change.network), fault, sites, exact=True)


def _dead_channel(subject: Subject, fault: Fault) -> Planted:
    """The largest weight of a channel that is always zero becomes ``strength`` times the layer's largest.

    As folding a batch norm leaves it whose running variance is tiny.
    """
    layer = subject.network.layer(fault.layer)
    reach = _reach(_weight(subject, layer))
    (channel,) = fault.where
    scale = torch.ones(len(reach))
    scale[channel] = fault.strength * reach.max() / reach[channel]
    change = rescaled(subject.network, layer, scale, subject.seen)
    sites = {Site(layer.name, "weight"): "dead_channel"}
    return Planted(replace(subject, network=change.network), fault, sites, exact=True)


def _loud_places(subject: Subject, random: Random) -> Iterator[Fault]:
    for layer in _weighted(subject, random):
        quietest = subject.seen[layer.output].rms.argsort()[:3].tolist()
        yield Fault("loud_channel", layer.name, (random.choice(quietest),))


def _loud_channel(subject: Subject, fault: Fault) -> Planted:
    """A channel that hardly ever is anything becomes ``strength`` times what the layer ever gives, and nobody reads it.

    A constant, from a bias and no weights. Exact for a dead channel.
    """
    layer = subject.network.layer(fault.layer)
    if layer.activation == "relu6":
        raise RefusedError("relu6 keeps it quiet")
    seen = subject.seen[layer.output]
    (channel,) = fault.where
    change = unread(subject.network, layer, torch.eye(len(seen.low))[channel], subject.seen)
    assert layer.weight is not None
    assert layer.bias is not None
    weight, bias = (change.network.tensors[name].clone() for name in (layer.weight, layer.bias))
    weight[channel], bias[channel] = 0.0, fault.strength * seen.reach.max()
    network = with_parameters(change.network, layer, weight, bias)
    sites = _at_values(subject, change, "activation_outlier")
    dead = float(seen.reach[channel]) == 0.0
    return Planted(replace(subject, network=network), fault, sites, exact=dead)


def _reach(weight: Tensor) -> Tensor:
    """Largest absolute weight of every output channel, (O,)."""
    return weight.flatten(1).abs().amax(1)


def _at_values(subject: Subject, change: Change, cause: str) -> dict[Site, str]:
    """The sites where the values that carry a change are put on their grids."""
    origin = subject.network.origin
    carried = {origin(value) for value in change.values}
    return {
        Site(layer.name, role): cause
        for layer in subject.network.layers
        for role in ("output", "input")
        if any(origin(value) in carried for value in edges(layer, role))
    }


# Ranges that do not fit the images.


def _range_places(kind: str) -> Callable[[Subject, Random], Iterator[Fault]]:
    def places(subject: Subject, random: Random) -> Iterator[Fault]:
        for layer in _shuffled(subject.network.layers, random):
            yield Fault(kind, layer.name)

    return places


def _wrong_range(subject: Subject, fault: Fault) -> Planted:
    """The range of the layer's output is ``strength`` times too narrow, or too wide."""
    layer = subject.network.layer(fault.layer)
    seen = subject.seen[layer.output]
    factor = fault.strength if fault.kind == "wide_range" else 1 / fault.strength
    ends = (factor * min(0.0, float(seen.low.min())), factor * max(0.0, float(seen.high.max())))
    spec = replace(subject.full[Site(layer.name, "output")], range_estimator=fixed(*ends))
    plan = _laid_over(subject.plan, layer.name, "output", spec)
    return Planted(replace(subject, plan=plan), fault, {Site(layer.name, "output"): "calibration_range"}, exact=True)


def _set_places(kind: str) -> Callable[[Subject, Random], Iterator[Fault]]:
    def places(subject: Subject, random: Random) -> Iterator[Fault]:
        yield Fault(kind, "", (random.randrange(len(subject.calibration)),))

    return places


def _darkened(images: Tensor, _: int, strength: float) -> Tensor:
    return images / strength


def _moved(images: Tensor, _: int, strength: float) -> Tensor:
    """By ``strength`` standard deviations: a wrong mean in the preprocessing."""
    return images - strength * images.std()


def _bright(images: Tensor, which: int, strength: float) -> Tensor:
    bright = images.clone()
    bright[which] *= strength
    return bright


def _wrong_set(change: Callable[[Tensor, int, float], Tensor]) -> Callable[[Subject, Fault], Planted]:
    def plant(subject: Subject, fault: Fault) -> Planted:
        """The calibration images are changed; faulty are all sites whose ranges are off by half."""
        calibration = change(subject.calibration, *fault.where, fault.strength)
        right, wrong = subject.calibration_seen, channels_seen(subject.network, calibration.split(_TILE))
        off = {name for name in right if not 1 / 1.5 < _width(wrong[name]) / _width(right[name]) < 1.5}
        sites = {
            Site(layer.name, role): "calibration_range"
            for layer in subject.network.layers
            for role in ("input", "output")
            if off.intersection(edges(layer, role))
        }
        return Planted(replace(subject, calibration=calibration), fault, sites, exact=True)

    return plant


def _width(seen: Channels) -> float:
    return max(float(seen.high.max()), 0.0) - min(float(seen.low.min()), 0.0) + 1e-30


# Means.


def _shift_places(subject: Subject, random: Random) -> Iterator[Fault]:
    for layer in _weighted(subject, random):
        yield Fault("mean_shift", layer.name, (random.randrange(2**31),))


def _mean_shift(subject: Subject, fault: Fault) -> Planted:
    """``strength`` rms of the output with random signs on its channels, taken off in the readers' biases.

    The readers' rounding errors then meet a large mean: what they leave is a shift.
    """
    layer = subject.network.layer(fault.layer)
    seen = subject.seen[layer.output]
    signs = torch.randint(2, seen.mean.shape, generator=torch.Generator().manual_seed(fault.where[0])) * 2 - 1
    shift = signs * fault.strength * seen.mean_square.mean().sqrt()
    change = shifted(subject.network, layer, shift, subject.seen)
    sites = {Site(reader.name, "weight"): "bias_shift" for reader in change.readers}
    sites |= _at_values(subject, change, "wasted_range")
    return Planted(replace(subject, network=change.network), fault, sites, exact=True)


def _one_sided_places(subject: Subject, random: Random) -> Iterator[Fault]:
    for layer in _weighted(subject, random):
        if float(subject.seen[layer.inputs[0]].low.min()) >= 0.0:
            yield Fault("one_sided_rounding", layer.name, (random.randrange(2**31),))


def _one_sided(subject: Subject, fault: Fault) -> Planted:
    """A share ``strength`` of the weights moves within its own step to where it is rounded down, by nearly half.

    By at most half a step, which is what rounding itself would do to them, but with inputs that are never
    negative the errors of rounding them then have one sign: a shift of the mean, as depthwise layers have.
    """
    layer = subject.network.layer(fault.layer)
    weight = _weight(subject, layer)
    grid: Any = fit(subject.full[Site(layer.name, "weight")], weight, axis=layer.weight_axis)
    step = aligned(grid.scale, weight, grid.axis, None)
    generator = torch.Generator().manual_seed(fault.where[0])
    moved = (torch.rand(weight.shape, generator=generator) < fault.strength) & (weight.abs() < weight.abs().max() / 2)
    changed = torch.where(moved, ((weight / step).floor() + 0.48) * step, weight)
    network = with_parameters(subject.network, layer, changed)
    return Planted(replace(subject, network=network), fault, {Site(layer.name, "weight"): "bias_shift"}, exact=False)


# Branches of a concatenation.


def _branch_places(kind: str) -> Callable[[Subject, Random], Iterator[Fault]]:
    def places(subject: Subject, random: Random) -> Iterator[Fault]:
        found = [
            (layer, operand)
            for layer in subject.network.layers
            if layer.op == "concat"
            for operand in range(len(layer.inputs))
        ]
        for layer, operand in _shuffled(found, random):
            yield Fault(kind, layer.name, (operand,))

    return places


def _branch(subject: Subject, fault: Fault) -> Planted:
    """All channels of operand ``where`` of a concatenation times ``strength``, undone behind it."""
    return _scaled_branch(subject, fault, fault.strength)


def _double_rounding(subject: Subject, fault: Fault) -> Planted:
    """Operand ``where`` scaled so that the output's step is 2 + 1 / ``strength`` times its own.

    Every other value of it then lies just off the middle between two levels of the output, on one side.
    """
    layer = subject.network.layer(fault.layer)
    widths = [_width(subject.seen[value]) for value in layer.inputs]
    others = max(width for position, width in enumerate(widths) if position != fault.where[0])
    return _scaled_branch(subject, fault, others / (2.0 + 1.0 / fault.strength) / widths[fault.where[0]])


def _scaled_branch(subject: Subject, fault: Fault, scale: float) -> Planted:
    layer = subject.network.layer(fault.layer)
    value = layer.inputs[fault.where[0]]
    producers = [other for other in subject.network.layers if other.output == value]
    if not producers:
        raise RefusedError(f"{value} is no layer's output")
    channels = torch.full_like(subject.seen[value].low, scale)
    change = rescaled(subject.network, producers[0], channels, subject.seen)
    sites = _at_values(subject, change, fault.kind) | {Site(layer.name, "output"): fault.kind}
    sites |= {Site(reader.name, "weight"): fault.kind for reader in change.readers}
    return Planted(replace(subject, network=change.network), fault, sites, exact=True)


# A bias too large for its integer.


def _overflow_places(subject: Subject, random: Random) -> Iterator[Fault]:
    for fault in _channel_places("dead_channel")(subject, random):
        yield replace(fault, kind="bias_overflow")


def _overflow(subject: Subject, fault: Fault) -> Planted:
    """A dead channel's weights so small that its bias is ``strength`` times what 32 bits hold.

    In steps of s_x s_w, under weights per channel: per tensor a small channel has the others' step.
    """
    layer = subject.network.layer(fault.layer)
    spec = grids("per-channel", 8)["weight"]
    (channel,) = fault.where
    weight = _weight(subject, layer).clone()
    assert layer.bias is not None
    bias = subject.network.tensors[layer.bias].clone()
    bias[channel] = torch.minimum(bias[channel], -bias.abs().mean())
    step_x = _width(subject.seen[layer.inputs[0]]) / 255
    step_w = float(fit(spec, weight, axis=layer.weight_axis).scale[channel])  # type: ignore[attr-defined]
    weight[channel] *= float(bias[channel].abs()) / (fault.strength * INT32 * step_x * step_w)
    network = with_parameters(subject.network, layer, weight, bias)
    plan = _laid_over(subject.plan, layer.name, "weight", spec)
    sites = {Site(layer.name, "weight"): "bias_overflow"}
    return Planted(replace(subject, network=network, plan=plan), fault, sites, exact=True)


def _weight(subject: Subject, layer: Layer) -> Tensor:
    weight = subject.network.weight(layer)
    assert weight is not None
    return weight


def _weighted(subject: Subject, random: Random) -> list[Layer]:
    """Layers with a weight (O, I, ...) and a bias, in random order."""
    return _shuffled(
        [layer for layer in subject.network.layers if layer.weight and layer.bias and layer.weight_axis == 0], random
    )


def _shuffled(items: Any, random: Random) -> list[Any]:
    return random.sample(list(items), len(items))


def _laid_over(plan: Mapping[str, Any] | None, layer: str, role: str, spec: Spec) -> dict[str, Any]:
    layers = dict((plan or {}).get("layers", {}))
    roles = {**layers.pop(layer, {}), role: spec.to_json()}
    return {"layers": {**layers, layer: roles}}


KINDS = {
    "weight_outlier": Kind(_weight_outlier_places, _weight_outlier, 1.0, 1000.0),
    "channel_imbalance": Kind(_channel_places("channel_imbalance"), _channel, 1.0, 1000.0),
    "activation_outlier": Kind(_channel_places("activation_outlier"), _channel, 1.0, 1000.0),
    "loud_channel": Kind(_loud_places, _loud_channel, 1.0, 1000.0),
    "dead_channel": Kind(_channel_places("dead_channel"), _dead_channel, 1.0, 1000.0),
    "narrow_range": Kind(_range_places("narrow_range"), _wrong_range, 1.0, 100.0),
    "wide_range": Kind(_range_places("wide_range"), _wrong_range, 1.0, 1000.0),
    "dark_calibration": Kind(_set_places("dark_calibration"), _wrong_set(_darkened), 1.0, 64.0),
    "moved_calibration": Kind(_set_places("moved_calibration"), _wrong_set(_moved), 0.1, 10.0),
    "bright_calibration": Kind(_set_places("bright_calibration"), _wrong_set(_bright), 1.0, 1000.0),
    "mean_shift": Kind(_shift_places, _mean_shift, 0.1, 1000.0),
    "one_sided_rounding": Kind(_one_sided_places, _one_sided, 0.05, 1.0),
    "branch_imbalance": Kind(_branch_places("branch_imbalance"), _branch, 1.0, 1000.0),
    "double_rounding": Kind(_branch_places("double_rounding"), _double_rounding, 10.0, 1000.0),
    "bias_overflow": Kind(_overflow_places, _overflow, 2.0, 1000.0, silent=True),
}
