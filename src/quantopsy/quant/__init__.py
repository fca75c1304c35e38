"""Quantizers as pure functions of tensors: a spec, its qparams, and values to and from codes."""

from quantopsy.quant.qparams import QParams, dequantize, fake_quantize, fake_quantize_ste, quantize
from quantopsy.quant.sample import Sample
from quantopsy.quant.uniform import UniformQParams

__all__ = [
    "QParams",
    "Sample",
    "UniformQParams",
    "dequantize",
    "fake_quantize",
    "fake_quantize_ste",
    "quantize",
]
