"""A recipe's grids as AIMET writes its own: an encodings file of version 0.6.1, by module and parameter name.

    {"version": "0.6.1",
     "activation_encodings": {"conv1": {"input": {"0": ENCODING}, "output": {"0": ENCODING}}},
     "param_encodings": {"conv1.weight": [ENCODING, ...]},
     "quantizer_args": {...}, "excluded_layers": [...]}

    ENCODING: {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "min", "max", "offset", "scale"}

That is what ``QuantizationSimModel.load_encodings`` of aimet-torch reads and ``save_encodings_to_json`` writes; later
versions (1.0.0, 2.0.0) go by the tensor names of an ONNX graph, which a recipe does not have. Codes count from 0:
``x_hat = (q + offset) scale`` with q from 0 to 2^b - 1, so that

    offset = qmin - zero_point,  min = offset scale,  max = (offset + 2^b - 1) scale.

Source: AIMET, *Encoding Format Specification*.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from quantopsy.core import Plan, QuantopsyError, Site
from quantopsy.core.files import write_file
from quantopsy.core.recipe import Recipe
from quantopsy.quant import UniformQParams
from quantopsy.quant.encoding import qparams_from_json

VERSION = "0.6.1"

_NO_GRID = "AIMET has evenly spaced levels only"

# Activation functions that do nothing to values on a grid that was fitted behind them.
_CLAMPS = frozenset({"relu", "relu6", "hardtanh", "clamp"})

# In steps: ends are written in float32, whose error at 16 bits is some hundredths of a step.
_SLACK = 0.05


def aimet_encodings(recipe: Recipe) -> dict[str, Any]:
    """The grids of every site of ``recipe`` as plain JSON values.

    A weight has an encoding for each output channel, or one; ``input`` and ``output`` count the values that a layer
    reads and gives. An output behind an activation function goes by that function's module. Where it is none, or one
    that is used several times, it stays with the layer if it is a clamp, which its grid does as well, and is left out
    else (:func:`not_carried` says so). A symmetric grid without its lowest code gets that code.

    Raises :class:`QuantopsyError`, naming the layer, for what the format cannot hold: levels that are not evenly
    spaced, groups of channels, activations per channel, a weight that is the sum of several.
    """
    activations: dict[str, dict[str, dict[str, Any]]] = {}
    parameters: dict[str, list[dict[str, Any]]] = {}
    for site, spec in recipe.plan.sites:
        if site.role == "weight" and spec.tensors > 1:
            raise _refused(site, f"it is the sum of {spec.tensors} tensors", "AIMET has one for a weight")
        found = recipe.encodings.get(site.layer, {}).get(site.role)
        if found is None:
            raise _refused(site, "the recipe has no grid for it", "write the recipe again")
        grids = [_uniform(site, grid) for grid in found]
        if site.role == "weight":
            parameters[f"{site.layer}.weight"] = list(_encodings(grids[0], spec.symmetric))
            continue
        if any(grid.scale.numel() > 1 for grid in grids):
            raise _refused(site, "it has a grid per channel", "AIMET has one for an activation")
        module = _module(recipe, site)
        if module is not None:
            activations.setdefault(module, {})[site.role] = {
                str(index): next(_encodings(grid, spec.symmetric)) for index, grid in enumerate(grids)
            }
    return {
        "version": VERSION,
        "activation_encodings": activations,
        "param_encodings": parameters,
        "quantizer_args": _arguments(recipe.plan),
        "excluded_layers": sorted(set(recipe.model.get("weights", {})) - recipe.plan.layers),
    }


def write_aimet_encodings(recipe: Recipe, path: str | Path) -> Path:
    """Write :func:`aimet_encodings` to ``path``; raises :class:`QuantopsyError` where that cannot be."""
    return write_file(path, json.dumps(aimet_encodings(recipe), indent=1) + "\n", "encodings")


def grid_of(encodings: Iterable[Mapping[str, Any]], axis: int | None = None) -> UniformQParams:
    """The grid that AIMET's encodings of one tensor mean; ``axis`` the channels' where there are several.

    Codes count from 0: the same levels as those of the grid they were written from. Raises
    :class:`QuantopsyError` where the numbers of an encoding contradict each other.
    """
    encodings = list(encodings)
    for encoding in encodings:
        highest = 2 ** encoding["bitwidth"] - 1
        low, high = encoding["offset"] * encoding["scale"], (encoding["offset"] + highest) * encoding["scale"]
        if max(abs(low - encoding["min"]), abs(high - encoding["max"])) > _SLACK * encoding["scale"]:
            raise QuantopsyError(
                "encoding",
                f"its range [{encoding['min']:g}, {encoding['max']:g}] is not that of its scale and offset",
                f"which is [{low:g}, {high:g}]",
            )
    scale = torch.tensor([encoding["scale"] for encoding in encodings], dtype=torch.float32)
    zero_point = torch.tensor([-int(encoding["offset"]) for encoding in encodings], dtype=torch.int32)
    if axis is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return UniformQParams(scale, zero_point, 0, 2 ** encodings[0]["bitwidth"] - 1, axis=axis)


def not_carried(recipe: Recipe) -> list[str]:
    """What a recipe does besides grids, and an encodings file leaves to the float model that it goes with."""
    specs = recipe.plan.values()
    kinds = [str(transform["name"]) for transform in recipe.transforms]
    corrected = sum(spec.correction != "none" for spec in specs)
    rounded = sum(spec.rounding != "nearest" for spec in specs)
    lines = []
    if unnamed := [site.layer for site, _ in recipe.plan.sites if _module(recipe, site) is None]:
        lines.append(f"outputs behind activation functions that are no module of their own: {', '.join(unnamed)}")
    if kinds:
        lines.append(f"transforms of the float network ({', '.join(kinds)}): the grids are of the transformed weights")
    if corrected:
        lines.append(f"corrections of {corrected} layers, which change weights or biases")
    if rounded:
        lines.append(f"the rounding of {rounded} weights, which is not to nearest")
    return lines


def _module(recipe: Recipe, site: Site) -> str | None:
    """The module that a site's values belong to; None where no module gives them."""
    activations: Mapping[str, tuple[str, str]] = recipe.model.get("activations", {})
    if site.role != "output" or site.layer not in activations:
        return site.layer
    name, module = activations[site.layer]
    if module and sum(other == module for _, other in activations.values()) == 1:
        return module
    return site.layer if name in _CLAMPS else None


