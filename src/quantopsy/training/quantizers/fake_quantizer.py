"""What every trainable fake-quantizer is: a module whose output is its grid's, bit for bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from quantopsy.core import Spec
from quantopsy.quant import QParams
from quantopsy.training.quantizers.gates import Gates

RateGroup = Literal["scale", "offset", "levels", "gates"]


class FakeQuantizer(nn.Module, ABC):
    """``forward(x) == fake_quantize(x, self.qparams)`` bit for bit, in training and in evaluation.

    ``correction``
        lambda of gradient correction (DDQ equation (9)): ``lambda (x_q - x)`` is added to the gradient that
        reaches the quantizer's parameters, not to that of ``x``. 0 for none.
    ``gates``
        that set the bits in effect, ``spec.bits`` at most; None where bits do not learn.
    """

    def __init__(self, spec: Spec, correction: float = 0.0, gates: Gates | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.correction = correction
        self.gates = gates

    @property
    @abstractmethod
    def qparams(self) -> QParams:
        """The grid as it is now, detached."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid. Shape, dtype and memory format are those of ``x``."""

    @property
    def bits(self) -> int:
        """Bits in effect."""
        return self.spec.bits if self.gates is None else self.gates.bits

    def rate_groups(self) -> dict[RateGroup, list[nn.Parameter]]:
        """Trained parameters by what a learning rate is given for; none where the grid is fixed."""
        return {} if self.gates is None else {"gates": [self.gates.logits]}

    def fitted(self, spec: Spec) -> Spec:
        """``spec``, that training started from, as a recipe states the trained grid."""
        return replace(spec.with_bits(self.bits), rounding="nearest")

    def weight(self, latent: Tensor) -> Tensor:
        """The weight that is quantized, of the ``latent`` one that is trained; itself unless the method says so."""
        return latent

    def begin(self, weight: Tensor) -> Tensor:
        """The latent weight whose :meth:`weight` is ``weight``: where training starts. To be called once."""
        return weight

    def latent(self, weight: Tensor, among: Tensor) -> Tensor:
        """What entries of the latent weight ``among`` have to be for :meth:`weight` to have those of ``weight``."""
        return weight.to(among.dtype)
