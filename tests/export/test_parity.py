"""Where a network parts from itself: each planted difference is found at its layer, with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_files import everywhere, stored
from sample_models import many, network

from quantopsy.analysis.recipes import encodings_of, given_of, model_of, realised
from quantopsy.core import Plan, QuantopsyError, Spec
from quantopsy.core.recipe import Recipe
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.export.onnx.graph import CODES_NAME, to_onnx
from quantopsy.export.onnx.parity import Parity, parity
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network

WEIGHT = Spec(granularity="per_channel", symmetric=True, signed=True)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    x = many().tensors[0]
    captured = capture(network(), (x[:2],))
    plan = everywhere(captured, WEIGHT, Spec())
    calibration = calibrate(compile_network(captured), [(x,)], wanted_statistics(captured, [plan]))
    encodings, given, model = (
        encodings_of(captured, plan, calibration),
        given_of(plan, calibration),
        model_of(captured, "s"),
    )
    return Recipe(plan, (), encodings, given, model)


@pytest.fixture(scope="module")
def model(recipe) -> onnx.ModelProto:
    captured, calibration = realised(recipe, capture(network(), (many().tensors[0][:2],)))
    return to_onnx(captured, recipe.plan, calibration)


def compared(recipe: Recipe, *files: Path) -> Parity:
    return parity(recipe, files, network(), many())


def test_the_exported_file_and_integers_are_the_simulation_but_for_ties(recipe) -> None:
    found = {way.name: way for way in compared(recipe).ways}
    assert list(found) == ["float", "simulated", "integers (onnxruntime)", "file", "file, optimised"]
    assert found["simulated"].decisions == 100
    for name in list(found)[2:]:
        way = found[name]
        assert way.layers is not None
        assert way.layers.first is None
        assert way.layers.within_step == 1.0
        assert way.layers.cause in ("rounding ties", "none")
        assert way.decisions > 98
    assert found["float"].lost[0] == 0


def replaced(model: onnx.ModelProto, name: str, change) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = stored(copy, name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    return copy


def other_output_scale(model: onnx.ModelProto, recipe: Recipe, layer: str) -> onnx.ModelProto:
    """What follows the layer is on a grid twice as fine, and rightly dequantized."""
    captured = capture(network(), (many().tensors[0][:2],))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    codes = CODES_NAME.format(captured.layer(layer).output)
    node = next(n for n in copy.graph.node if codes in n.output and n.op_type == "QuantizeLinear")
    scale = numpy_helper.to_array(stored(copy, node.input[1]))
    copy.graph.initializer.append(numpy_helper.from_array(scale / np.float32(2), "other"))
    for other in copy.graph.node:
        if (codes in other.output or codes in other.input) and other.op_type.endswith("Linear"):
            other.input[1] = "other"
    return copy


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("weights", lambda m, _: replaced(m, "right.0.weight.codes", lambda x: -x)),
        ("scale", lambda m, _: replaced(m, "right.0.weight.scale", lambda x: 2 * x)),
        ("bias", lambda m, _: replaced(m, "right.0.bias.codes", lambda x: x + 4000)),
        ("scale", lambda m, recipe: other_output_scale(m, recipe, "right.0")),
    ],
)
def test_a_number_that_is_not_the_recipes_is_found_at_its_layer(recipe, model, tmp_path, cause, change) -> None:
    onnx.save(change(model, recipe), tmp_path / "other.onnx")
    for way in compared(recipe, tmp_path / "other.onnx").ways[3:]:
        assert way.layers is not None
        assert (way.layers.first, way.layers.cause) == ("right.0", cause)


def test_a_file_without_our_codes_is_compared_by_its_outputs(recipe, tmp_path) -> None:
    captured, calibration = realised(recipe, capture(network(), (many().tensors[0][:2],)))
    onnx.save(to_onnx(captured, Plan(), calibration), tmp_path / "float.onnx")
    found = {way.name: way for way in compared(recipe, tmp_path / "float.onnx").ways}
    assert found["float.onnx"].layers is None
    assert found["float.onnx"].value == found["float"].value


def test_the_command_shows_a_row_for_each_and_says_why(recipe, model, command, tmp_path) -> None:
    recipe.save(tmp_path / "recipe.json")
    onnx.save(replaced(model, "left.weight.codes", lambda x: -x), tmp_path / "other.onnx")
    named = ("--model", "sample_models:network", "--data", "sample_models:many")

    def run(*arguments: str) -> tuple[int, str, str]:
        return command("parity", *arguments)

    code, out, err = run("recipe.json", "other.onnx", *named)
    assert code == 0, err
    words = " ".join(out.split())
    assert "left is the first layer more than a step away. Its integers are not the recipe's." in words
    code, out, _ = run(".", *named, "--json")
    assert [way["name"] for way in json.loads(out)["ways"]][:2] == ["float", "simulated"]
    for arguments, thing in (
        (("recipe.json", "nothing.onnx", *named), "cannot be read"),
        (("recipe.json", "recipe.json", *named), "cannot be read"),
        (("recipe.json", *named, "--integers", "tflight"), "tflight"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert thing in err.strip().splitlines()[-1]


def test_a_file_of_another_network_is_one_line(recipe, tmp_path) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["other"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["n", 3, 12, 12])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3, 12, 12])],
    )
    opset = onnx.helper.make_opsetid("", 21)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "relu.onnx")
    with pytest.raises(QuantopsyError, match=r"its inputs are other, the network's x"):
        compared(recipe, tmp_path / "relu.onnx")
