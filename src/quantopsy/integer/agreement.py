"""Integer layers against the simulation, each from the same codes, and whether ties explain what differs.

The simulation computes in float32, so a value that lies next to the half between two codes may be rounded to either.
How near that is, is not a matter of taste: with u = 2^-24 and n roundings on the way, float32 sums depart from the
real one by at most ``n u / (1 - n u)`` of the sum of absolute products (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1, any order of additions), and the device's requantization by what its arithmetic says. A
difference is explained where both codes are roundings of reals within these bounds of the exact sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError
from quantopsy.integer.codes import Codes
from quantopsy.integer.network import Inputs, IntegerLayer, IntegerNetwork, Result, SummedLayer

_UNIT = 2.0**-24
# What of a division by the scale and an activation function is float32 besides: a few roundings.
_BEHIND = 8


@dataclass(frozen=True)
class Tie:
    """One element that differs: ``value`` is the exact real in steps of the output, zero point added, which the device
    rounded to ``integer`` and the simulation to ``simulated``; both know it to within ``error`` steps only."""

    index: tuple[int, ...]
    value: float
    integer: int
    simulated: int
    error: float

    @property
    def to_half(self) -> float:
        """The distance of the value to the nearest half between two codes."""
        return abs(self.value - round(self.value - 0.5) - 0.5)

    def __str__(self) -> str:
        return (
            f"at {self.index}: {self.value:.9g} became {self.integer} in integers and {self.simulated} simulated; "
            f"{self.to_half:.2g} from a half, known to {self.error:.2g}"
        )


@dataclass(frozen=True)
class LayerAgreement:
    """A layer's codes in integers and simulated: shares of elements, the largest distance in steps.

    Of ``differences`` elements ties explain ``explained``; ``example`` is the one furthest from a half.
    """

    layer: str
    elements: int
    equal: float
    within_step: float
    largest: int
    differences: int
    explained: int
    example: Tie | None


def agreement(network: IntegerNetwork, inputs: Inputs) -> tuple[LayerAgreement, ...]:
    """Every integer layer with a quantized output on one batch, from the codes that it has in the integer network."""
    rows: list[LayerAgreement] = []

    def look(kernel: IntegerLayer, operands: Mapping[str, Codes], result: Result) -> None:
        if isinstance(result.value, Codes):
            rows.append(layer_agreement(network, kernel, operands, result))

    network.run(inputs, look)
    if not rows:
        raise QuantopsyError(
            "integer network", "no layer of it gives codes", "quantize inputs, weights and outputs of some layers"
        )
    return tuple(rows)


def layer_agreement(
    network: IntegerNetwork,
    kernel: IntegerLayer,
    operands: Mapping[str, Codes],
    result: Result,
    others: Tensor | None = None,
) -> LayerAgreement:
    """One layer's ``result`` against the simulation from ``operands``, or against ``others``: codes of the output that
    other software gives for the same ``operands``, with float32 sums or better."""
    assert isinstance(result.value, Codes)
    assert kernel.target is not None
    codes = result.value.codes.long()
    if others is None:
        others = kernel.target.encode(network.simulate(kernel, operands).float())
    others = others.long()
    apart = (codes - others).abs()
    differing = apart > 0
    count = int(differing.sum())
    explained, example = (0, None) if not count else _explain(kernel, operands, codes, others, differing)
    return LayerAgreement(
        layer=kernel.layer.name,
        elements=codes.numel(),
        equal=1 - count / codes.numel(),
        within_step=float((apart <= 1).double().mean()),
        largest=int(apart.max()),
        differences=count,
        explained=explained,
        example=example,
    )


def _explain(
    kernel: IntegerLayer,
    operands: Mapping[str, Codes],
    codes: Tensor,
    others: Tensor,
    differing: Tensor,
) -> tuple[int, Tie | None]:
    """How many of the ``differing`` elements ties explain, and the one furthest from one."""
    if not isinstance(kernel, SummedLayer):
        return 0, None  # tables hold what the simulation gives, so there is nothing that could explain it
    assert kernel.finish is not None
    centred = {name: operand.centred for name, operand in operands.items()}
    sums = kernel.kernel.sums(centred)  # exact, whatever the accumulator made of them
    real = sums.real.expand(codes.shape)
    scale = kernel.finish.scale_of(real)
    roundings = (kernel.kernel.operations() + _BEHIND) * _UNIT
    simulated = roundings / (1 - roundings) * kernel.kernel.magnitude(centred) + _BEHIND * _UNIT * real.abs()
    device = kernel.finish.device_error(sums).expand(codes.shape)
    fits = kernel.finish.interval(real, device).holds(codes) & kernel.finish.interval(real, simulated).holds(others)
    value = kernel.finish.in_steps(real)
    error = (torch.maximum(device, simulated.expand(codes.shape)) / scale).expand(codes.shape)
    to_half = torch.where(differing, (value - torch.round(value - 0.5) - 0.5).abs(), -1.0)
    # What no tie explains is shown first.
    worst = int(torch.where(differing & ~fits, to_half + 1, to_half).argmax())
    index = tuple(int(place) for place in torch.unravel_index(torch.tensor(worst), codes.shape))
    tie = Tie(index, float(value[index]), int(codes[index]), int(others[index]), float(error[index]))
    return int((fits & differing).sum()), tie
