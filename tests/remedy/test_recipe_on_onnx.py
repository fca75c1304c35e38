"""A recipe made on a PyTorch network does the same to the network read from its ONNX file."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from small_net import SmallNet, randomise_norms
from torch import nn

from quantopsy.analysis.recipes import Simulated, encodings_of, model_of, named_as, realised, same_weights
from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.core import QuantopsyError
from quantopsy.core.recipe import Recipe
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.graph.capture import capture, load
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.transforms.equalization import find_equalization

X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise_norms(SmallNet())


def recipe_of(network: Network) -> Recipe:
    """Equalization, then 5 bits everywhere, through JSON."""
    transform = find_equalization(network)
    after = transform.apply(network)
    plan = full_plan(after, grids("per-channel", 8, {"weight": {"bits": 5}}))
    ranges = calibrate(compile_network(after), [(X,)], wanted_statistics(after, [plan]))
    made = Recipe(
        plan, (transform.to_json(),), encodings_of(after, plan, ranges), model=model_of(network, "a test's network")
    )
    return Recipe.from_json(json.loads(json.dumps(made.to_json())))


def written(net: nn.Module, path: Path, rename: bool = False) -> Path:
    """The file of torch's older exporter; with ``rename`` without a trace of module paths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (X[:2],), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    if rename:
        model = onnx.load(path)
        weights = {tensor.name: f"t{index}" for index, tensor in enumerate(model.graph.initializer)}
        for tensor in model.graph.initializer:
            tensor.name = weights[tensor.name]
        for index, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{index}"
            node.input[:] = [weights.get(name, name) for name in node.input]
        onnx.save(model, path)
    return path


def simulated(recipe: Recipe, network: Network) -> torch.Tensor:
    after, ranges = realised(recipe, network)
    return Simulated(after, recipe.plan, ranges)(X)


@pytest.mark.parametrize("rename", [False, True], ids=["by name", "by order"])
def test_a_recipe_does_the_same_to_both_forms(rename: bool, tmp_path) -> None:
    net = module()
    here = capture(net, (X[:2],))
    there = capture(load(written(net, tmp_path / "net.onnx", rename)), (X[:2],))
    assert (here.names == there.names) is not rename
    recipe, back = recipe_of(here), recipe_of(there)
    assert same_weights(recipe, named_as(recipe, there))
    wanted, float_outputs = simulated(recipe, here), net(X).detach()
    lost = (wanted - float_outputs).norm()
    for other in (simulated(recipe, there), simulated(back, here), simulated(back, there)):
        # A weight folded in another order may fall on the other side of a tie: a step, not another network.
        assert (other - wanted).norm() < 0.3 * lost


def test_other_weights_are_seen_and_other_networks_refused(tmp_path) -> None:
    recipe = recipe_of(capture(module(), (X[:2],)))
    trained_on = capture(load(written(module(1), tmp_path / "net.onnx")), (X[:2],))
    assert not same_weights(recipe, named_as(recipe, trained_on))
    torch.manual_seed(0)
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with pytest.raises(QuantopsyError, match=r"recipe's layer .*; nearest are"):
        realised(recipe, capture(load(written(other, tmp_path / "other.onnx", rename=True)), (X[:2],)))
    net = module()
    net.left = nn.Conv2d(8, 8, 3, padding=1)
    with pytest.raises(QuantopsyError, match=r"recipe's layer 'left': its weight has shape"):
        realised(recipe, capture(load(written(net.eval(), tmp_path / "net.onnx")), (X[:2],)))


def test_a_recipe_may_name_onnx_nodes(tmp_path) -> None:
    there = capture(load(written(module(), tmp_path / "net.onnx")), (X[:2],))
    by_node = replace(there, layers=tuple(replace(layer, name=layer.onnx_node) for layer in there.layers))
    recipe = recipe_of(by_node)
    recipe = replace(recipe, model={**recipe.model, "layers": []})
    assert named_as(recipe, there).names == by_node.names
