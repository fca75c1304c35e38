"""Mixed precision, allocated: what was chosen under which limits, and what it is worth, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantopsy.core.recipe import Estimate, Expected


@dataclass(frozen=True)
class Outcome:
    """A choice of bit-widths, what it costs, and what it was measured to lose.

    ``uses``: its cost by resource (size in bytes). ``noise``: mean over images of the squared distance of the
    outputs; ``predicted``: what the criterion expects, in its own unit. ``degradation``: of the metric, positive is
    worse.
    """

    words: str
    uses: Mapping[str, float]
    predicted: float
    noise: float
    degradation: Estimate


@dataclass(frozen=True)
class Decisions:
    """Percent of images decided as the float network decides them, ``before`` and ``after``; ``gained``, in points:
    positive is better."""

    before: float
    after: float
    gained: Estimate


@dataclass(frozen=True)
class Allocation:
    """Bit-widths under ``limits`` (by resource, as ``uses``), chosen by ``criterion``.

    ``bits`` of the weights by layer; ``activation_bits`` of what layers read, where those were chosen too.
    ``rivals``: what each criterion proposes at the limit, on the images that choose. ``front``: the best under rising
    limits on ``along``; ``greedy`` and ``uniform`` widths beside it, all on images that the choice has not seen.
    ``baseline``: bits of the uniform network within the limits that ``expected`` (its ``before``), ``noise_ratio``
    (chosen over uniform) and ``decisions`` compare with, on images that no decision has seen; both are corrected alike.
    ``decisions``: None where the outputs are no scores of classes.
    """

    criterion: str
    correction: str
    along: str
    limits: Mapping[str, float]
    uses: Mapping[str, float]
    bits: Mapping[str, int]
    activation_bits: Mapping[str, int]
    rivals: tuple[Outcome, ...]
    front: tuple[Outcome, ...]
    greedy: tuple[Outcome, ...]
    uniform: tuple[Outcome, ...]
    baseline: int
    baseline_uses: Mapping[str, float]
    expected: Expected
    noise_ratio: Estimate
    decisions: Decisions | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Allocation:
        """The inverse of :meth:`to_json`."""
        outcomes = {
            name: tuple(Outcome(**{**found, "degradation": tuple(found["degradation"])}) for found in data[name])
            for name in ("rivals", "front", "greedy", "uniform")
        }
        expected: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in data["expected"].items()
        }
        return cls(
            **{
                **data,
                **outcomes,
                "expected": Expected(**expected),
                "noise_ratio": tuple(data["noise_ratio"]),
                "decisions": _decisions(data["decisions"]),
            }
        )


def _decisions(data: Mapping[str, Any] | None) -> Decisions | None:
    return None if data is None else Decisions(data["before"], data["after"], tuple(data["gained"]))
