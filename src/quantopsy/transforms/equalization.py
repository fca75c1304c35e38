"""Cross-layer equalization: ranges of channels made alike across the layers that share them.

Of a channel with scale s > 0 the layer that makes it is divided by s, the layers that read it are multiplied by s:
f(s x) = s f(x) for all between them, so that the float function stays (DFQ, Nagel et al. 2019, section 4.1;
Meller et al. 2019). C channels, G groups, O and I of them out of and into a layer, K values of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, names
from quantopsy.graph.network import Network
from quantopsy.transforms.draft import Draft
from quantopsy.transforms.scale_classes import ScaleClasses, in_layout, matrices, scale_classes
from quantopsy.transforms.transform import decode, encode

CONVERGED = 1e-6
"""Change of a logarithmic scale in a sweep, below which sweeping ends."""

LARGEST_SCALE = 4.0
"""Scales stay between its inverse and it: what a channel's weights need is not what its activation needs, least of
all where they are nearly dead (``docs/transforms.md`` has the measurements)."""

ChannelRanges = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Equalization:
    """``scales``: by layer with a weight the (C,) factors that its output channels are divided by.

    Whatever reads those channels is multiplied by them; bounds of clamps between (relu6) become one a channel.
    """

    scales: Mapping[str, Tensor]
    name: ClassVar[str] = "equalization"
    exact: ClassVar[bool] = True

    def apply(self, network: Network) -> Network:
        """``network`` with its channels scaled.

        Raises :class:`QuantopsyError` for a layer that is not there, has another number of channels, and for
        channels of different scales that an operator needs to be equal.
        """
        classes = scale_classes(network)
        by_class = self._by_class(network, classes)
        draft = Draft(network)
        for weighted in classes.weighted:
            layer, out, into = weighted.layer, by_class[weighted.out], by_class[weighted.into]
            weight = network.tensors[str(layer.weight)]
            groups = len(matrices(layer, weight))
            factors = into.reshape(groups, 1, -1) / out.reshape(groups, -1, 1)
            draft.set_tensor(str(layer.weight), weight.double() * in_layout(layer, factors))
            if layer.bias is not None:
                draft.set_tensor(layer.bias, network.tensors[layer.bias].double() / out)
        for clamped in classes.clamped:
            scale = by_class[clamped.classes]
            if bool((scale != 1).any()):
                bounds = draft.bounds(clamped.value)
                scaled = {side: None if bound is None else bound.double() / scale for side, bound in bounds.items()}
                draft.set_bounds(clamped.value, scaled)
        return draft.network()

    def _by_class(self, network: Network, classes: ScaleClasses) -> Tensor:
        """(classes,) float64 scales."""
        found = torch.full((classes.count,), math.nan, dtype=torch.float64)
        found[list(classes.pinned)] = 1.0
        made = {weighted.layer.name: weighted for weighted in classes.weighted}
        for name in self.scales:
            if name not in made:
                network.layer(name)
                raise QuantopsyError(f"equalization of layer {name!r}", "it has no weight to scale", "leave it out")
        for name, weighted in made.items():
            out = weighted.out
            scale = self.scales.get(name, torch.ones(len(out))).double()
            if len(scale) != len(out):
                raise QuantopsyError(
                    f"equalization of layer {name!r}",
                    f"{len(scale)} scales for {len(out)} channels",
                    "apply it to the network that it was found for",
                )
            if not bool(((scale > 0) & scale.isfinite()).all()):
                raise QuantopsyError(f"equalization of layer {name!r}", "a scale is not positive", "find it again")
            seen = found[out]
            found[out] = scale
            if bool(((seen != scale) & ~seen.isnan()).any()) or bool((found[out] != scale).any()):
                why = {classes.pinned[int(c)] for c in out[seen != scale] if int(c) in classes.pinned}
                raise QuantopsyError(
                    f"equalization of layer {name!r}",
                    f"{', '.join(sorted(why)) or 'an operator behind it'} needs other scales of its channels",
                    "apply it to the network that it was found for",
                )
        return found.nan_to_num(nan=1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "scales": encode(self.scales)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls(decode(data["scales"]))


def find_equalization(
    network: Network,
    *,
    sweeps: int | None = 10,
    normalised: bool = True,
    activation_ranges: ChannelRanges | None = None,
    layers: Iterable[str] | None = None,
    largest: float = LARGEST_SCALE,
) -> Equalization:
    """The equalization of ``network``.

    Sweep by sweep, layer after layer in topological order, every class of channels that share a scale gets
    s = sqrt(r_out / r_in): r_out = max |w| over the rows that make it, r_in over the columns that read it, in every
    tensor as scaled so far (DFQ, equation (11)). ``normalised`` divides each by the largest of its tensor, so that
    it is the share of the grid that a channel uses which becomes equal (DFQ, equation (9)).

    ``sweeps``: that many, or fewer where nothing moves any more; None for as many as that takes.

    ``activation_ranges``: by value the least and greatest number of every channel, (C,) each; then r_out is the
    geometric mean of a channel's share of the weights that make it and its share of the activation, so that
    activations are equalized too (as in the two-step equalization of Meller et al. 2019, in one step).

    ``layers``: patterns of the layers whose output channels may be scaled, all where None. ``largest``: the largest
    scale, and the inverse of the least; channels without any weight keep scale 1.

    Raises :class:`QuantopsyError` where a pattern names only layers that no equalization can scale, with the
    operator that is not scale-equivariant.
    """
    if sweeps is not None and sweeps < 1:
        raise QuantopsyError(f"equalization in {sweeps} sweeps", "there is nothing to do", "give 1 or more")
    classes = scale_classes(network)
    free = _free(network, classes, layers)
    sweep = _Sweep(network, classes, normalised, activation_ranges or {}, free, math.log(largest))
    count = 0
    while sweeps is None or count < sweeps:
        count += 1
        if sweep.run() < CONVERGED or count == _MOST_SWEEPS:
            break
    scales = sweep.log_scale.exp().float()
    made = {weighted.layer.name: scales[weighted.out] for weighted in classes.weighted}
    return Equalization({name: scale for name, scale in made.items() if bool((scale != 1).any())})


_MOST_SWEEPS = 1000


def _free(network: Network, classes: ScaleClasses, layers: Iterable[str] | None) -> Tensor:
    """(classes,) bool: which of them may be scaled. Refuses a pattern that leaves none."""
    movable = torch.ones(classes.count, dtype=torch.bool)
    movable[list(classes.pinned)] = False
    if layers is None:
        return movable
    made = {weighted.layer.name: weighted.out for weighted in classes.weighted}
    chosen = torch.zeros_like(movable)
    for pattern in layers:
        matched = names.match([pattern], network.names, "layer")
        outs = [made[name] for name in matched if name in made]
        if not any(bool(movable[out].any()) for out in outs):
            why = sorted({classes.pinned[int(c)] for out in outs for c in out.unique()})
            raise QuantopsyError(
                f"equalization of layer {pattern!r}",
                f"{', '.join(why)} is not scale-equivariant" if why else "it has no weight",
                "choose layers with relu, leaky relu, prelu, relu6 or nothing behind them",
            )
        for out in outs:
            chosen[out] = True
    return movable & chosen


class _Sweep:
    """The state of the sweeps: one logarithmic scale a class, float64."""

    def __init__(
        self,
        network: Network,
        classes: ScaleClasses,
        normalised: bool,
        ranges: ChannelRanges,
        free: Tensor,
        limit: float,
    ) -> None:
        self.normalised, self.free, self.limit = normalised, free, limit
        self.log_scale = torch.zeros(classes.count, dtype=torch.float64)
        self.weighted = classes.weighted
        # (G, O / G, I / G): log of the largest value of every kernel.
        self.kernels = [
            matrices(w.layer, network.tensors[str(w.layer.weight)]).double().abs().amax(3).log()
            for w in classes.weighted
        ]
        self.ranges = _log_ranges(ranges, classes)
        self.blocks = self._blocks(classes)

    def _blocks(self, classes: ScaleClasses) -> list[_Block]:
        """The classes that are scaled together: those that a layer is the first to make."""
        blocks = []
        taken = ~self.free
        for weighted in classes.weighted:
            members = torch.zeros_like(taken)
            members[weighted.out] = True
            members &= ~taken
            taken = taken | members
            if members.any():
                blocks.append(
                    _Block(
                        members,
                        [i for i, w in enumerate(self.weighted) if bool(members[w.out].any())],
                        [i for i, w in enumerate(self.weighted) if bool(members[w.into].any())],
                        [i for i, (c, _) in enumerate(self.ranges) if bool(members[c].any())],
                    )
                )
        return blocks

    def run(self) -> float:
        """One sweep over all blocks; returns the largest change of a logarithmic scale."""
        before = self.log_scale.clone()
        for block in self.blocks:
            self._equalize(block)
        return float((self.log_scale - before).abs().max())

    def _equalize(self, block: _Block) -> None:
        made = torch.full_like(self.log_scale, -math.inf)
        read = made.clone()
        for index in block.makers:
            kernel = self._scaled(index)
            made.scatter_reduce_(0, self.weighted[index].out, kernel.amax(2).flatten(), "amax")
        for index in block.readers:
            kernel = self._scaled(index)
            read.scatter_reduce_(0, self.weighted[index].into, kernel.amax(1).flatten(), "amax")
        seen = torch.full_like(made, -math.inf)
        for index in block.ranges:
            classes, reach = self.ranges[index]
            share = reach - self.log_scale[classes]
            seen.scatter_reduce_(0, classes, share - share.max(), "amax")
        if not self.normalised:  # an activation's share, in the unit of the weights that make it
            seen = seen + made[block.members].max()
        made = torch.where(seen.isfinite(), (made + seen) / 2, made)
        step = (made - read) / 2
        # A layer whose inputs and outputs share classes would overshoot, moving both ends at once.
        step = step / 2 if set(block.makers) & set(block.readers) else step
        moves = block.members & step.isfinite()
        self.log_scale = torch.where(moves, self.log_scale + step, self.log_scale).clamp(-self.limit, self.limit)

    def _scaled(self, index: int) -> Tensor:
        """(G, O / G, I / G) as scaled so far."""
        weighted, kernel = self.weighted[index], self.kernels[index]
        groups, out, into = kernel.shape
        kernel = (
            kernel
            - self.log_scale[weighted.out].reshape(groups, out, 1)
            + self.log_scale[weighted.into].reshape(groups, 1, into)
        )
        return kernel - kernel.max() if self.normalised else kernel


@dataclass(frozen=True)
class _Block:
    """Classes that are scaled at once, and the indices of the tensors that they are made, read and seen in."""

    members: Tensor
    makers: list[int]
    readers: list[int]
    ranges: list[int]


def _log_ranges(ranges: ChannelRanges, classes: ScaleClasses) -> list[tuple[Tensor, Tensor]]:
    """(classes, log max |x|) of the channels of every value whose channels are known."""
    found = []
    for value, (low, high) in ranges.items():
        if value not in classes.values:
            raise names.unknown(value, tuple(classes.values), "activation range of value")
        by_channel = classes.by_channel(value, len(low))
        if by_channel is not None:
            found.append((by_channel, torch.maximum(-low, high).double().clamp(min=0).log()))
    return found
