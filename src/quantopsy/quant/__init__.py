"""Quantizers as pure functions of tensors: a spec, its qparams, and values to and from codes."""

from quantopsy.quant.levels import LevelsQParams
from quantopsy.quant.piecewise import PiecewiseQParams
from quantopsy.quant.qparams import QParams, dequantize, fake_quantize, fake_quantize_ste, quantize
from quantopsy.quant.sample import Sample
from quantopsy.quant.uniform import UniformQParams

__all__ = [
    "LevelsQParams",
    "PiecewiseQParams",
    "QParams",
    "Sample",
    "UniformQParams",
    "dequantize",
    "fake_quantize",
    "fake_quantize_ste",
    "quantize",
]
