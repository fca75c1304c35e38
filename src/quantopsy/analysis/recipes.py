"""Recipes and networks: what a recipe makes of a network, and what it says of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantopsy.core import Plan, QuantopsyError, Site, Spec, names
from quantopsy.core.recipe import RECIPE, Encodings, Recipe, StoredTensor
from quantopsy.engine.calibration import Calibration, grids_of, tensors_at
from quantopsy.engine.exact import ExactEngine, Prepared
from quantopsy.graph.capture import activation_module
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.quant import QParams
from quantopsy.quant.encoding import qparams_from_json, qparams_to_json
from quantopsy.transforms.registry import from_json

_OTHER = "apply it to the network that it was made for"
SAME_NORM = 1e-4
"""Relative difference of a weight's norm that folding a batch norm in another order leaves."""


def recipe_file(path: Path) -> Path:
    """``path``, or the recipe of the study that it is."""
    return path / RECIPE if path.is_dir() else path


def recipe_named(model: Any) -> Recipe | None:
    """The recipe that a MODEL argument is: a file of JSON, a folder that holds one, or a :class:`Recipe`."""
    if isinstance(model, Recipe):
        return model
    if not isinstance(model, str | Path):
        return None
    path = recipe_file(Path(model))
    return Recipe.load(path) if path.suffix == ".json" else None


def model_named(recipe: Recipe) -> Any:
    """The model that ``recipe`` was made for; raises :class:`QuantopsyError` where it has no name."""
    model = recipe.provenance.get("given", {}).get("model")
    if not isinstance(model, str):
        raise QuantopsyError("recipe", "it does not name its model", "analyze the model itself, with --plan")
    return model


def unfused_of(recipe: Recipe) -> tuple[str, ...]:
    """The activation functions that are layers of their own in the network that ``recipe`` was made for."""
    return tuple(recipe.model.get("unfused", ()))


def portable(network: Network, plan: Plan, calibration: Calibration) -> Plan:
    """``plan`` with the shifts that its corrected biases take away given as tensors: means of images stay behind."""
    specs = dict(plan)
    for site, spec in plan.sites:
        layer = network.layer(site.layer)
        if site.role == "weight" and spec.correction == "bias" and layer.weight is not None:
            weight = network.tensors[layer.weight]
            change = calibration.quantized_weight(layer, spec, weight) - weight
            specs[site] = replace(spec, correction=calibration.give(calibration.shift(layer, spec, change)))
    return Plan.of(specs)


def encodings_of(network: Network, plan: Plan, calibration: Calibration) -> Encodings:
    """The grids of every site of ``plan``, for a recipe; of weights those that are grids and nothing else."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for site, grids in grids_of(network, plan, calibration):
        found.setdefault(site.layer, {})[site.role] = [qparams_to_json(grid) for grid in grids]
    return found


def given_of(plan: Plan, calibration: Calibration) -> dict[str, StoredTensor]:
    """The tensors that specs of ``plan`` mean."""
    wanted = {text for _, spec in plan.sites for text in (spec.correction, spec.rounding) if text in calibration.given}
    return {name: _packed(calibration.given[name]) for name in sorted(wanted)}


def model_of(network: Network, name: str) -> dict[str, Any]:
    """What a recipe says of the network that it was made for."""
    return {
        "name": name,
        "fingerprint": network.fingerprint,
        "weights": {layer.name: list(layer.weight_shape) for layer in network.layers if layer.weight_shape is not None},
        "macs": {layer.name: layer.macs for layer in network.layers},
        "total_macs": network.total_macs,
        "activations": {
            layer.name: [layer.activation, activation_module(network, layer)]
            for layer in network.layers
            if layer.activation is not None
        },
        "layers": [[layer.name, list(layer.output_shape)] for layer in network.layers],
        "norms": _norms(network),
        "unfused": list(network.unfused),
    }


def _norms(network: Network) -> dict[str, float]:
    """The l2 norm of every layer's weight: equal but for rounding for the same network from another file."""
    return {
        layer.name: float(network.tensors[layer.weight].double().norm())
        for layer in network.layers
        if layer.weight is not None
    }


