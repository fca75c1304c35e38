"""From data to qparams: streaming statistics, range estimators, corrections of weights."""

from quantopsy.calibrate.bias_correction import WeightCorrection, output_shift, weight_correction
from quantopsy.calibrate.by_image import ByImage
from quantopsy.calibrate.channel_splitting import SplitWeight, split_channels
from quantopsy.calibrate.fit import fit, realise
from quantopsy.calibrate.fixed import fixed
from quantopsy.calibrate.observer import Observer, observer
from quantopsy.calibrate.registry import check, summaries
from quantopsy.calibrate.several_tensors import fake_quantize_several, fit_several
from quantopsy.calibrate.weights import quantized_weight

__all__ = [
    "ByImage",
    "Observer",
    "SplitWeight",
    "WeightCorrection",
    "check",
    "fake_quantize_several",
    "fit",
    "fit_several",
    "fixed",
    "observer",
    "output_shift",
    "quantized_weight",
    "realise",
    "split_channels",
    "summaries",
    "weight_correction",
]
