"""Quantization schemes by name, and the plans of an analysis made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantopsy.core import Plan, QuantopsyError, Role, Site, Spec, names

if TYPE_CHECKING:
    from quantopsy.graph.network import Layer, Network

Grids = Mapping[Role, Spec]

_ACTIVATIONS: Grids = {"input": Spec(), "output": Spec()}
_PER_TENSOR = Spec()
_SYMMETRIC_PER_CHANNEL = Spec(symmetric=True, signed=True, granularity="per_channel")
_ASYMMETRIC_PER_CHANNEL = Spec(granularity="per_channel")

SCHEMES: dict[str, Grids] = {
    # Jacob et al. 2017, the setting of the layer-wise paper.
    "per-tensor": {"weight": _PER_TENSOR, **_ACTIVATIONS},
    "per-channel": {"weight": _SYMMETRIC_PER_CHANNEL, **_ACTIVATIONS},
}

WHOLE_NETWORK_SCHEMES: dict[str, Grids] = {
    "asymmetric per tensor": {"weight": _PER_TENSOR, **_ACTIVATIONS},
    "symmetric per channel": {"weight": _SYMMETRIC_PER_CHANNEL, **_ACTIVATIONS},
    "asymmetric per channel": {"weight": _ASYMMETRIC_PER_CHANNEL, **_ACTIVATIONS},
    "activations only": _ACTIVATIONS,
    "weights only, asymmetric per tensor": {"weight": _PER_TENSOR},
    "weights only, symmetric per channel": {"weight": _SYMMETRIC_PER_CHANNEL},
    "weights only, asymmetric per channel": {"weight": _ASYMMETRIC_PER_CHANNEL},
}
"""The columns of Table 1 of the practical approach, and weights alone besides. Granularity and symmetry are the
weights'; activations are asymmetric per tensor in all of them."""


def grids(
    scheme: str, activation_bits: int, changes: Mapping[Role, Mapping[str, Any]] | None = None
) -> dict[Role, Spec]:
    """The specs of one layer's sites under ``scheme``, weights at 8 bits until a cell says otherwise.

    ``changes`` replaces fields of the scheme's specs by role.
    """
    if scheme not in SCHEMES:
        raise names.unknown(scheme, tuple(SCHEMES), "scheme")
    return changed(SCHEMES[scheme], activation_bits, changes or {})


def changed(specs: Grids, activation_bits: int, changes: Mapping[Role, Mapping[str, Any]]) -> dict[Role, Spec]:
    """``specs`` with activations at ``activation_bits`` and the fields of ``changes`` replaced, role by role."""
    return {
        role: replace(spec if role == "weight" else spec.with_bits(activation_bits), **changes.get(role, {}))
        for role, spec in specs.items()
    }


def full_plan(network: Network, specs: Grids, override: Any = None) -> Plan:
    """Every site of the network on the scheme's grid, ``override`` (a JSON plan) laid over it.

    Raises :class:`QuantopsyError` for an override that names what is not there.
    """
    plan = Plan.of(
        {
            Site(layer.name, role): spec
            for layer in network.layers
            for role, spec in specs.items()
            if role != "weight" or layer.weight is not None
        }
    )
    if override is None:
        return plan
    plan = Plan.from_json(override, network.names, plan)
    weightless = {layer.name for layer in network.layers if layer.weight is None}
    for name, roles in override["layers"].items():
        if name in weightless and roles.get("weight") is not None:
            raise QuantopsyError(f"plan layer {name!r}", "it has no weight", "give its input and output")
    # A pattern that also matches layers without weights means those that have one.
    return Plan(tuple((s, spec) for s, spec in plan.sites if s.role != "weight" or s.layer not in weightless))


def at_bits(plan: Plan, bits: int) -> Plan:
    """The plan with every weight at ``bits``."""
    return Plan.of({site: spec.with_bits(bits) if site.role == "weight" else spec for site, spec in plan.sites})


def single_layer(plan: Plan, layer: Layer) -> Plan:
    """Only ``layer``'s sites of ``plan``: the network of layer-wise paper, section 3.1."""
    return Plan(tuple((site, spec) for site, spec in plan.sites if site.layer == layer.name))


def candidates(full: Plan, selected: Sequence[Layer], widths: Sequence[int]) -> dict[Site, list[Spec]]:
    """The specs of every site of ``selected`` layers that their cells need, weights at each of ``widths``."""
    layers = {layer.name for layer in selected}
    return {
        site: list(dict.fromkeys(spec.with_bits(bits) for bits in widths)) if site.role == "weight" else [spec]
        for site, spec in full.sites
        if site.layer in layers
    }
