"""What the user may choose about an analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from quantopsy.analysis.budget import Budget
from quantopsy.analysis.schemes import SCHEMES
from quantopsy.core import QuantopsyError, Role, names
from quantopsy.core.spec import MAX_BITS, MIN_BITS
from quantopsy.engine.pool import parse_engine

MODES = ("auto", "screen", "exact")
PRECISIONS = ("float32", "bf16")
DEFAULT_BITS = (3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Settings:
    """What an analysis does; all of it is echoed, and kept in the study."""

    bits: tuple[int, ...] = DEFAULT_BITS
    scheme: str = "per-tensor"
    activation_bits: int = 8
    changes: Mapping[Role, Mapping[str, Any]] = field(default_factory=dict)  # fields of the scheme's specs
    split_channels: float = 0.0  # share of input channels split in two (OCS) before all else
    plan: Mapping[str, Any] | None = None  # JSON plan laid over the scheme
    layers: tuple[str, ...] = ("*",)
    samples: int | None = None
    calibration_samples: int | None = None
    mode: str = "auto"  # or screen, exact
    budget: str | None = None  # of auto: a time such as 10m, or a number of passes
    level: float = 0.95  # of intervals; verdicts are corrected for the number of cells
    tolerance: float | None = None  # loss of the metric that is accepted; None: 1 point, or 1 % of the float value
    noise_probes: int = 1  # random probes of the screen
    precision: str = "float32"  # of the float network in the screen
    seed: int = 0
    engine: str = "local"
    device: str = "cpu"
    tile: int | None = None
    max_memory: float = 4.0  # GiB

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """What ``dataclasses.asdict`` gave, after a round through JSON."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)

    def __post_init__(self) -> None:
        if not self.bits:
            raise QuantopsyError(
                "bits", "the list is empty", f"give at least one bit-width from {MIN_BITS} to {MAX_BITS}"
            )
        for bits in (*self.bits, self.activation_bits):
            if not _is(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
                raise QuantopsyError(
                    f"bit-width {bits!r}", "out of range", f"give whole numbers from {MIN_BITS} to {MAX_BITS}"
                )
        object.__setattr__(self, "bits", tuple(sorted(set(self.bits))))
        if self.scheme not in SCHEMES:
            raise names.unknown(self.scheme, tuple(SCHEMES), "scheme")
        if self.mode not in MODES:
            raise names.unknown(self.mode, MODES, "mode")
        if self.precision not in PRECISIONS:
            raise names.unknown(self.precision, PRECISIONS, "precision")
        if self.budget is not None:
            Budget.parse(self.budget)
            if self.mode != "auto":
                raise QuantopsyError(f"budget {self.budget}", f"mode {self.mode} has none", "leave out one of the two")
        for name in ("level", "tolerance", "split_channels", "max_memory"):
            value = getattr(self, name)
            if not (_is(value, int | float) or (value is None and name == "tolerance")):
                raise QuantopsyError(f"{name} {value!r}", "is no number", "give one, or leave it out")
        if not 0.5 <= self.level < 1.0:
            raise QuantopsyError(f"level {self.level:g}", "out of range", "give a share from 0.5 to below 1, say 0.95")
        if self.tolerance is not None and not self.tolerance >= 0.0:
            raise QuantopsyError(f"tolerance {self.tolerance:g}", "must not be negative", "give the loss you accept")
        if not self.max_memory > 0.0:
            raise QuantopsyError(f"max_memory {self.max_memory:g}", "must be positive", "give GiB that may be used")
        parse_engine(self.engine)
        for name in ("samples", "calibration_samples", "tile", "noise_probes", "seed"):
            value = getattr(self, name)
            if value is None and name not in ("noise_probes", "seed"):
                continue
            if not _is(value, int):
                raise QuantopsyError(f"{name} {value!r}", "is no whole number", "give one, or leave it out")
            if name == "seed" and value < 0:
                raise QuantopsyError(f"seed {value}", "must not be negative", "give 0 or more")
            if name != "seed" and value < 1:
                raise QuantopsyError(f"{name} {value}", "must be positive", "give at least 1, or leave it out")


def _is(value: object, kind: type | UnionType) -> bool:
    """Whether ``value`` is a number of that ``kind``, which True is not."""
    return isinstance(value, kind) and not isinstance(value, bool)
