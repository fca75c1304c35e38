"""What a new network must hold to replace the old one: a TOML file, or a mapping."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from quantopsy.core import QuantopsyError, names
from quantopsy.core.spec import MAX_BITS, MIN_BITS

PYPROJECT = "pyproject.toml"
"""Of a file of this name the rules are the table ``tool.quantopsy.gate``."""

_EXAMPLE = "write a line such as max_drop = 1.0"


@dataclass(frozen=True)
class Rules:
    """One field a rule; a limit that is None is not judged.

    ``bits``
        of the weights, at which studies are held against each other. None: as
        :func:`quantopsy.analysis.comparison.compare` chooses, or the recipe's.
    ``level``
        of intervals; None: that of the old study, or of the recipe's proof.
    ``undecided``
        what becomes of a check whose interval has the limit inside: ``pass`` or ``fail``.
    ``unavailable``
        what becomes of a check with a limit that cannot be made, because a number is not recorded: ``skip`` or
        ``fail``.
    ``paired``
        True: both must have been measured on the same images.
    ``max_drop``
        metric(old quantized) - metric(new quantized), in the metric's unit. None: the old study's tolerance (1 point,
        or 1 % of the float metric). ``inf`` judges nothing.
    ``max_drop_per_bits``
        the same at other bit-widths, ``{bits: limit}``; at ``bits`` it goes before ``max_drop``.
    ``max_loss``
        metric(new float) - metric(new quantized).
    ``max_noise_growth_db``
        of noise over signal of the whole network, in decibels.
    ``max_changed_layers``
        layers, quantized alone, that for certain lose more or are noisier than before.
    ``max_changed_specs``
        sites whose spec is not what it was.
    ``max_scale_change``
        factor by which the range of any grid may widen or shrink: at equal bits that of its scale.
    ``min_coverage``
        share of the new network's MACs, 0 to 1, that are quantized.
    ``max_size_growth``
        of the weights' bytes, a share of the old size: 0.1 lets them grow by a tenth.
    """

    bits: int | None = None
    level: float | None = None
    undecided: Literal["pass", "fail"] = "pass"
    unavailable: Literal["skip", "fail"] = "skip"
    paired: bool = False
    max_drop: float | None = None
    max_drop_per_bits: Mapping[int, float] = field(default_factory=dict)
    max_loss: float | None = None
    max_noise_growth_db: float | None = None
    max_changed_layers: int | None = None
    max_changed_specs: int | None = None
    max_scale_change: float | None = None
    min_coverage: float | None = None
    max_size_growth: float | None = None

    def __post_init__(self) -> None:
        _choice("undecided", self.undecided, ("pass", "fail"))
        _choice("unavailable", self.unavailable, ("skip", "fail"))
        if not isinstance(self.paired, bool):
            raise _refused("paired", self.paired, "give true or false")
        if self.bits is not None:
            _bits("bits", self.bits)
        if self.level is not None and not (_is_number(self.level) and 0.5 <= self.level < 1.0):
            raise _refused("level", self.level, "give a share from 0.5 to below 1, say 0.95")
        for name in ("max_drop", "max_loss", "max_noise_growth_db", "max_size_growth"):
            _number(name, getattr(self, name), -math.inf)
        for name in ("max_changed_layers", "max_changed_specs"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise _refused(name, value, "give a whole number from 0 on")
        _number("max_scale_change", self.max_scale_change, 1.0)
        _number("min_coverage", self.min_coverage, 0.0, 1.0)
        if not isinstance(self.max_drop_per_bits, Mapping):
            raise _refused("max_drop_per_bits", self.max_drop_per_bits, "give a table: {8 = 1.0, 4 = 5.0}")
        drops = {_width(bits): limit for bits, limit in self.max_drop_per_bits.items()}
        for bits, limit in drops.items():
            _number(f"max_drop_per_bits.{bits}", limit, -math.inf)
        object.__setattr__(self, "max_drop_per_bits", drops)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Rules:
        """The rules that ``data`` names; raises :class:`QuantopsyError` with the nearest names for one there is not."""
        known = [entry.name for entry in fields(cls)]
        for name in data:
            if name not in known:
                raise names.unknown(str(name), known, "rule")
        return cls(**data)

    @classmethod
    def read(cls, path: str | Path) -> Rules:
        """The rules of a TOML file; of ``pyproject.toml`` those in its table ``tool.quantopsy.gate``."""
        path = Path(path)
        thing = f"rules {str(path)!r}"
        try:
            data: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise QuantopsyError(thing, f"cannot be read ({error.strerror})", "check the path") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise QuantopsyError(thing, f"is no TOML ({error})", _EXAMPLE) from None
        if path.name == PYPROJECT:
            data = data.get("tool", {}).get("quantopsy", {}).get("gate")
            if not isinstance(data, dict):
                raise QuantopsyError(thing, "it has no table tool.quantopsy.gate", "add [tool.quantopsy.gate]")
        try:
            return cls.from_mapping(data)
        except QuantopsyError as error:
            raise QuantopsyError(f"{error.thing} of {thing}", error.reason, error.remedy) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _number(name: str, value: object, least: float, most: float = math.inf) -> None:
    if value is None:
        return
    if not _is_number(value) or not least <= value <= most:  # type: ignore[operator]
        span = f" from {least:g}" if math.isfinite(least) else ""
        span += f" to {most:g}" if math.isfinite(most) else " on" if span else ""
        raise _refused(name, value, f"give a number{span}")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _refused(name, value, f"give {' or '.join(choices)}")


def _bits(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_BITS <= value <= MAX_BITS:
        raise _refused(name, value, f"give a whole number from {MIN_BITS} to {MAX_BITS}")


def _width(key: object) -> int:
    """A key of TOML is text."""
    bits = int(key) if isinstance(key, str) and key.isdecimal() else key
    _bits("max_drop_per_bits", bits)
    assert isinstance(bits, int)
    return bits


def _refused(name: str, value: object, remedy: str) -> QuantopsyError:
    return QuantopsyError(f"rule {name} = {value!r}", "not a valid value", remedy)
