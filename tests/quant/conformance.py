"""What the conformance suite runs over: every quantizer, with each of its options, and data to quantize."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from quantopsy.core import Spec
from quantopsy.quant.registry import QUANTIZERS

GRANULARITIES = ("per_tensor", "per_channel", "per_group:2")

SPECS = [
    Spec(kind=name, options=(((option, value),) if option else ()))
    for name, quantizer in QUANTIZERS.items()
    for option, value in [
        ("", ""),
        *((option, value) for option, values in quantizer.options.items() for value in values[1:4]),
    ]
]


def label(spec: Spec) -> str:
    """The spec as pytest shows it."""
    return "-".join([spec.kind, *(f"{name}={value}" for name, value in spec.options)])


@st.composite
def specs(draw: st.DrawFn, base: Spec) -> Spec:
    """``base`` at some width that its kind has, signed and symmetric as it comes."""
    quantizer = QUANTIZERS[base.kind]
    fewest = 4 if base.option("convention", "") == "pw_stor" else 2
    return Spec(
        kind=base.kind,
        options=base.options,
        bits=draw(st.integers(fewest, min(quantizer.max_bits, 8))),
        symmetric=draw(st.booleans()),
        granularity=draw(st.sampled_from(GRANULARITIES)),
    )


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """(4, 5, 2) values: bell-shaped, heavy-tailed, one-sided, constant or sparse, at any magnitude."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(4, 5, 2, generator=generator)
    shape = draw(st.sampled_from(("bell", "tail", "positive", "negative", "constant", "sparse", "shifted")))
    x = {
        "bell": x,
        "tail": x**5,
        "positive": x.abs(),
        "negative": -x.abs(),
        "constant": torch.ones_like(x),
        "sparse": x.relu() * (x > 1),
        "shifted": x + 3,
    }[shape]
    return x * 10.0 ** draw(st.integers(-20, 20))
