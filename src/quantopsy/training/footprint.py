"""What trained bit-widths take, in memory or in operations, and the price of exceeding a limit (DDQ section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, names
from quantopsy.remedy.allocation.costs import LIMIT_FORMS, REFERENCE_BITS, UNITS, Resource, amount, number_and_unit
from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer
from quantopsy.training.quantizers.gates import Gates

FLOAT_BITS = 32
"""Of a value that is on no grid; ``0.125x`` of memory is an eighth of these."""

ALPHA = -0.02
"""Exponent of the price while the limit is exceeded (DDQ section 4.2)."""

Width = Gates | int
"""A trained bit-width, or one that is fixed."""

# By form: what an element of s bits counts. Memory is proportional to s; equation (6) as printed sums 2^s.
FORMS: Mapping[str, Callable[[Any], Any]] = {"bits": lambda s: s, "levels": lambda s: 2**s}


class Part(NamedTuple):
    """``elements`` stored with ``width`` bits; of operations, multiply-accumulates whose ``other`` factor has a width
    of its own."""

    elements: int
    width: Width
    other: Width = 1


@dataclass(frozen=True)
class Footprint:
    """``sum_l elements_l s_l`` in bits (DDQ equation (6)); form ``levels``: the paper's ``sum_l elements_l 2^(s_l)``.

    As ``resource`` ``bitops`` the same of operations: ``sum_l macs_l s_l t_l``, s of the weight and t of what the layer
    reads. Raises :class:`QuantopsyError` for another form, and where there are no elements.
    """

    parts: tuple[Part, ...]
    form: str = "bits"
    resource: Resource = "size"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise names.unknown(self.form, list(FORMS), "form of the footprint")
        if self.elements == 0:
            raise QuantopsyError("footprint", "nothing is stored", "quantize the weight of a layer")

    def __call__(self) -> Tensor:
        """The footprint now, a float64 scalar with a gradient to the gates."""
        return torch.as_tensor(self._sum(_trained, _trained), dtype=torch.float64)

    @property
    def elements(self) -> int:
        """How many values are stored, or operations done."""
        return sum(part.elements for part in self.parts)

    @property
    def total(self) -> int:
        """Bits of memory, or BitOps, now, whatever the form."""
        return sum(part.elements * _bits(part.width) * _bits(part.other) for part in self.parts)

    @property
    def of_a_bit(self) -> int:
        """The same with a bit for every element, other factors with the most that they may have."""
        return sum(part.elements * _most(part.other) for part in self.parts)

    @property
    def least(self) -> Footprint:
        """The smallest that training can reach."""
        parts = (Part(part.elements, _least(part.width), _least(part.other)) for part in self.parts)
        return Footprint(tuple(parts), self.form, self.resource)

    def at(self, bits: float) -> float:
        """The footprint with ``bits`` for every element, other factors with the most that they may have."""
        return float(self._sum(lambda _: bits, _most))

    @property
    def gates(self) -> tuple[Gates, ...]:
        """The gates of its parts, each once."""
        widths = (width for part in self.parts for width in (part.width, part.other))
        return tuple(dict.fromkeys(width for width in widths if isinstance(width, Gates)))

    def freed(self, gates: Gates) -> dict[int, float]:
        """What closing each of ``gates`` takes off while all else stays, by its number from 1."""
        weigh = FORMS[self.form]
        own = sum(part.elements * _bits(part.other) for part in self.parts if part.width is gates)
        others = sum(part.elements * weigh(_bits(part.width)) for part in self.parts if part.other is gates)
        return {s: own * (weigh(s) - weigh(s - 1)) + others for s in range(1, len(gates.logits) + 1)}

    def _sum(self, width: Callable[[Width], Any], other: Callable[[Width], Any]) -> Any:
        weigh = FORMS[self.form]
        return sum(part.elements * weigh(width(part.width)) * other(part.other) for part in self.parts)


def _trained(width: Width) -> Any:
    # Counts beyond 2^24 would not be whole in float32, and a limit that is just met might not be.
    return width().double().sum() if isinstance(width, Gates) else width


def _bits(width: Width) -> int:
    return width.bits if isinstance(width, Gates) else width


def _least(width: Width) -> int:
    return width.minimum if isinstance(width, Gates) else width


def _most(width: Width) -> int:
    return len(width.logits) if isinstance(width, Gates) else width


@dataclass(frozen=True)
class Limit:
    """A footprint that training may not exceed, that of ``average`` bits for every element.

    Raises :class:`QuantopsyError` where no bit-widths are within it.
    """

    footprint: Footprint
    average: float
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        least = self.footprint.least
        if least() > self.target:
            shown = amount(least.resource, least.total / (8 if least.resource == "size" else 1), up=True)
            raise QuantopsyError(
                f"limit of {self.average:.4g} bits on average",
                f"{least.total / self.footprint.of_a_bit:.4g} ({shown}) are the least that training can reach"
                f"{'' if self.footprint.form == 'bits' else ', and it counts levels'}",
                "raise the limit, or lower the minimum",
            )

    @classmethod
    def parse(cls, text: str, footprint: Footprint) -> Limit:
        """``4bits`` on average, ``300KB`` in all, or ``0.125x`` of float32; of BitOps, what ``4bits`` for all weights
        take with inputs as they start, ``1.5G``, or ``0.5x`` of 8-bit weights, as
        :class:`quantopsy.remedy.allocation.costs.Costs` reads them. Raises :class:`QuantopsyError`."""
        size = footprint.resource == "size"
        units = UNITS[footprint.resource]
        number, unit = number_and_unit(text) or (0.0, "none")
        if unit in ("bit", "bits"):
            return cls(footprint, number)
        if unit == "x":
            return cls(footprint, number * (FLOAT_BITS if size else REFERENCE_BITS))
        if unit in units:
            return cls(footprint, (8 if size else 1) * number * units[unit] / footprint.of_a_bit)
        if size:
            raise QuantopsyError(
                f"limit {text!r}", "is no footprint", "write 4bits, 0.125x (of float32), 300KB or 2MiB"
            )
        raise QuantopsyError(f"limit {text!r}", "is no number of BitOps", LIMIT_FORMS["bitops"])

    @property
    def target(self) -> float:
        """``zeta(b, ..., b)`` of DDQ equation (7)."""
        return self.footprint.at(self.average)

    @property
    def met(self) -> bool:
        """Whether the bit-widths now are within the limit."""
        with torch.no_grad():
            return bool(self.footprint() <= self.target)

    def price(self) -> Tensor:
        """``(target / now)^alpha`` while the limit is exceeded, else 1: what the loss is multiplied by (equation (7)).

        Float64 scalar, differentiable in the gates.
        """
        now = self.footprint()
        if now <= self.target:
            return torch.ones_like(now.detach())
        return (self.target / now) ** self.alpha


def share_gates(quantizers: Iterable[FakeQuantizer]) -> None:
    """Give ``quantizers`` the gates of the first: one trained bit-width for sites that must agree.

    Raises :class:`QuantopsyError` where one has none, or others differ in how many bits there are at most.
    """
    first, *others = quantizers
    for other in (first, *others):
        if first.gates is None or other.gates is None:
            raise QuantopsyError("shared bits", "a weight among them has none that learn", "take it out of the pattern")
        if first.spec.bits != other.spec.bits:
            raise QuantopsyError(
                f"gates of {first.spec.bits} bits for a quantizer of {other.spec.bits}",
                "sites that share a bit-width start with the same",
                "give them one spec, or take the first and the last layer out with --edge-bits 0",
            )
        other.gates = first.gates
