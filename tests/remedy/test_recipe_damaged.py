"""Damaged recipes: every one is read and runs, or is refused in one line with thing, reason and remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipe_mutations import mutated
from sample_models import many, network
from torch import nn

from quantopsy.analysis.recipes import Simulated, encodings_of, given_of, model_of, realised, same_weights
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.core.recipe import Recipe
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.export.onnx.graph import to_onnx
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.transforms.equalization import find_equalization

COUNT = 2000
IMAGES = 2


def float_network() -> Network:
    return capture(network(), (many().tensors[0][:IMAGES],))


@pytest.fixture(scope="module")
def document() -> dict:
    """Equalized; weights uniform, per group, piecewise, one rounded as given; a bias corrected as given."""
    x, start = many().tensors[0][:16], float_network()
    equalization = find_equalization(start, sweeps=1)
    equalized = equalization.apply(start)
    sites: dict[Site, Spec] = {}
    kinds = (
        Spec(bits=4, granularity="per_channel", symmetric=True, signed=True),
        Spec(),
        Spec(bits=4, granularity="per_group:1"),
        Spec(kind="piecewise", bits=4, granularity="per_channel"),
    )
    weights = [layer for layer in equalized.layers if layer.weight is not None]
    for layer in equalized.layers:
        sites[Site(layer.name, "input")] = sites[Site(layer.name, "output")] = Spec()
    for i, layer in enumerate(weights):
        sites[Site(layer.name, "weight")] = kinds[i % len(kinds)]
    plan = Plan.of(sites)
    ranges = calibrate(compile_network(equalized), [(x,)], wanted_statistics(equalized, [plan]))
    first = weights[0]
    spec = sites[Site(first.name, "weight")]
    up = torch.rand(equalized.tensors[first.weight].shape) < 0.5
    shift = torch.full(first.weight_shape[:1], 0.01)
    sites[Site(first.name, "weight")] = replace(spec, correction=ranges.give(shift), rounding=ranges.give(up))
    plan = Plan.of(sites)
    return Recipe(
        plan=plan,
        transforms=(equalization.to_json(),),
        encodings=encodings_of(equalized, plan, ranges),
        given=given_of(plan, ranges),
        model=model_of(start, "small"),
        provenance={"given": {"model": "sample_models:network", "data": "sample_models:many"}},
    ).to_json()


def put_to_work(path: Path, start: Network, x: torch.Tensor) -> None:
    """What apply and export do with a recipe, the network and its images being right."""
    recipe = Recipe.load(path)
    found, calibration = realised(recipe, start)
    same_weights(recipe, start)
    Simulated(found, recipe.plan, calibration)(x)
    to_onnx(found, recipe.plan, calibration)


def outcome(path: Path, start: Network, x: torch.Tensor) -> QuantopsyError | None:
    """How the recipe in ``path`` is refused; None where it runs."""
    try:
        put_to_work(path, start, x)
    except QuantopsyError as error:
        return error
    return None


def test_no_damage_gives_a_traceback(document, tmp_path) -> None:
    start, x, path = float_network(), many().tensors[0][:IMAGES], tmp_path / "recipe.json"
    path.write_text(json.dumps(document))
    assert outcome(path, start, x) is None
    refused = 0
    for seed in range(COUNT):
        path.write_text(mutated(document, seed))
        try:
            error = outcome(path, start, x)
        except Exception as crash:
            raise AssertionError(f"seed {seed}: {crash!r}") from crash
        if error is not None:
            refused += 1
            assert all((error.thing, error.reason, error.remedy)), seed
            assert "\n" not in str(error), seed
    assert COUNT / 2 < refused < COUNT


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"plan": NaN}', "nul"])
def test_what_is_no_json_is_refused(text, tmp_path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(QuantopsyError, match=r"recipe\.json"):
        Recipe.load(path)


def test_another_networks_recipe_is_refused(document, tmp_path) -> None:
    path, x = tmp_path / "recipe.json", many().tensors[0][:IMAGES]
    path.write_text(json.dumps(document))
    error = outcome(path, capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (x,)), x)
    assert error is not None
    assert "recipe" in error.thing
