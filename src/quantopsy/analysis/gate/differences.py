"""What changed between two networks as they are deployed: the specs of their sites, and the ranges of their grids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np

from quantopsy.analysis.gate.candidate import Candidate, Grids
from quantopsy.core import Role, Site, Spec


@dataclass(frozen=True)
class SpecChange:
    """A site, by its layer's name in the old network, whose spec is not what it was; None is float."""

    layer: str
    role: Role
    before: Spec | None
    after: Spec | None

    @property
    def what(self) -> tuple[str, ...]:
        """Fields of the spec that differ; empty where the site is float on one side."""
        if self.before is None or self.after is None:
            return ()
        return tuple(
            entry.name for entry in fields(Spec) if getattr(self.before, entry.name) != getattr(self.after, entry.name)
        )


@dataclass(frozen=True)
class RangeChange:
    """The grid of a site whose range changed most, by its layer's name in the old network.

    ``before`` and ``after``: its lowest and highest level. ``factor``: of the wider range over the narrower one, which
    at equal bits is that of the scales. ``channel``: which grid of several, None where either side has one for all.
    """

    layer: str
    role: Role
    before: tuple[float, float]
    after: tuple[float, float]
    factor: float
    channel: int | None = None


def spec_changes(old: Candidate, new: Candidate, partners: Mapping[str, str]) -> tuple[SpecChange, ...]:
    """Sites of layers that both have, ``partners`` by name, on which they want different grids."""
    before, after = old.plan, new.plan
    return tuple(
        SpecChange(layer, role, before.get(Site(layer, role)), after.get(Site(partner, role)))
        for layer, partner, role in _sites(before, after, partners)
        if before.get(Site(layer, role)) != after.get(Site(partner, role))
    )


def range_changes(old: Grids, new: Grids, partners: Mapping[str, str]) -> tuple[RangeChange, ...]:
    """Of every site that both have on a grid the one that changed most; the greatest change first.

    Grid by grid where both have as many, else the widest grid of either side.
    """
    found = [
        _most_changed(layer, role, mine, other)
        for layer, partner, role in _sites(old, new, partners)
        for mine, other in zip(old.get(Site(layer, role), ()), new.get(Site(partner, role), ()), strict=False)
        if len(mine) and len(other)
    ]
    return tuple(sorted(found, key=lambda change: -change.factor))


def _most_changed(layer: str, role: Role, mine: np.ndarray, other: np.ndarray) -> RangeChange:
    paired = len(mine) == len(other)
    if not paired:
        mine, other = (ends[[int(np.argmax(_width(ends)))]] for ends in (mine, other))
    before, after = _width(mine), _width(other)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(before == after, 1.0, np.maximum(after / before, before / after))
    worst = int(np.argmax(factors))
    return RangeChange(
        layer=layer,
        role=role,
        before=(float(mine[worst, 0]), float(mine[worst, 1])),
        after=(float(other[worst, 0]), float(other[worst, 1])),
        factor=float(factors[worst]) if not math.isnan(factors[worst]) else math.inf,
        channel=worst if paired and len(mine) > 1 else None,
    )


def _width(ends: np.ndarray) -> np.ndarray:
    """(number of grids,) of ends (number of grids, 2)."""
    return ends[:, 1] - ends[:, 0]


def _sites(
    before: Mapping[Site, object], after: Mapping[Site, object], partners: Mapping[str, str]
) -> Iterator[tuple[str, str, Role]]:
    """(layer, its partner, role) of sites that either has, of layers that both have."""
    back = {partner: layer for layer, partner in partners.items()}
    wanted = {(site.layer, site.role) for site in before if site.layer in partners}
    wanted |= {(back[site.layer], site.role) for site in after if site.layer in back}
    for layer, role in sorted(wanted):
        yield layer, partners[layer], role
