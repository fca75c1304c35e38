"""How much measuring may cost: time, or passes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median

from quantopsy.core import QuantopsyError
from quantopsy.study import Store

_NEWEST = 5  # tiles
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|p|passes)?", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """A limit in seconds of wall time or in passes; both None: no limit."""

    seconds: float | None = None
    passes: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``90s``, ``10m``, ``1.5h``, or a number of passes: ``30``, ``30p``. Raises :class:`QuantopsyError`."""
        found = _BUDGET.fullmatch(text.strip())
        if found is None or float(found[1]) <= 0:
            raise QuantopsyError(f"budget {text!r}", "is no time and no number of passes", "write 10m, 90s, 1h or 30")
        amount, unit = float(found[1]), found[2]
        return cls(seconds=amount * _UNITS[unit]) if unit in _UNITS else cls(passes=amount)

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds / 60:.3g} min" if self.seconds >= 60 else f"{self.seconds:.3g} s"
        return f"{self.passes:.3g} passes"


def pass_seconds(store: Store) -> float | None:
    """Seconds an image of one float forward, the median beside the newest tiles; None before any."""
    paces = [cost.pace for cost in store.costs()[-_NEWEST:]]
    return median(paces) if paces else None


def passes_spent(store: Store, images: int) -> float:
    """What screening and exact runs took, in float forwards over ``images`` images; NaN before any was timed.

    sum over tiles of seconds / pace, each of its own moment, divided by ``images``.
    """
    costs = store.costs()
    if not costs:
        return float("nan")
    return sum(cost.seconds / cost.pace for cost in costs if cost.phase != "float") / images
