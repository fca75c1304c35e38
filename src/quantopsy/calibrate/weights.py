"""A weight as a spec wants it: on its grid, and corrected."""

from __future__ import annotations

from torch import Tensor

from quantopsy.calibrate.bias_correction import weight_correction
from quantopsy.calibrate.fit import fit
from quantopsy.calibrate.several_tensors import fake_quantize_several, fit_several
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import QParams, UniformQParams, fake_quantize


def quantized_weight(
    spec: Spec, weight: Tensor, *, axis: int = 0, up: Tensor | None = None, qparams: QParams | None = None
) -> Tensor:
    """``weight`` on the grid of ``spec``, output channels along ``axis``; same shape and dtype.

    ``up`` (of the weight's shape, bool) rounds every value up or down instead of to the nearest. ``qparams``
    takes the place of those that would be fitted. With the correction ``mean_variance`` every channel is then
    scaled and shifted, which a runtime folds into the channel's scale and offset; that of the bias leaves the
    weight alone. Raises :class:`QuantopsyError` as :func:`fit` does, and for ``up`` on a grid that is not uniform.
    """
    if spec.tensors > 1:
        w_hat = fake_quantize_several(weight, fit_several(spec, weight, spec.tensors, axis=axis))
    else:
        grid = fit(spec, weight, axis=axis) if qparams is None else qparams
        w_hat = fake_quantize(weight, grid) if up is None else _rounded(weight, grid, up)
    if spec.correction != "mean_variance":
        return w_hat
    return weight_correction(weight, w_hat, axis).apply(w_hat)


def _rounded(weight: Tensor, grid: QParams, up: Tensor) -> Tensor:
    if not isinstance(grid, UniformQParams):
        raise QuantopsyError("rounding that is given", "the grid is not uniform", "take rounding nearest")
    return grid.snap_by(weight, up).to(weight.dtype)
