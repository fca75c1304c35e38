"""Gates that set a bit-width (DDQ section 2.3). b bits at most, s = sum of gates in effect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from quantopsy.core import QuantopsyError
from quantopsy.core.spec import MIN_BITS

# All open, barely (DDQ section 4.2).
START = 1e-8


class Gates(nn.Module):
    """b trained variables; calling it gives the gates (b,), 1 for open, in descending order.

    The first ``minimum`` stay open, without a gradient. Of the others two have one: the last open, which is the next to
    close, and the first closed. A limit on memory pulls at all gates of a layer alike, and without this all of them
    would close in the same step; so a step changes a bit-width by one at most. Raises :class:`QuantopsyError` for a
    ``minimum`` below 2 or above ``bits``.
    """

    def __init__(self, bits: int, minimum: int = MIN_BITS) -> None:
        super().__init__()
        if not MIN_BITS <= minimum <= bits:
            raise QuantopsyError(
                f"at least {minimum} bits", f"the quantizer has {bits}", f"give {MIN_BITS} to {bits} of them"
            )
        self.logits = nn.Parameter(torch.full((bits,), START))
        self.minimum = minimum

    def forward(self) -> Tensor:
        gates: Tensor = Heaviside.apply(self.logits)
        # Stable, so that while all are open the first ones are the same ones from step to step.
        gates = gates.sort(descending=True, stable=True).values
        place, open_ = torch.arange(len(gates), device=gates.device), int(gates.detach().sum())
        next_ = (place == open_ - 1) | (place == open_)
        gates = torch.where(next_, gates, gates.detach())
        return torch.cat((torch.ones_like(gates[: self.minimum]), gates[self.minimum :]))

    @property
    def bits(self) -> int:
        """s: how many gates are open."""
        return max(self.minimum, int((self.logits >= 0).sum()))

    @property
    def closable(self) -> range:
        """The numbers, from 1, of the open gates that may close, in the order in which they do."""
        return range(self.bits, self.minimum, -1)


class Heaviside(Function):
    """1 where the variable is at least 0; straight through where its magnitude is at most 1 (DDQ section 3.2)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return (logits >= 0).to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        return grads[0] * (logits.abs() <= 1)
