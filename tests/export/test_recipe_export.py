"""A recipe as a file: what AdaRound and bias correction found, and what transforms did, is in it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_files import by_runtime, everywhere, stored
from sample_models import many, network

from quantopsy.analysis.recipes import encodings_of, given_of, model_of
from quantopsy.core import QuantopsyError, Site, Spec
from quantopsy.core.recipe import Recipe
from quantopsy.engine.adaround import Effort, round_weights
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.sequential import bias_can_move, correct_biases
from quantopsy.export.onnx.recipe import Delivered, export_recipe
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.remedy.applied import apply
from quantopsy.transforms.equalization import find_equalization

WEIGHT = Spec(bits=4, granularity="per_channel", symmetric=True, signed=True)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Equalized, weights rounded by AdaRound, biases corrected: all that a repair does for nothing."""
    x = many().tensors[0]
    start = capture(network(), (x[:2],))
    equalization = find_equalization(start, sweeps=2)
    equalized = equalization.apply(start)
    plan = everywhere(equalized, WEIGHT, Spec())
    program = compile_network(equalized)
    calibration = calibrate(program, [(x,)], wanted_statistics(equalized, [plan]))
    engine = ExactEngine(program, calibration)
    layers = {layer.name for layer in equalized.layers if bias_can_move(layer)}
    rounded = round_weights(engine, plan, [(x[:64],)], layers, Effort(steps=30))
    final = correct_biases(engine, rounded, [(x[:64],)], layers)
    return Recipe(
        plan=final,
        transforms=(equalization.to_json(),),
        encodings=encodings_of(equalized, final, calibration),
        given=given_of(final, calibration),
        model=model_of(start, "small"),
        expected=None,
        steps=(),
        provenance={},
    )


def recipe_of(weight: Spec, unfused: tuple[str, ...] = ()) -> Recipe:
    """The small network with ``weight`` everywhere."""
    x = many().tensors[0]
    start = capture(network(), (x[:2],), unfused=unfused)
    plan = everywhere(start, weight, Spec())
    calibration = calibrate(compile_network(start), [(x,)], wanted_statistics(start, [plan]))
    return Recipe(plan, encodings=encodings_of(start, plan, calibration), model=model_of(start, "small"))


@pytest.fixture(scope="module")
def delivered(recipe, tmp_path_factory) -> Delivered:
    return export_recipe(recipe, tmp_path_factory.mktemp("file") / "small.onnx", network(), many())


def test_the_file_gives_what_the_recipe_simulates(recipe, delivered) -> None:
    found = delivered.exported.verified
    assert found.optimised.layers.within_step == 1.0
    assert found.optimised.layers.equal > 0.999
    assert found.optimised.departs[1] <= 0 <= found.optimised.departs[2]
    x = many().tensors[0]
    simulated = apply(recipe, network(), many()).module(x).numpy()
    (given,) = by_runtime(onnx.load(delivered.exported.path), x)
    step = float((given.max() - given.min()) / 255)
    assert np.mean(np.abs(given - simulated) < 1.5 * step) > 0.98


def test_weights_are_rounded_as_the_recipe_says(recipe, delivered) -> None:
    specs = dict(recipe.plan.sites)
    moved = [site for site, spec in specs.items() if site.role == "weight" and spec.rounding != "nearest"]
    assert moved
    module = apply(recipe, network(), many()).module
    model = onnx.load(delivered.exported.path)
    for site in moved:
        codes, scale, zero = (
            numpy_helper.to_array(stored(model, f"{site.layer}.weight.{part}")).astype(np.float64)
            for part in ("codes", "scale", "zero_point")
        )
        laid = (-1, *[1] * (codes.ndim - 1))
        reals = (codes - zero.reshape(laid)) * scale.reshape(laid)
        layer = module.network.layer(site.layer)
        expected = module._engine.quantized_weight(layer, specs[Site(site.layer, "weight")])
        torch.testing.assert_close(torch.from_numpy(reals).float(), expected.contiguous(), rtol=1e-5, atol=1e-6)


def test_size_and_time_are_measured_beside_float(delivered) -> None:
    assert delivered.exported.bytes > 0
    assert delivered.timed.faster > 0
    assert {time.layer for time in delivered.by_layer} >= set(capture(network(), (many().tensors[0][:2],)).names)
    document = json.loads(json.dumps(delivered.to_json()))
    assert {"float", "simulated", "runtime", "integer", "latency"} <= set(document)


