"""A finding: a layer, a named cause, the evidence, what removing the cause removes, the fixes that suit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from quantopsy.core.plan import Role

Cause = Literal[
    "calibration_range",
    "dead_channel",
    "weight_outlier",
    "channel_imbalance",
    "double_rounding",
    "branch_imbalance",
    "wasted_range",
    "activation_outlier",
    "bias_shift",
    "bias_overflow",
    "amplification",
    "no_single_cause",
]
"""From the most to the least specific."""

Severity = Literal["severe", "mild"]


@dataclass(frozen=True)
class Removed:
    """What a counterfactual takes away, with the ends of its interval.

    ``noise``: share of the cell's noise. ``degradation``: of its degradation, in the metric's unit.
    """

    noise: tuple[float, float, float]
    degradation: tuple[float, float, float]


@dataclass(frozen=True)
class Finding:
    """Why one layer hurts at one bit-width.

    ``change`` is the counterfactual that was measured, in words; None where there is none to measure.
    ``sites`` are those it changed. ``primary``: the most specific cause that explains what is explained.
    ``shares``: of the layer's noise that each site brings (16 bits there against the plan's).
    """

    layer: str
    bits: int
    cause: Cause
    primary: bool
    severity: Severity
    sites: tuple[Role, ...]
    evidence: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[Role, float] = field(default_factory=dict)
    change: str | None = None
    removed: Removed | None = None
    fixes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """The inverse of :meth:`to_json`."""
        removed = data["removed"]
        return cls(
            **{
                **data,
                "sites": tuple(data["sites"]),
                "fixes": tuple(data["fixes"]),
                "removed": removed and Removed(tuple(removed["noise"]), tuple(removed["degradation"])),
            }
        )
