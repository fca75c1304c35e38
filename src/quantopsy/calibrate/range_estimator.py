"""The entry of one range estimator in the registry, and the running ranges some of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Self

from torch import Tensor

from quantopsy.core import QuantopsyError, Spec
from quantopsy.core.spec import MAX_BITS
from quantopsy.quant import Sample

Range = tuple[Tensor, Tensor]
Argument = float | str | tuple[float, float] | None


class Tracker(ABC):
    """A running range over images that is more than their extremes. Immutable.

    N images, R grids.
    """

    @abstractmethod
    def after(self, low: Tensor, high: Tensor) -> Self:
        """This range after N more images with extremes ``low`` and ``high``, (N, R) each."""

    @abstractmethod
    def merge(self, later: Self) -> Self:
        """This range after the images that ``later`` has seen."""

    @abstractmethod
    def range(self) -> Range:
        """(low, high), (R,) each."""


@dataclass(frozen=True)
class Number:
    """An argument that is a number, or a whole number, in the half-open interval (``above``, ``most``]."""

    default: float
    above: float
    most: float
    whole: bool = False

    def parse(self, text: str) -> float | None:
        """The number, or ``None`` where ``text`` is not one or lies outside."""
        try:
            number = float(text)
        except ValueError:
            return None
        fits = self.above < number <= self.most and (number.is_integer() or not self.whole)
        return number if fits else None

    def __str__(self) -> str:
        return f"a {'whole ' * self.whole}number above {self.above:g}, at most {self.most:g}"


@dataclass(frozen=True)
class Word:
    """An argument that is one of ``words``, the default first."""

    words: tuple[str, ...]

    @property
    def default(self) -> str:
        return self.words[0]

    def parse(self, text: str) -> str | None:
        """The word, or ``None`` where it is not one of them."""
        return text if text in self.words else None

    def __str__(self) -> str:
        return "one of " + ", ".join(self.words)


@dataclass(frozen=True)
class Ends:
    """An argument that is two numbers, the first below the second: ``-1:1``. It has no default."""

    default: None = None

    def parse(self, text: str) -> tuple[float, float] | None:
        """The two numbers, or ``None`` where they are not two, not finite, or not in order."""
        low, _, high = text.partition(":")
        try:
            ends = float(low), float(high)
        except ValueError:
            return None
        return ends if isfinite(ends[0]) and isfinite(ends[1]) and ends[0] < ends[1] else None

    def __str__(self) -> str:
        return "two numbers such as -1:1, the lower one first"


@dataclass(frozen=True)
class RangeEstimator:
    """How the range of a grid is found.

    ``estimate(spec, sample, argument)``
        (low, high), (R,) each, for the R rows of ``sample``.
    ``argument``
        what may stand behind the colon, ``None`` for nothing.
    ``bounded``
        whether the range is kept within what was seen.
    ``needs_values``
        looks at the distribution, not only at the extremes.
    ``tracker(argument)``
        the running range to keep over images, empty; ``None`` where none is needed.
    """

    name: str
    summary: str
    estimate: Callable[[Spec, Sample, Argument], Range]
    argument: Number | Word | Ends | None = None
    bounded: bool = True
    needs_values: bool = True
    max_bits: int = MAX_BITS
    tracker: Callable[[Argument], Tracker] | None = None

    @property
    def usage(self) -> str:
        """What to write, with the argument that the name alone stands for."""
        if self.argument is None:
            return self.name
        return f"{self.name}:{'-1:1' if self.argument.default is None else self.argument.default}"

    def check(self, spec: Spec) -> None:
        """Raise :class:`QuantopsyError` for more bits than this estimator knows of."""
        if spec.bits > self.max_bits:
            raise QuantopsyError(
                f"{self.name} with {spec.bits} bits",
                f"it ends at {self.max_bits}",
                "take another range estimator",
            )

    def parse(self, text: str) -> Argument:
        """The argument that ``text``, what stands behind the colon, names; raises :class:`QuantopsyError`."""
        if self.argument is None:
            if text:
                raise QuantopsyError(
                    f"range estimator {self.name}:{text}", "it takes no argument", f"write {self.name}"
                )
            return None
        if not text and self.argument.default is not None:
            return self.argument.default
        value = self.argument.parse(text)
        if value is None:
            raise QuantopsyError(f"range estimator {self.name}:{text}", "not a valid argument", f"give {self.argument}")
        return value


def tracked_range(_: Spec, sample: Sample, _argument: Argument) -> Range:
    """The running range where one was kept (activations), else the extremes (a tensor in hand)."""
    return (sample.low, sample.high) if sample.tracked is None else sample.tracked
