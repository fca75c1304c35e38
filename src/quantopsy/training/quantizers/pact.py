"""A clipping threshold that is trained (PACT, Choi et al. 2018), for activations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from quantopsy.core import Spec
from quantopsy.quant import UniformQParams
from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer, RateGroup
from quantopsy.training.quantizers.gradients import LearnedClip
from quantopsy.training.quantizers.lsq import SMALLEST_SCALE
from quantopsy.training.quantizers.state import GridState


class LearnedThreshold(FakeQuantizer):
    """y = clamp(x, 0, alpha), rounded to 2^b - 1 steps of ``alpha / (2^b - 1)`` (PACT equations (1) and (2)).

    ``alpha`` is the largest magnitude of the grid; where values are signed both ends move with it. The paper
    adds weight decay on alpha.
    """

    start: Tensor

    def __init__(self, spec: Spec, qparams: UniformQParams, correction: float = 0.0) -> None:
        super().__init__(spec, correction)
        low, high = qparams.ends
        self.alpha = nn.Parameter(torch.maximum(-low, high).detach().clone())
        self.register_buffer("start", self.alpha.detach().clone())
        self._grid = GridState(qparams)

    @property
    def qparams(self) -> UniformQParams:
        return self._scaled(self._scale().detach())

    def forward(self, x: Tensor) -> Tensor:
        scale = self._scale()
        result: Tensor = LearnedClip.apply(x, scale, self._scaled(scale.detach()), self.correction)
        return result

    def rate_groups(self) -> dict[RateGroup, list[nn.Parameter]]:
        return {"scale": [self.alpha]}

    def _scale(self) -> Tensor:
        # A ratio that starts at exactly 1: alpha / (2^b - 1) need not be the calibrated scale to the last bit.
        return (self._grid.value.scale * (self.alpha / self.start)).clamp(min=SMALLEST_SCALE)

    def _scaled(self, scale: Tensor) -> UniformQParams:
        return replace(self._grid.value, scale=scale)