def same_weights(recipe: Recipe, network: Network) -> bool:
    """Whether ``network``, its layers named as the recipe's, has the weights that the recipe was made for."""
    if recipe.model.get("fingerprint") == network.fingerprint:
        return True
    noted, found = recipe.model.get("norms", {}), _norms(network)
    return (
        bool(noted)
        and noted.keys() == found.keys()
        and all(math.isclose(noted[name], norm, rel_tol=SAME_NORM) for name, norm in found.items())
    )


def named_as(recipe: Recipe, network: Network) -> Network:
    """``network`` with the recipe's names for its layers: a network from ONNX may have others than from PyTorch.

    Names that are the network's own stay; one that is the name of an ONNX node names that node's layer. Else layers
    are taken by order, where their number, the shapes of their weights and the sizes of their outputs are the recipe's.
    Whatever does not fit stays as it is, for :func:`check_model` to refuse.
    """
    wanted = recipe.plan.layers | set(recipe.model.get("weights", {}))
    if wanted <= set(network.names):
        return network
    aliases = {layer.onnx_node: layer.name for layer in network.layers if layer.onnx_node is not None}
    renamed = {aliases[name]: name for name in wanted if name not in network.names and name in aliases}
    if not wanted <= {renamed.get(name, name) for name in network.names}:
        noted = recipe.model.get("layers", [])
        weights = recipe.model.get("weights", {})
        shapes = [(weights.get(name), math.prod(output)) for name, output in noted]
        found = [
            (None if layer.weight_shape is None else list(layer.weight_shape), math.prod(layer.output_shape))
            for layer in network.layers
        ]
        if shapes != found:
            return network
        renamed = {layer.name: name for layer, (name, _) in zip(network.layers, noted, strict=True)}
    layers = tuple(replace(layer, name=renamed.get(layer.name, layer.name)) for layer in network.layers)
    return replace(network, layers=layers)


def realised(recipe: Recipe, network: Network) -> tuple[Network, Calibration]:
    """``network`` (float, folded) with the recipe's transforms, and its grids; the plan is the recipe's own.

    Layers have the recipe's names then (:func:`named_as`). Raises :class:`QuantopsyError` for a recipe of another
    network, naming the layer and the nearest names.
    """
    network = named_as(recipe, network)
    check_model(recipe, network)
    for data in recipe.transforms:
        network = from_json(data).apply(network)
    calibration = Calibration(sources=network.grid_sources)
    for name, given in recipe.given.items():
        calibration.given[name] = _unpacked(name, given)
    specs = recipe.plan
    for site, wanted in specs.items():
        _check_given(network.layer(site.layer), wanted, calibration.given)
    shapes = {layer.output: layer.output_shape for layer in network.layers}
    shapes |= dict(zip(network.input_names, network.input_shapes, strict=True))
    for layer_name, roles in recipe.encodings.items():
        layer = network.layer(layer_name)
        for role, grids in roles.items():
            site = Site(layer_name, role)  # type: ignore[arg-type]
            spec = specs.get(site)
            if spec is None:
                raise QuantopsyError(
                    f"recipe's encoding of {layer_name!r}", f"its plan has no {role}", "write it again"
                )
            values = tensors_at(network, site, spec)
            if len(values) != len(grids):
                raise QuantopsyError(
                    f"recipe's {role} of {layer_name!r}",
                    f"{len(grids)} grids for {len(values)} values",
                    _OTHER,
                )
            for value, grid in zip(values, grids, strict=True):
                qparams = qparams_from_json(grid)
                shape = layer.weight_shape if role == "weight" else shapes.get(value)
                if shape is not None:
                    shape = shape if role == "weight" else (1, *shape)
                    _check_fits(f"recipe's {role} of {layer_name!r}", qparams, tuple(shape))
                calibration.encodings.setdefault((value, spec), qparams)
    for site, wanted in specs.items():
        layer = network.layer(site.layer)
        if site.role == "weight" and layer.weight is None:
            raise QuantopsyError(f"recipe's weight of {site.layer!r}", "the layer has none", _OTHER)
        values = () if site.role == "weight" else tensors_at(network, site, wanted)
        if any((value, wanted) not in calibration.encodings for value in values):
            raise QuantopsyError(f"recipe's {site.role} of {site.layer!r}", "it has no encoding", "write it again")
    return network, calibration


