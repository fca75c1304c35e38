"""All quantizers by name. A new one is a file beside this one and a line in the table."""

from __future__ import annotations

from quantopsy.core import Spec, names
from quantopsy.quant import uniform
from quantopsy.quant.quantizer import Quantizer

QUANTIZERS = {quantizer.name: quantizer for quantizer in (uniform.QUANTIZER,)}


def quantizer(kind: str) -> Quantizer:
    """The quantizer named ``kind``; raises :class:`QuantopsyError` with the nearest names."""
    if kind not in QUANTIZERS:
        raise names.unknown(kind, list(QUANTIZERS), "quantizer")
    return QUANTIZERS[kind]


def check(spec: Spec) -> None:
    """Raise :class:`QuantopsyError` where ``spec`` names a kind, width or option that there is not."""
    quantizer(spec.kind).check(spec)
