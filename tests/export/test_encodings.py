"""Encodings as AIMET writes them: the numbers fit each other, and mean the grids of the recipe."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import sample_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quantopsy as qp
from quantopsy.calibrate import fit
from quantopsy.cli import app as cli
from quantopsy.core import Plan, Site, Spec
from quantopsy.core.recipe import RECIPE, Recipe
from quantopsy.export.encodings import aimet_encodings, grid_of, not_carried
from quantopsy.quant import fake_quantize
from quantopsy.quant.encoding import qparams_to_json

WEIGHT = Site("conv", "weight")


def recipe_of(site: Site, spec: Spec, x: torch.Tensor) -> Recipe:
    """A recipe with the one grid that ``spec`` means for ``x``."""
    grids = {site.layer: {site.role: [qparams_to_json(fit(spec, x))]}}
    return Recipe(plan=Plan.of({site: spec}), encodings=grids)


def read_back(document) -> dict:
    return json.loads(json.dumps(document, allow_nan=False))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_numbers_fit_each_other_and_mean_the_same_grid(data: st.DataObject) -> None:
    spec = Spec(
        bits=data.draw(st.integers(2, 16)),
        symmetric=data.draw(st.booleans()),
        signed=data.draw(st.sampled_from((None, True))),
        narrow=data.draw(st.booleans()),
        granularity=data.draw(st.sampled_from(("per_tensor", "per_channel"))),
    )
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    x = (x + data.draw(st.sampled_from((0.0, 3.0)))) * 10.0 ** data.draw(st.integers(-6, 6))
    x = x.relu() if data.draw(st.booleans()) else x
    found = read_back(aimet_encodings(recipe_of(WEIGHT, spec, x)))["param_encodings"]["conv.weight"]
    assert len(found) == (4 if spec.granularity == "per_channel" else 1)
    for encoding in found:
        steps = 2**spec.bits - 1
        assert encoding["bitwidth"] == spec.bits
        assert encoding["min"] <= 0 <= encoding["max"]
        assert encoding["min"] == pytest.approx(encoding["offset"] * encoding["scale"])
        assert encoding["max"] - encoding["min"] == pytest.approx(steps * encoding["scale"])
        # AIMET's symmetric grids have 2^(b-1) codes below zero.
        assert encoding["is_symmetric"] == "False" or encoding["offset"] == -(2 ** (spec.bits - 1))
    grid = grid_of(found, 0 if len(found) > 1 else None)
    assert torch.equal(fake_quantize(x, grid), fake_quantize(x, fit(spec, x)))


@pytest.mark.parametrize("symmetric", [False, True])
def test_torch_rounds_to_the_same_levels(symmetric) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(1))
    spec = Spec(symmetric=symmetric, signed=True)
    (found,) = aimet_encodings(recipe_of(WEIGHT, spec, x))["param_encodings"]["conv.weight"]
    theirs = torch.fake_quantize_per_tensor_affine(x, found["scale"], -found["offset"], 0, 255)
    torch.testing.assert_close(theirs, fake_quantize(x, fit(spec, x)), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """Of a small network with every kind of layer, weights per channel."""
    folder = tmp_path_factory.mktemp("study")
    model, data = sample_models.network(), sample_models.many()
    qp.analyze(model, data, bits=(8,), mode="exact", scheme="per-channel", out=folder)
    qp.repair(folder, budget="1s", max_drop=50.0, model=model, data=data)
    return Recipe.load(folder / RECIPE)


def test_every_weight_goes_by_its_parameters_name(recipe) -> None:
    document = read_back(aimet_encodings(recipe))
    parameters = dict(sample_models.network().named_parameters())
    assert document["version"] == "0.6.1"
    assert {name: len(found) for name, found in document["param_encodings"].items()} == {
        name: len(parameters[name]) for name in parameters if name.endswith("weight") and parameters[name].dim() > 1
    }


def test_every_activation_goes_by_its_modules_name(recipe) -> None:
    document = aimet_encodings(recipe)
    activations, modules = document["activation_encodings"], dict(sample_models.network().named_modules())
    # Behind the SiLU, whose grid would clip what goes into it; but the functional relu behind the addition is a clamp.
    assert isinstance(modules["depthwise.2"], torch.nn.SiLU)
    assert set(activations["depthwise.2"]) == {"output"}
    assert set(activations["depthwise.0"]) == {"input"}
    assert set(activations["add"]) == {"input", "output"}
    assert set(activations["add"]["input"]) == {"0", "1"}
    assert activations["add"]["output"]["0"]["min"] == 0.0
    assert not_carried(recipe) == []


def test_what_a_file_of_grids_leaves_out_is_said(recipe) -> None:
    functional = {**recipe.model, "activations": {"depthwise.0": ["silu", ""]}}
    assert "depthwise.0" in not_carried(replace(recipe, model=functional))[0]
    assert "output" not in aimet_encodings(replace(recipe, model=functional))["activation_encodings"]["depthwise.0"]
    transformed = replace(recipe, transforms=({"name": "equalization"},))
    assert "equalization" in not_carried(transformed)[0]
    specs = {site: replace(spec, correction="bias") for site, spec in recipe.plan.sites if site.role == "weight"}
    assert "corrections of 5 layers" in not_carried(replace(recipe, plan=Plan.of(specs)))[0]


@pytest.mark.parametrize(
    ("site", "spec", "said"),
    [
        (WEIGHT, Spec(kind="piecewise", bits=4), "weight of layer 'conv': its grid is piecewise"),
        (WEIGHT, Spec(granularity="per_group:2"), "groups of its channels"),
        (Site("conv", "input"), Spec(granularity="per_channel"), "input of layer 'conv': it has a grid per channel"),
        (WEIGHT, Spec(tensors=2), "it is the sum of 2 tensors"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(site, spec, said) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    with pytest.raises(qp.QuantopsyError, match=said):
        aimet_encodings(replace(recipe_of(site, replace(spec, tensors=1), x), plan=Plan.of({site: spec})))


def test_numbers_that_contradict_each_other_are_refused() -> None:
    wrong = {"bitwidth": 8, "scale": 0.1, "offset": -10, "min": -1.0, "max": 30.0, "is_symmetric": "False"}
    with pytest.raises(qp.QuantopsyError, match=r"its range \[-1, 30\] is not that of its scale and offset"):
        grid_of([wrong])


def test_the_command_writes_the_file(recipe, tmp_path, monkeypatch, capsys) -> None:
    recipe.save(tmp_path / "mine.json")
    monkeypatch.setattr(
        sys, "argv", ["quantopsy", "export", str(tmp_path / "mine.json"), "--to", "encodings", "--json"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    written = json.loads((tmp_path / "mine.encodings").read_text())
    assert written == json.loads(capsys.readouterr().out) == read_back(aimet_encodings(recipe))
    replace(recipe, transforms=({"name": "equalization"},)).save(tmp_path / "mine.json")
    monkeypatch.setattr(
        sys,
        "argv",
        ["quantopsy", "export", str(tmp_path / "mine.json"), "--to", "encodings", "--out", "other.encodings"],
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main()
    assert "Encodings: other.encodings" in (out := capsys.readouterr().out)
    assert "! Not in it: transforms of the float network (equalization)" in out
    assert (tmp_path / "other.encodings").exists()
