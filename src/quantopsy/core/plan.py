"""A plan says what is quantized: an immutable mapping from site to spec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from quantopsy.core.errors import QuantopsyError
from quantopsy.core.names import match
from quantopsy.core.spec import Spec

Role = Literal["input", "weight", "output"]
ROLES: tuple[Role, ...] = get_args(Role)


class Site(NamedTuple):
    """Where a quantizer can sit. ``layer`` is the layer's name, ``role`` which of its tensors."""

    layer: str
    role: Role


@dataclass(frozen=True)
class Plan(Mapping[Site, Spec]):
    """Immutable mapping site -> spec; a site that is absent stays float."""

    sites: tuple[tuple[Site, Spec], ...] = ()

    @classmethod
    def of(cls, mapping: Mapping[Site, Spec]) -> Plan:
        """A plan with the entries of ``mapping`` in a canonical order."""
        return cls(tuple(sorted((Site(*site), spec) for site, spec in mapping.items())))

    @cached_property
    def _by_site(self) -> dict[Site, Spec]:
        return dict(self.sites)

    def __getitem__(self, site: Site) -> Spec:
        return self._by_site[site]

    def __iter__(self) -> Iterator[Site]:
        return (site for site, _ in self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __or__(self, other: Mapping[Site, Spec]) -> Plan:
        """The union; ``other`` decides where both have a site."""
        return Plan.of({**self, **other})

    @property
    def layers(self) -> frozenset[str]:
        """Names of the layers that have a quantized site."""
        return frozenset(site.layer for site, _ in self.sites)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON: equal plans, and only they, share measured results."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """``{"layers": {name: {role: spec}}}``."""
        layers: dict[str, dict[str, Any]] = {}
        for site, spec in self.sites:
            layers.setdefault(site.layer, {})[site.role] = spec.to_json()
        return {"layers": layers}

    @classmethod
    def recorded(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`, names taken as they are; raises :class:`QuantopsyError` for another role."""
        for layer, roles in data["layers"].items():
            if unknown := next((role for role in roles if role not in ROLES), None):
                raise QuantopsyError(
                    f"plan role {unknown!r} of {layer!r}", "no such role", f"roles are {', '.join(ROLES)}"
                )
        return cls.of(
            {
                Site(layer, role): Spec.from_json(spec)
                for layer, roles in data["layers"].items()
                for role, spec in roles.items()
            }
        )

    @classmethod
    def from_json(cls, data: Any, names: Sequence[str], base: Mapping[Site, Spec] | None = None) -> Plan:
        """Read :meth:`to_json`'s form, in which a layer may be a pattern such as ``features.*``.

        Entries are laid over ``base`` and over earlier ones, role by role; ``null`` leaves a role float.
        ``names`` are the network's layers; a pattern without a match raises with the nearest names.
        """
        if not isinstance(data, dict) or not isinstance(data.get("layers"), dict):
            raise QuantopsyError(
                "plan", "it is not an object with 'layers'", "write {'layers': {NAME: {'weight': {'bits': 4}}}}"
            )
        sites: dict[Site, Spec] = dict(base.items()) if base is not None else {}
        for pattern, roles in data["layers"].items():
            if not isinstance(roles, dict):
                raise QuantopsyError(f"plan layer {pattern!r}", "not an object", f"map {', '.join(ROLES)} to specs")
            for name in match([pattern], names, "plan layer"):
                for role, spec in roles.items():
                    if role not in ROLES:
                        raise QuantopsyError(
                            f"plan role {role!r} of {pattern!r}", "no such role", f"roles are {', '.join(ROLES)}"
                        )
                    sites.pop(Site(name, role), None)
                    if spec is not None:
                        sites[Site(name, role)] = Spec.from_json(spec)
        return cls.of(sites)
