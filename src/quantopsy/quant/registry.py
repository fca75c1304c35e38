"""All quantizers by name. A new one is a file beside this one and a line in the table."""

from __future__ import annotations

from quantopsy.core import Spec, names
from quantopsy.quant import learned, lloyd, power_of_two, pwlq, uniform
from quantopsy.quant.quantizer import Quantizer

_ENTRIES = (
    uniform.QUANTIZER,
    pwlq.QUANTIZER,
    power_of_two.POWER_OF_TWO,
    power_of_two.ADDITIVE,
    learned.QUANTIZER,
    lloyd.K_MEANS,
    lloyd.LLOYD_MAX,
)
QUANTIZERS: dict[str, Quantizer] = {entry.name: entry for entry in _ENTRIES}


def quantizer(kind: str) -> Quantizer:
    """The quantizer named ``kind``; raises :class:`QuantopsyError` with the nearest names."""
    if kind not in QUANTIZERS:
        raise names.unknown(kind, list(QUANTIZERS), "quantizer")
    return QUANTIZERS[kind]


def stored_bits(spec: Spec) -> int:
    """Bits that each value of a tensor on this grid takes, all its ``tensors`` together; scales are not counted."""
    return quantizer(spec.kind).stored_bits(spec) * spec.tensors


def check(spec: Spec) -> None:
    """Raise :class:`QuantopsyError` where ``spec`` names a kind, width or option that there is not."""
    quantizer(spec.kind).check(spec)
