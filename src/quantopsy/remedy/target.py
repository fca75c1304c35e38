"""Back-end profiles: which specs a target can run. A profile is a JSON file beside this one, or the user's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from quantopsy.core import Plan, QuantopsyError, Role, Site, Spec, names
from quantopsy.core.form import misfit
from quantopsy.graph.network import Layer
from quantopsy.graph.operators import ACTIVATION_NAMES, OPERATIONS


@dataclass(frozen=True)
class Limits:
    """What specs of weights, or of activations, may be.

    ``bits``: the widths that may be; ``signed_bits``: those of signed codes, where they are fewer. ``granularity``:
    names without sizes. ``symmetric``: values that the spec's field may have. ``float``: whether a site may stay
    float. ``tensors``: as how many tensors a weight may be stored.
    """

    kinds: tuple[str, ...]
    bits: tuple[int, ...]
    granularity: tuple[str, ...]
    symmetric: tuple[bool, ...]
    float: bool = True
    tensors: int = 1
    signed_bits: tuple[int, ...] | None = None

    def refuses(self, spec: Spec) -> str | None:
        """Why a site cannot be on the grid of ``spec``; None where it can."""
        granularity = spec.granularity.partition(":")[0]
        if spec.kind not in self.kinds:
            return f"no {spec.kind} grids"
        if spec.bits not in self.bits:
            return f"no {spec.bits} bits"
        if spec.signed and self.signed_bits is not None and spec.bits not in self.signed_bits:
            most = f", at most {max(self.signed_bits)}" if self.signed_bits else ""
            return f"no {spec.bits} bits of signed codes{most}"
        if granularity not in self.granularity:
            return f"no grids {granularity.replace('_', ' ')}"
        if spec.symmetric not in self.symmetric:
            return f"only {'symmetric' if not spec.symmetric else 'asymmetric'} grids"
        if spec.tensors > self.tensors:
            return f"no weight as {spec.tensors} tensors"
        if spec.correction == "mean_variance" and granularity == "per_tensor":
            return "no offset per channel"
        return None


@dataclass(frozen=True)
class Target:
    """A back end: ``layers`` are limits of operators that differ, by the layer's ``op``."""

    name: str
    summary: str
    weights: Limits
    activations: Limits
    operators: Mapping[str, Mapping[str, Limits]]

    def limits(self, role: Role, op: str) -> Limits:
        """What may be at a site."""
        kind = "weights" if role == "weight" else "activations"
        own = self.operators.get(op, {}).get(kind)
        return own or (self.weights if role == "weight" else self.activations)

    def refuses(self, role: Role, op: str, spec: Spec | None) -> str | None:
        """Why a layer ``op`` cannot have ``spec`` (None: float) at ``role``; None where it can."""
        limits = self.limits(role, op)
        if spec is None:
            return None if limits.float else "nothing stays float"
        return limits.refuses(spec)


ANY = "any"


def target(name: str | Path) -> Target:
    """The profile of that name, or in that file.

    Raises :class:`QuantopsyError` with the nearest names, or with what is wrong in the file.
    """
    known = profiles()
    if str(name) in known:
        return known[str(name)]
    path = Path(name)
    if path.suffix != ".json":
        raise names.unknown(str(name), list(known), "target")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuantopsyError(f"target {str(path)!r}", f"cannot be read ({error})", "give a JSON file") from None
    return _read(path.stem, data)


def profiles() -> dict[str, Target]:
    """All that come with Quantopsy."""
    folder = files("quantopsy.remedy") / "targets"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(".json"): _read(
            entry.name.removesuffix(".json"), json.loads(entry.read_text(encoding="utf-8"))
        )
        for entry in found
    }


def violations(
    target: Target, plan: Plan, operators: Mapping[str, str], sites: Iterable[Site] = ()
) -> Iterator[tuple[Site, str]]:
    """Sites that ``target`` cannot run under ``plan``, each with the rule.

    ``operators``: the ``op`` of every layer. ``sites``: those that have to be on a grid where nothing stays float.
    """
    specs: dict[Site, Spec | None] = {**dict.fromkeys(sites), **dict(plan)}
    for site, spec in specs.items():
        reason = target.refuses(site.role, operators[site.layer], spec)
        if reason is not None:
            yield site, reason


def check_start(target: Target, plan: Plan, operators: Mapping[str, str]) -> None:
    """Raise :class:`QuantopsyError` where ``plan``, from which a repair starts, cannot run on ``target``.

    ``operators``: the ``op`` of every layer.
    """
    for site, reason in violations(target, plan, operators):
        raise QuantopsyError(
            f"target {target.name}",
            f"it cannot run the study's {site.role} of {site.layer!r}: {reason}",
            "analyze with grids that it has (--scheme per-channel, --bits, --plan), or choose another target",
        )


def check_recipe(target: Target, plan: Plan, layers: Sequence[Layer]) -> None:
    """Raise :class:`QuantopsyError` where a recipe's plan for ``layers`` cannot run on ``target``.

    It names each rule with the first layer that breaks it.
    """
    sites = [Site(layer.name, "weight") for layer in layers if layer.weight is not None]
    sites += [Site(layer.name, "output") for layer in layers]
    order = {layer.name: layer.index for layer in layers}
    broken = violations(target, plan, {layer.name: layer.op for layer in layers}, sites)
    found: dict[str, list[Site]] = {}
    for site, reason in sorted(broken, key=lambda violation: order[violation[0].layer]):
        found.setdefault(f"{site.role}: {reason}", []).append(site)
    if not found:
        return
    words = [
        f"the {rule} ({sites[0].layer!r}{f' and {len(sites) - 1} more' if len(sites) > 1 else ''})"
        for rule, sites in found.items()
    ]
    raise QuantopsyError(
        f"target {target.name}",
        f"it cannot run {'; '.join(words)}",
        f"`quantopsy repair --target {target.name}` from a study with grids that it has, or choose another target",
    )


_LIMITS = {
    "kinds": [str],
    "bits": [int],
    "granularity": [str],
    "symmetric": [bool],
    "float": bool,
    "tensors": int,
    "signed_bits": [int],
}
_ROLES = {"weights": _LIMITS, "activations": _LIMITS}
_FORM: dict[str, Any] = {"summary": str, **_ROLES, "operators": {str: _ROLES}}


def _read(name: str, data: Any) -> Target:
    try:
        if (found := misfit(data, _FORM)) is not None:
            raise ValueError(found)
        for entries, known in ((data, _FORM), *((kinds, _ROLES) for kinds in data.get("operators", {}).values())):
            if unknown := sorted(set(entries) - set(known)):
                raise ValueError(f"no field {unknown[0]!r}")
        layers = sorted({*(operation.name for operation in OPERATIONS.values()), *ACTIVATION_NAMES})
        for op in data.get("operators", {}):
            if op not in layers:
                raise names.unknown(op, layers, f"operator of target {name!r}")
        return Target(
            name,
            str(data.get("summary", "")),
            _limits(data["weights"]),
            _limits(data["activations"]),
            {
                op: {kind: _limits(limits) for kind, limits in kinds.items()}
                for op, kinds in data.get("operators", {}).items()
            },
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise QuantopsyError(
            f"target {name!r}",
            f"its profile does not read ({error!r})",
            "give 'weights' and 'activations' with kinds, bits, granularity, symmetric",
        ) from None


def _limits(data: Mapping[str, Any]) -> Limits:
    if unknown := sorted(set(data) - set(_LIMITS)):
        raise ValueError(f"no field {unknown[0]!r}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return Limits(**values)
