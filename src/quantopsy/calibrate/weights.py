"""A weight as a spec wants it: on its grid, and corrected."""

from __future__ import annotations

from torch import Tensor

from quantopsy.calibrate.bias_correction import weight_correction
from quantopsy.calibrate.fit import fit
from quantopsy.calibrate.several_tensors import fake_quantize_several, fit_several
from quantopsy.core import Spec
from quantopsy.quant import fake_quantize


def quantized_weight(spec: Spec, weight: Tensor, *, axis: int = 0) -> Tensor:
    """``weight`` on the grid of ``spec``, output channels along ``axis``; same shape and dtype.

    With the correction ``mean_variance`` every channel is then scaled and shifted, which a runtime folds
    into the channel's scale and offset; that of the bias leaves the weight alone. Raises
    :class:`QuantopsyError` as :func:`fit` does.
    """
    if spec.tensors > 1:
        w_hat = fake_quantize_several(weight, fit_several(spec, weight, spec.tensors, axis=axis))
    else:
        w_hat = fake_quantize(weight, fit(spec, weight, axis=axis))
    if spec.correction != "mean_variance":
        return w_hat
    return weight_correction(weight, w_hat, axis).apply(w_hat)
