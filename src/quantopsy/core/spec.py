"""The grid that is wanted at a site: a frozen, validated, JSON-able value without tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from quantopsy.core.errors import QuantopsyError

MIN_BITS, MAX_BITS = 2, 16

CORRECTIONS = ("none", "mean_variance", "bias")

# What was found for one site, by the hash of its tensor: see :meth:`quantopsy.engine.calibration.Calibration.give`.
_GIVEN = re.compile(r"given:[0-9a-f]{12}")

_GRANULARITY = re.compile(r"per_tensor|per_channel|per_group:[1-9]\d*|per_group:pwlq")

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Spec:
    """What the grid at one site should be.

    ``kind``
        name of a quantizer, see ``quantopsy quantizers`` (``uniform``, ``piecewise``, ...).
    ``bits``
        2 to 16.
    ``symmetric``
        zero_point fixed to the middle of the codes (0 where they are signed).
    ``signed``
        codes below zero; ``None`` lets the data decide (unsigned where no value is negative).
    ``narrow``
        signed codes from -(2^(b-1) - 1), so that they are symmetric about zero.
    ``granularity``
        ``per_tensor``, ``per_channel`` (of the site's channel axis) or ``per_group:N`` (N input
        channels share a grid; ``per_group:pwlq`` takes the sizes of PWLQ section 5.1.2).
    ``range_estimator``
        how the range is found, with a parameter behind a colon where it takes one:
        ``min_max``, ``percentile:99.99``, ``sigma:3``, ...
    ``correction``
        of weights: ``none``; ``mean_variance``, after which every channel has the mean and variance
        it had in float (PWLQ section 5.1.2); or ``bias``, which takes the shift that the quantized weight
        gives the mean of every output channel out of the bias (DFQ, Nagel et al. 2019, section 4.2). With
        ``given:HASH`` a shift that was found otherwise (iterative bias correction) is taken out.
    ``rounding``
        of weights: ``nearest``, or ``given:HASH``: every weight down or up as was found (AdaRound).
    ``tensors``
        of weights: a hard one as the sum of so many on grids of their own (LBQ, Choukroun et al. 2019).
    ``options``
        what only this kind understands, as sorted (name, value) pairs.
    """

    kind: str = "uniform"
    bits: int = 8
    symmetric: bool = False
    signed: bool | None = None
    narrow: bool = False
    granularity: str = "per_tensor"
    range_estimator: str = "min_max"
    correction: str = "none"
    rounding: str = "nearest"
    tensors: int = 1
    options: tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int):
            raise _refuse("bits", self.bits, f"give a whole number from {MIN_BITS} to {MAX_BITS}")
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise _refuse("bits", self.bits, f"give a whole number from {MIN_BITS} to {MAX_BITS}")
        if not isinstance(self.granularity, str) or not _GRANULARITY.fullmatch(self.granularity):
            raise _refuse("granularity", self.granularity, "give per_tensor, per_channel or per_group:N")
        for name in ("kind", "range_estimator"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise _refuse(name, getattr(self, name), "give a name, see `quantopsy quantizers`")
        if isinstance(self.tensors, bool) or not isinstance(self.tensors, int) or not 1 <= self.tensors <= 4:
            raise _refuse("tensors", self.tensors, "give a whole number from 1 to 4")
        if self.correction not in CORRECTIONS and not _given(self.correction):
            raise _refuse("correction", self.correction, f"give {' or '.join(CORRECTIONS)}")
        if self.rounding != "nearest" and not _given(self.rounding):
            raise _refuse("rounding", self.rounding, "give nearest")
        for name in ("symmetric", "narrow"):
            if not isinstance(getattr(self, name), bool):
                raise _refuse(name, getattr(self, name), "give true or false")
        if self.signed not in (True, False, None):
            raise _refuse("signed", self.signed, "give true, false or null")
        options = self.options.items() if isinstance(self.options, Mapping) else self.options
        try:
            frozen = tuple(sorted((str(key), value) for key, value in options))
        except (TypeError, ValueError):
            raise _refuse("options", self.options, "give a mapping of names to values") from None
        if wrong := [name for name, value in frozen if not isinstance(value, Scalar)]:
            raise _refuse("option", wrong[0], "give a number, a text, true or false")
        object.__setattr__(self, "options", frozen)

    def with_bits(self, bits: int) -> Spec:
        """The same grid at another bit-width; what was found for this very grid is left behind."""
        if bits == self.bits:
            return self
        return replace(
            self,
            bits=bits,
            correction="none" if _given(self.correction) else self.correction,
            rounding="nearest",
        )

    @property
    def wide(self) -> Spec:
        """The same with 16 bits, where rounding is next to nothing: uniform, since other kinds end below."""
        return replace(self.with_bits(MAX_BITS), kind="uniform", options=())

    @property
    def corrects_bias(self) -> bool:
        """Whether a shift is taken out of the layer's bias."""
        return self.correction == "bias" or _given(self.correction)

    def option(self, name: str, default: Any) -> Any:
        """The kind's own option ``name``, or ``default``."""
        return dict(self.options).get(name, default)

    def to_json(self) -> dict[str, Any]:
        """All that differs from the default, and always kind and bits."""
        default = Spec()
        out = {
            key: value
            for key, value in asdict(self).items()
            if key in ("kind", "bits") or value != getattr(default, key)
        }
        if "options" in out:
            out["options"] = dict(self.options)
        return out

    @classmethod
    def from_json(cls, data: Any) -> Spec:
        """The inverse of :meth:`to_json`; raises :class:`QuantopsyError` naming what it does not know."""
        if not isinstance(data, dict):
            raise _refuse("value", data, "give an object such as {'kind': 'uniform', 'bits': 8}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise _refuse("field", unknown[0], f"known fields are {', '.join(sorted(known))}")
        return cls(**data)


def _given(value: object) -> bool:
    return isinstance(value, str) and _GIVEN.fullmatch(value) is not None


def _refuse(what: str, value: object, remedy: str) -> QuantopsyError:
    return QuantopsyError(f"spec {what} {value!r}", "not a valid value", remedy)
