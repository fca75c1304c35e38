"""How numbers and names are written, the same on the page, on the terminal and in figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from quantopsy.analysis.results import Results

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EM DASH}"
INFINITY = "\N{INFINITY}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
SCREENED = "screened (predicted)"
BEYOND_LINEAR = "beyond the linear regime: noise prediction is rough"
PREDICTED = "~"
"""Before every number that is screened: predicted, not run."""

_DRAWN_DIGITS = 5
"""Significant digits of what is only drawn: finer than a pixel."""

_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def fixed(value: float, decimals: int) -> str:
    """``value`` with so many decimals, never as a negative zero; a dash where it is not finite."""
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float, decimals: int) -> str:
    """A change, as :func:`fixed` writes it, with its sign where it is not zero."""
    text = fixed(value, decimals)
    return f"+{text}" if math.isfinite(value) and round(value, decimals) > 0 else text


def significant(value: float, digits: int = 3) -> str:
    """``value`` to so many significant digits, as a plain decimal from 0.001 up to a million.

    >>> significant(0.04567), significant(12345.6), significant(1.5e-7)
    ('0.0457', '12300', '1.50e\N{MINUS SIGN}7')
    """
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -3 <= power < 6:
        text = f"{float(f'{mantissa}e{power}'):.{max(0, digits - 1 - power)}f}"
    else:
        text = f"{mantissa}e{power}"
    return text.replace("-", MINUS)


def drawn(value: Any) -> float | None:
    """A JSON number as fine as a picture needs, or ``None`` for what JSON cannot hold."""
    return float(f"{float(value):.{_DRAWN_DIGITS}g}") if math.isfinite(float(value)) else None


def si(value: float, unit: str = "") -> str:
    """``value`` with an SI prefix and three significant digits: ``12.3 M``."""
    if not math.isfinite(value):
        return MISSING
    for size, prefix in _SI:
        # 999 600 rounds to 1.00 M, not to 1000 k.
        if abs(value) >= 0.9995 * size:
            return f"{significant(value / size)} {prefix}{unit}"
    return f"{significant(value)} {unit}".strip()


def share_reached(share: float) -> str:
    """A share between 0 and 1 in thousandths of a percent, rounded down: 100 is all."""
    return fixed(math.floor(1e5 * share) / 1e3, 3)


def percent(share: float) -> str:
    """A share between 0 and 1 in percent, without claiming 0 or 100 for what is neither."""
    if not math.isfinite(share):
        return MISSING
    if 0 < share < 0.005:
        return "<1 %"
    if 0.995 <= share < 1:
        return ">99 %"
    return f"{fixed(100 * share, 0)} %"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{fixed(seconds, 1)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def elide(name: str, width: int) -> str:
    """``name`` in at most ``width`` characters, the middle left out: both ends tell layers apart."""
    if len(name) <= width:
        return name
    if width < 2:
        return ELLIPSIS[:width]
    tail = width // 2
    return name[: width - 1 - tail] + ELLIPSIS + name[len(name) - tail :]


def count(number: int, thing: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def degradation_decimals(results: Results) -> int:
    """Decimals for values and degradations of these results, see :func:`interval_decimals`."""
    return interval_decimals(results.cells["degradation_low"], results.cells["degradation_high"], results.unit)


def interval_decimals(low: pd.Series, high: pd.Series, unit: str) -> int:
    """Decimals for values whose intervals are ``low`` to ``high``, by their typical half width.

    One number for a whole report, so that columns line up and nothing claims more than was measured.
    """
    half = (high - low).to_numpy(dtype=float) / 2
    half = half[np.isfinite(half) & (half > 0)]
    if unit == "points":
        return 2 if half.size and float(np.median(half)) < 0.1 else 1
    if half.size == 0:
        return 3
    return int(np.clip(1 - math.floor(math.log10(float(np.median(half)))), 1, 6))


def degradation_unit(results: Results) -> str:
    """`` (points)`` behind a heading, or nothing."""
    return f" ({results.unit})" if results.unit else ""


def interval(low: float, high: float, decimals: int) -> str:
    """``a to b``; empty where there is none. Nothing at all is known where the ends are infinite, as of one image."""
    if math.isnan(low) or math.isnan(high) or (math.isinf(low) and low == high):
        return ""
    infinite = {-math.inf: f"{MINUS}{INFINITY}", math.inf: INFINITY}
    return " to ".join(infinite.get(end) or fixed(end, decimals) for end in (low, high))


def with_interval(value: float, low: float, high: float, decimals: int) -> str:
    """``value (a to b)``; the value alone where there is no interval."""
    between = interval(low, high, decimals)
    return f"{fixed(value, decimals)} ({between})" if between else fixed(value, decimals)


def confidence(results: Results) -> str:
    """The level of the intervals: ``95 %``."""
    return f"{100 * results.level:g} %"


def predicted(text: str, screened: bool) -> str:
    """``text`` of a number, marked where it is not measured; a dash stays a dash."""
    return f"{PREDICTED}{text}" if screened and text and text != MISSING else text


@dataclass(frozen=True)
class Writer:
    """Values of a metric and its losses in words: so many ``decimals``, its ``unit``, intervals of ``level``."""

    decimals: int
    unit: str
    level: float

    @classmethod
    def of(cls, results: Results) -> Writer:
        """As one ``Results`` wants its numbers."""
        return cls(degradation_decimals(results), results.unit, results.level)

    @property
    def confidence(self) -> str:
        """The level of the intervals: ``95 %``."""
        return f"{100 * self.level:g} %"

    @property
    def behind(self) -> str:
        """The unit behind a number."""
        return f" {self.unit}" if self.unit else ""

    def number(self, value: float) -> str:
        """A degradation, or a value of the metric."""
        return fixed(value, self.decimals)

    def amount(self, value: float) -> str:
        """A degradation with its unit."""
        return f"{self.number(value)}{self.behind}"

    def lost(self, row: Any) -> str:
        """A cell's degradation and its interval, marked where it is screened."""
        low, high = row["degradation_low"], row["degradation_high"]
        return predicted(with_interval(row["degradation"], low, high, self.decimals), row["screened"])

    def value(self, value: float) -> str:
        """A value of the metric."""
        return f"{self.number(value)}{' %' if self.unit == 'points' else ''}"

    def between(self, low: float, high: float) -> str:
        """``95 % interval a to b``."""
        return f"{self.confidence} interval {interval(low, high, self.decimals)}"


def cell_interval(cell: Any, decimals: int) -> str:
    """A cell's ``a to b``, in brackets and marked where it is the range in which a measurement would fall."""
    between = interval(cell["degradation_low"], cell["degradation_high"], decimals)
    return f"{PREDICTED}({between})" if between and cell["method"] == "screened" else between


def cell_verdict(cell: Any) -> str:
    """``hurts``; ``hurts (as at 6 bits)`` where it follows from there."""
    found = int(cell["verdict_bits"])
    return str(cell["verdict"]) if found == cell["bits"] else f"{cell['verdict']} (as at {found} bits)"


def shape(sizes: tuple[int, ...]) -> str:
    """``32 x 3 x 3 x 3``, with the sign of multiplication."""
    return " \N{MULTIPLICATION SIGN} ".join(str(size) for size in sizes)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of nested settings, names joined by dots; values as people write them."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)


def capital(text: str) -> str:
    """``text`` as the beginning of a sentence."""
    return text[:1].upper() + text[1:]
