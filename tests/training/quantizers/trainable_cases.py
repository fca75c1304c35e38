"""What the tests of trainable quantizers run over: calibrated ones of every method, and tensors for them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from quantopsy.calibrate import fit
from quantopsy.core import Spec
from quantopsy.core.plan import ROLES, Role
from quantopsy.quant import QParams
from quantopsy.quant.grouping import aligned
from quantopsy.training.quantizers import METHODS, FakeQuantizer, trainable

GRANULARITIES = ("per_tensor", "per_channel", "per_group:2")


def sample(seed: int, shape: tuple[int, ...] = (4, 5, 3), role: Role = "weight") -> Tensor:
    """Bell-shaped values, of an activation rectified."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x if role == "weight" else x.relu()


def quantizer(
    method: str, x: Tensor, spec: Spec, role: Role = "weight", **options: object
) -> tuple[FakeQuantizer, QParams]:
    """One by ``method`` that starts from the grid calibrated on ``x``, and that grid."""
    spec = METHODS[method].start(spec)
    qparams = fit(spec, x)
    return trainable(method, spec, qparams, role, **options), qparams  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn, method: str) -> tuple[FakeQuantizer, QParams, Tensor]:
    """A quantizer at any width, granularity, symmetry and role of the method, its grid, and values for it: some on the
    borders between levels."""
    role = draw(st.sampled_from([role for role in ROLES if role in METHODS[method].roles]))
    shape = draw(st.sampled_from([(4, 5, 3), (2, 3, 1, 1), (8, 16, 40)]))
    x = sample(draw(st.integers(0, 2**16)), shape, role)
    spec = Spec(
        bits=draw(st.integers(2, 8)),
        symmetric=draw(st.booleans()),
        granularity=draw(st.sampled_from(GRANULARITIES)),
    )
    made, qparams = quantizer(method, x, spec, role, correction=draw(st.sampled_from((0.0, 0.1))))
    scale = aligned(qparams.scale, x, qparams.axis, qparams.group_size)  # type: ignore[attr-defined]
    halves = torch.round(x * 1.5 / scale * 2) / 2 * scale
    return made, qparams, torch.where(x > x.median(), halves, x * 1.5)


def straight(x: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, with the gradient of ``x``."""
    return x + (rounded - x).detach()