def test_the_command_finds_the_recipe_of_a_study(recipe, command, tmp_path) -> None:
    recipe.save(tmp_path / "recipe.json")

    def run(*arguments: str) -> tuple[int, str, str]:
        return command("export", *arguments)

    named = ("--model", "sample_models:network", "--data", "sample_models:many")
    code, out, err = run(".", *named, "--json")
    assert code == 0, err
    assert json.loads(out)["samples"] == 160
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    code, out, _ = run(".", *named)
    assert code == 0
    assert "of the MACs run in integer kernels" in " ".join(out.split())
    for arguments, thing in (
        ((".", "--to", "onyx", *named), "file format 'onyx'"),
        ((".",), "does not name its model"),
        ((".", *named, "--opset", "13"), "opset 13"),
        ((".", *named, "--out", "recipe.json/model.onnx"), "cannot be written"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert thing in err.strip().splitlines()[-1]


def test_what_a_target_cannot_run_is_not_written(recipe, command, tmp_path) -> None:
    named = ("--model", "sample_models:network", "--data", "sample_models:many")
    recipe.save(tmp_path / "recipe.json")
    code, out, err = command("export", ".", *named, "--target", "tensorrt")
    assert (code, out) == (2, "")
    assert "target tensorrt: it cannot run the weight: no 4 bits ('stem.0' and 4 more); the output: only " in err
    assert "the input: only symmetric grids ('stem.0' and 8 more)" in err
    assert not (tmp_path / "model.onnx").exists()
    for arguments, thing in (
        (("--target", "onnxruntime-cpu9", *named), "target 'onnxruntime-cpu9'"),
        (("--target", "qnn", "--to", "encodings"), "not checked"),
    ):
        code, _, err = command("export", ".", *arguments)
        assert code == 2
        assert thing in err
    code, _, err = command("export", ".", *named, "--target", "onnxruntime-avx2")
    assert code == 0, err


def test_weights_that_saturate_on_this_processor_are_named(delivered, monkeypatch, tmp_path) -> None:
    from quantopsy.export.onnx import export
    from quantopsy.report.exported import export_cautions

    assert delivered.exported.saturating == ()  # of 4 bits
    monkeypatch.setattr(export, "saturates", lambda: True)
    wide = export_recipe(recipe_of(replace(WEIGHT, bits=8)), tmp_path / "8.onnx", network(), many())
    assert set(wide.exported.saturating) == {"stem.0", "depthwise.0", "left", "right.0", "head"}
    assert any("saturate" in line for line in export_cautions(wide))
    narrow = export_recipe(recipe_of(replace(WEIGHT, bits=7)), tmp_path / "7.onnx", network(), many())
    assert narrow.exported.saturating == ()


def test_an_activation_that_keeps_a_layer_in_reals_is_named_and_can_be_unfused(tmp_path) -> None:
    from quantopsy.report.exported import export_cautions

    wide = replace(WEIGHT, bits=8)
    fused = export_recipe(recipe_of(wide), tmp_path / "fused.onnx", network(), many())
    assert fused.exported.between == ("silu",)
    assert any("analyze --unfused silu" in line for line in export_cautions(fused))
    recipe = recipe_of(wide, unfused=("silu",))
    assert recipe.plan[Site("depthwise.0", "output")].bits == 8
    free = export_recipe(recipe, tmp_path / "free.onnx", network(), many())
    assert free.exported.between == ()
    assert free.exported.kernels.macs_share == 1
    assert "depthwise.0" not in free.exported.kernels.real
    # Whatever opens the recipe knows it: the network is the same one as simulated.
    applied = apply(recipe, network(), many())
    assert applied.after[0] == pytest.approx(free.exported.verified.simulated)


def test_without_the_extra_the_remedy_is_named(monkeypatch) -> None:
    import quantopsy as qp

    monkeypatch.setitem(sys.modules, "quantopsy.export.onnx.recipe", None)
    with pytest.raises(QuantopsyError, match=r"pip install \"quantopsy\[onnx\]\""):
        qp.export_onnx("recipe.json")
