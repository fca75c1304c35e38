"""What trained bit-widths take in memory, and the price of exceeding a limit (DDQ section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, names
from quantopsy.remedy.allocation.costs import BYTES, amount
from quantopsy.training.quantizers.ddq import DDQ
from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer
from quantopsy.training.quantizers.gates import Gates

FLOAT_BITS = 32
"""Of the values that ``0.125x`` is an eighth of."""

ALPHA = -0.02
"""Exponent of the price while the limit is exceeded (DDQ section 4.2)."""

# By form: what an element of s bits counts. Memory is proportional to s; equation (6) as printed sums 2^s.
FORMS: Mapping[str, Callable[[Any], Any]] = {"bits": lambda s: s, "levels": lambda s: 2**s}

_WANTED = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)\s*", re.IGNORECASE)


class Part(NamedTuple):
    """``elements`` stored with a trained bit-width, or with one that is fixed."""

    elements: int
    width: Gates | int

    @property
    def bits(self) -> int:
        """Of an element, now."""
        return self.width.bits if isinstance(self.width, Gates) else self.width

    @property
    def least_bits(self) -> int:
        """Of an element, with every gate closed that may close."""
        return self.width.minimum if isinstance(self.width, Gates) else self.width


@dataclass(frozen=True)
class Footprint:
    """``sum_l elements_l s_l`` in bits (DDQ equation (6)); form ``levels``: the paper's ``sum_l elements_l 2^(s_l)``.

    Raises :class:`QuantopsyError` for another form, and where there are no elements.
    """

    parts: tuple[Part, ...]
    form: str = "bits"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise names.unknown(self.form, list(FORMS), "form of the footprint")
        if self.elements == 0:
            raise QuantopsyError("footprint", "nothing is stored", "quantize the weight of a layer")

    def __call__(self) -> Tensor:
        """The footprint now, a float64 scalar with a gradient to the gates."""
        # Counts beyond 2^24 would not be whole in float32, and a limit that is just met might not be.
        widths = (p.width().double().sum() if isinstance(p.width, Gates) else p.width for p in self.parts)
        return torch.as_tensor(self._sum(widths), dtype=torch.float64)

    @property
    def elements(self) -> int:
        """How many values are stored."""
        return sum(part.elements for part in self.parts)

    @property
    def bits(self) -> int:
        """Memory in bits now, whatever the form."""
        return sum(part.elements * part.bits for part in self.parts)

    @property
    def least(self) -> Footprint:
        """The smallest that training can reach."""
        return Footprint(tuple(Part(part.elements, part.least_bits) for part in self.parts), self.form)

    def at(self, bits: float) -> float:
        """The footprint with ``bits`` for every element."""
        return float(self._sum(bits for _ in self.parts))

    @property
    def gates(self) -> tuple[Gates, ...]:
        """The gates of its parts, each once."""
        return tuple(dict.fromkeys(part.width for part in self.parts if isinstance(part.width, Gates)))

    def freed(self, gates: Gates) -> dict[int, float]:
        """What closing each of ``gates`` takes off, by its number from 1."""
        weigh = FORMS[self.form]
        elements = sum(part.elements for part in self.parts if part.width is gates)
        return {s: elements * (weigh(s) - weigh(s - 1)) for s in range(1, len(gates.logits) + 1)}

    def _sum(self, widths: Iterable[Any]) -> Any:
        weigh = FORMS[self.form]
        return sum(part.elements * weigh(width) for part, width in zip(self.parts, widths, strict=True))


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
            raise QuantopsyError(
                f"limit of {self.average:.4g} bits on average",
                f"{least.bits / least.elements:.4g} ({amount('size', least.bits / 8, up=True)}) are the least that "
                f"training can reach{'' if self.footprint.form == 'bits' else ', and it counts levels'}",
                "raise the limit, or lower the minimum",
            )

    @classmethod
    def parse(cls, text: str, footprint: Footprint) -> Limit:
        """``4bits`` on average, ``300KB`` in all, or ``0.125x`` of float32. Raises :class:`QuantopsyError`."""
        match = _WANTED.fullmatch(text)
        number, unit = (float(match[1]), match[2].lower()) if match else (0.0, "")
        if unit in ("bit", "bits"):
            return cls(footprint, number)
        if unit == "x":
            return cls(footprint, number * FLOAT_BITS)
        if unit in BYTES:
            return cls(footprint, 8 * number * BYTES[unit] / footprint.elements)
        raise QuantopsyError(f"limit {text!r}", "is no footprint", "write 4bits, 0.125x (of float32), 300KB or 2MiB")

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
        if not (isinstance(first, DDQ) and isinstance(other, DDQ) and first.gates is not None and other.gates):
            raise QuantopsyError("shared bits", "a weight among them has none that learn", "take it out of the pattern")
        if first.spec.bits != other.spec.bits:
            raise QuantopsyError(
                f"gates of {first.spec.bits} bits for a quantizer of {other.spec.bits}",
                "sites that share a bit-width start with the same",
                "give them one spec, or take the first and the last layer out with --edge-bits 0",
            )
        other.gates = first.gates