def _uniform(site: Site, data: Mapping[str, Any]) -> UniformQParams:
    grid = qparams_from_json(data)
    if not isinstance(grid, UniformQParams):
        raise _refused(site, f"its grid is {data['grid']}", _NO_GRID)
    if grid.group_size is not None:
        raise _refused(site, "groups of its channels have grids of their own", f"AIMET {VERSION} has one a channel")
    return grid


def _encodings(grid: UniformQParams, symmetric: bool) -> Iterator[dict[str, Any]]:
    """One for each channel. Every code is counted from the lowest of 2^b."""
    bits = (grid.qmax - grid.qmin).bit_length()
    highest = 2**bits - 1
    lowest = grid.qmax - highest
    for scale, zero_point in zip(grid.scale.reshape(-1).tolist(), grid.zero_point.reshape(-1).tolist(), strict=True):
        offset = lowest - zero_point
        yield {
            "bitwidth": bits,
            "dtype": "int",
            # AIMET's symmetric grids have their zero in the middle of the codes.
            "is_symmetric": str(symmetric and offset == -(2 ** (bits - 1))),
            "max": (offset + highest) * scale,
            "min": offset * scale,
            "offset": offset,
            "scale": scale,
        }


def _arguments(plan: Plan) -> dict[str, Any]:
    """How the grids came about, as far as one word says it for all of them."""
    weights = [spec for site, spec in plan.sites if site.role == "weight"]
    activations = [spec for site, spec in plan.sites if site.role != "weight"]
    return {
        "activation_bitwidth": max((spec.bits for spec in activations), default=32),
        "dtype": "int",
        "is_symmetric": bool(weights) and all(spec.symmetric for spec in weights),
        "param_bitwidth": max((spec.bits for spec in weights), default=32),
        "per_channel_quantization": any(spec.granularity == "per_channel" for spec in weights),
        "quant_scheme": "post_training_tf",
    }


def _refused(site: Site, reason: str, remedy: str) -> QuantopsyError:
    return QuantopsyError(f"{site.role} of layer {site.layer!r}", reason, remedy)
