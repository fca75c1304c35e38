"""Encodings against AIMET itself: its quantizer, given what we write, must give the levels that ours does.

    pip install aimet-torch
    python benchmarks/aimet_encodings.py

For grids of 2 to 16 bits, symmetric or not, per tensor and per channel, on values of either sign: the share of values
that AIMET's quantizer puts on another level, and how far apart the two are otherwise, in steps. AIMET takes the range
and works out the scale, we take the scale: a value half way between two levels may fall on either.
"""

from __future__ import annotations

import json
from itertools import product

import torch
from aimet_torch.quantization.affine import QuantizeDequantize

from quantopsy.calibrate import fit
from quantopsy.core import Plan, Site, Spec
from quantopsy.core.recipe import Recipe
from quantopsy.export.encodings import aimet_encodings, grid_of
from quantopsy.quant import fake_quantize
from quantopsy.quant.encoding import qparams_to_json

WEIGHT = Site("conv", "weight")


def main() -> None:
    """Print a line for each bit-width."""
    generator = torch.Generator().manual_seed(0)
    for bits in (2, 4, 8, 16):
        grids, values, elsewhere, apart = 0, 0, 0, 0.0
        for symmetric, granularity, narrow, shift in product(
            (False, True), ("per_tensor", "per_channel"), (False, True), (0.0, 1.0, 9.0)
        ):
            x = torch.randn(64, 32, 3, 3, generator=generator) + shift
            spec = Spec(bits=bits, symmetric=symmetric, granularity=granularity, narrow=narrow)
            ours = fit(spec, x)
            recipe = Recipe(Plan.of({WEIGHT: spec}), encodings={"conv": {"weight": [qparams_to_json(ours)]}})
            found = json.loads(json.dumps(aimet_encodings(recipe)))["param_encodings"]["conv.weight"]
            shape = (64, 1, 1, 1) if granularity == "per_channel" else ()
            theirs = QuantizeDequantize(shape=shape, bitwidth=bits, symmetric=found[0]["is_symmetric"] == "True")
            theirs.set_legacy_encodings(found)
            step = ours.scale.reshape(-1, 1, 1, 1)
            distance = (theirs(x).detach().as_subclass(torch.Tensor) - fake_quantize(x, ours)).abs() / step
            grid_of(theirs.get_legacy_encodings(), 0 if shape else None)  # raises where their numbers do not fit
            grids, values = grids + 1, values + x.numel()
            elsewhere += int((distance > 0.5).sum())
            apart = max(apart, float(distance[distance <= 0.5].max()))
        told = f"{grids} grids, {elsewhere} of {values} values on another level"
        print(f"{bits:2} bits: {told}, the others within {apart:.1g} steps")


if __name__ == "__main__":
    main()
