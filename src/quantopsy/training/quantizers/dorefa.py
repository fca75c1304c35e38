"""Weights squashed by a tanh before they are quantized (DoReFa-Net, Zhou et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantopsy.core import Spec
from quantopsy.quant import UniformQParams, fake_quantize_ste
from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer
from quantopsy.training.quantizers.state import GridState

# Beyond this tanh is so flat that float32 cannot undo it.
_STEEP = 2.0


class DoReFa(FakeQuantizer):
    """The weight is ``c tanh(v) / max |tanh(v)|`` of the trained latent v (DoReFa equation (9)).

    The paper quantizes to [-1, 1] and leaves scale to a batch norm behind; where that is folded the weight keeps
    its own largest magnitude c, and the grid is the calibrated one, with zero among its levels. Neither ever moves.
    """

    largest: Tensor

    def __init__(self, spec: Spec, qparams: UniformQParams) -> None:
        super().__init__(spec)
        self._grid = GridState(qparams)
        low, high = qparams.ends
        self.register_buffer("largest", torch.maximum(-low, high).amax().detach().clone())

    @property
    def qparams(self) -> UniformQParams:
        return self._grid.value

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize_ste(x, self.qparams)

    def weight(self, latent: Tensor) -> Tensor:
        squashed = torch.tanh(latent)
        return self.largest * (squashed / squashed.abs().amax().clamp(min=torch.finfo(squashed.dtype).tiny))

    def begin(self, weight: Tensor) -> Tensor:
        """``atanh`` of ``weight``, whose largest magnitude c is kept from here on; :meth:`weight` gives it back
        up to float rounding. c itself becomes c, at most 2."""
        weight = weight.detach()
        self.largest.copy_(weight.abs().amax())
        return self.latent(weight, weight * (self.largest.clamp(max=_STEEP) / self._top))

    def latent(self, weight: Tensor, among: Tensor) -> Tensor:
        """The inverse of :meth:`weight` while the largest magnitude of ``among`` stays what it is; an entry that has
        it is c whatever else is wanted of it, and stays too: moving it would rescale all others."""
        magnitude = among.abs()
        largest = magnitude.amax()
        share = (weight.double() / self._top.double()).clamp(-1, 1)
        found = torch.atanh(share * torch.tanh(largest.double())).to(among.dtype)
        return torch.where(magnitude == largest, among, found)

    @property
    def _top(self) -> Tensor:
        return self.largest.clamp(min=torch.finfo(torch.float32).tiny)
