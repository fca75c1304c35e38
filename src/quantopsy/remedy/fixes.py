"""Local fixes: what may be changed at a layer's sites, for which causes, and what it costs to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from quantopsy.core import Cause, Plan, Role, Site, Spec
from quantopsy.graph.network import Layer, Network
from quantopsy.remedy.target import Target

Cost = Literal["free", "scales", "bits", "float"]
"""What a fix costs at run time, cheapest first: nothing, a scale per channel, more bits or tensors, a float layer."""

_WEIGHTS: tuple[Role, ...] = ("weight",)
_ACTIVATIONS: tuple[Role, ...] = ("input", "output")


@dataclass(frozen=True)
class Fix:
    """A change of the fields of a layer's specs at ``roles``; ``fields`` None leaves the sites float.

    ``suits``: causes that it removes; empty for those that nothing more specific suits.
    """

    words: str
    cost: Cost
    roles: tuple[Role, ...]
    fields: Mapping[str, Any] | None
    suits: frozenset[Cause] = field(default_factory=frozenset)


def _causes(*causes: Cause) -> frozenset[Cause]:
    return frozenset(causes)


_SPREAD = _causes("weight_outlier", "channel_imbalance", "dead_channel")
_TAIL = _causes("activation_outlier", "wasted_range", "branch_imbalance", "calibration_range")

FIXES: tuple[Fix, ...] = (
    *(
        Fix(f"weights clipped ({estimator})", "free", _WEIGHTS, {"range_estimator": estimator}, _SPREAD)
        for estimator in ("mse", "sigma:3", "sawb", "percentile:99.9")
    ),
    *(
        Fix(f"activations clipped ({estimator})", "free", _ACTIVATIONS, {"range_estimator": estimator}, _TAIL)
        for estimator in ("mse", "percentile:99.99", "percentile:99.9")
    ),
    Fix("asymmetric weights", "free", _WEIGHTS, {"symmetric": False, "signed": None}, _SPREAD),
    Fix("asymmetric activations", "free", _ACTIVATIONS, {"symmetric": False, "signed": None}, _TAIL),
    Fix("weight scales per channel", "scales", _WEIGHTS, {"granularity": "per_channel"}, _SPREAD),
    Fix(
        "weight scales per channel, clipped (mse)",
        "scales",
        _WEIGHTS,
        {"granularity": "per_channel", "range_estimator": "mse"},
        _SPREAD,
    ),
    Fix(
        "piecewise linear weights per channel",
        "bits",
        _WEIGHTS,
        {"kind": "piecewise", "granularity": "per_channel"},
        _SPREAD,
    ),
    Fix("weights as two tensors", "bits", _WEIGHTS, {"tensors": 2}, _SPREAD),
    Fix("8-bit weights", "bits", _WEIGHTS, {"bits": 8}),
    Fix("16-bit weights", "bits", _WEIGHTS, {"bits": 16}),
    Fix("16-bit activations", "bits", _ACTIVATIONS, {"bits": 16}, _TAIL | _causes("double_rounding")),
    Fix("left float", "float", ("input", "weight", "output"), None),
)


@dataclass(frozen=True)
class Proposal:
    """A plan with a fix in it, and the sites that it changes."""

    fix: Fix
    layer: str
    plan: Plan
    sites: tuple[Site, ...]


def proposals(
    network: Network, plan: Plan, layer: Layer, cost: Cost, target: Target, causes: Sequence[Cause] = ()
) -> Iterator[Proposal]:
    """The fixes of ``cost`` that ``layer`` may have on ``target``: those that suit its ``causes``, all without any.

    Sites whose values are read on one another's grids change together, so that no value is rounded twice.
    """
    for fix in FIXES:
        if fix.cost != cost or (causes and fix.suits and not fix.suits & set(causes)):
            continue
        own = [site for role in fix.roles if (site := Site(layer.name, role)) in plan]
        sites = own if fix.fields is None else sharing(network, plan, own)
        changed: dict[Site, Spec | None] = {}
        for site in sites:
            new = None if fix.fields is None else _with(plan[site], fix.fields)
            if new is None or new != plan[site]:
                changed[site] = new
        if not changed or any(
            target.refuses(site.role, network.layer(site.layer).op, spec) for site, spec in changed.items()
        ):
            continue
        kept = {site: spec for site, spec in plan.items() if site not in changed}
        new_plan = Plan.of(kept | {site: spec for site, spec in changed.items() if spec is not None})
        yield Proposal(fix, layer.name, new_plan, tuple(changed))


def _with(spec: Spec, fields: Mapping[str, Any]) -> Spec:
    if fields.get("bits", spec.bits) < spec.bits:
        return spec
    return replace(spec, options=() if "kind" in fields else spec.options, **fields)


def sharing(network: Network, specs: Mapping[Site, Spec], own: Sequence[Site]) -> list[Site]:
    """``own`` and every site of activations that shares a value with one of them, directly or through others."""
    values: dict[Site, set[str]] = {}
    for site in specs:
        if site.role == "weight":
            continue
        layer = network.layer(site.layer)
        names = layer.inputs if site.role == "input" else (layer.output,)
        values[site] = {network.origin(name) for name in names}
    found = [site for site in own if site.role == "weight"]
    reached = {value for site in own if site.role != "weight" for value in values[site]}
    while True:
        grown = {value for names in values.values() if names & reached for value in names} | reached
        if grown == reached:
            break
        reached = grown
    return found + [site for site, names in values.items() if names & reached]