def _check_given(layer: Layer, spec: Spec, given: Mapping[str, Tensor]) -> None:
    """Raise :class:`QuantopsyError` where a tensor that ``spec`` means does not fit the layer's weight."""
    shape = layer.weight_shape or ()
    rounding, shift = given.get(spec.rounding), given.get(spec.correction)
    if rounding is not None and tuple(rounding.shape) != tuple(shape):
        found = tuple(rounding.shape)
    elif shift is not None and tuple(shift.shape) != (layer.output_shape[0 if layer.channel_axis == 1 else -1],):
        found = tuple(shift.shape)
    else:
        return
    raise QuantopsyError(
        f"recipe's weight of {layer.name!r}", f"its shape is {tuple(shape)}, what is given for it has {found}", _OTHER
    )


def _check_fits(thing: str, qparams: QParams, shape: tuple[int, ...]) -> None:
    """Raise :class:`QuantopsyError` where a grid cannot be laid on a tensor of ``shape``."""
    try:
        fits = qparams.snap(torch.zeros(shape)).shape == shape
    except (TypeError, ValueError, RuntimeError, IndexError):
        fits = False
    if not fits:
        raise QuantopsyError(thing, f"its grid does not fit shape {shape}", _OTHER)


def check_model(recipe: Recipe, network: Network) -> None:
    """Raise :class:`QuantopsyError` where the recipe names a layer that ``network`` lacks, or of another shape."""
    shapes: Mapping[str, Any] = recipe.model.get("weights", {})
    for name in sorted(recipe.plan.layers | set(shapes)):
        if name not in network.names:
            raise QuantopsyError(
                f"recipe's layer {name!r}",
                f"the network has none of that name: this recipe is of {recipe.model.get('name', 'another')}",
                f"{_OTHER}; {names.unknown(name, network.names, 'layer').remedy}",
            )
        shape = network.layer(name).weight_shape
        if name in shapes and list(shape or ()) != list(shapes[name]):
            raise QuantopsyError(
                f"recipe's layer {name!r}",
                f"its weight has shape {tuple(shapes[name])}, the network's {shape}",
                _OTHER,
            )


class Simulated(nn.Module):
    """The quantized network of a recipe: takes and gives what the float module does. An empty plan is the float one."""

    def __init__(self, network: Network, plan: Plan, calibration: Calibration, device: str = "cpu") -> None:
        super().__init__()
        self.network = network
        self._engine = ExactEngine(compile_network(network, device), calibration)
        self._prepared = self._engine.prepare(plan) if plan.sites else Prepared(plan, {}, (), ())

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs, quantized; no gradients."""
        return self.network.unflatten(self._engine.whole_pass(inputs, self._prepared))


def _packed(tensor: Tensor) -> StoredTensor:
    array = tensor.numpy()
    if array.dtype == np.bool_:
        return StoredTensor.of("bool", tuple(array.shape), np.packbits(array.ravel(), bitorder="little").tobytes())
    return StoredTensor.of("float32", tuple(array.shape), array.astype("<f4").tobytes())


def _unpacked(name: str, given: StoredTensor) -> Tensor:
    try:
        raw = np.frombuffer(given.raw, dtype=np.uint8)
        size = int(np.prod(given.shape))
        read: Callable[[], np.ndarray] = (
            (lambda: np.unpackbits(raw, bitorder="little")[:size].astype(np.bool_))
            if given.dtype == "bool"
            else (lambda: raw.view("<f4").astype(np.float32))
        )
        return torch.from_numpy(read().reshape(given.shape))
    except Exception as error:
        raise QuantopsyError(f"recipe's {name}", f"it does not decode ({error})", "write the recipe again") from None
