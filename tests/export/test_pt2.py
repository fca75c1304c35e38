"""Programs of torch.export: what the simulation gives, in a process that knows nothing of quantopsy."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from onnx_files import calibrated, everywhere, network_of, pictures
from random_net import random_net
from sample_models import many, network
from torch import nn

from quantopsy.analysis.recipes import Simulated, encodings_of, given_of, model_of, portable
from quantopsy.core import Plan, QuantopsyError, Spec
from quantopsy.core.recipe import Recipe
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.export.pt2.decomposed import Decomposed
from quantopsy.export.pt2.program import exported
from quantopsy.export.pt2.recipe import export_program
from quantopsy.export.pt2.simulated import Simulation
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network

LOADED_ALONE = """
import sys
import torch
{define}
program = torch.export.load("program.pt2")
outputs = program.module()(torch.load("inputs.pt"))
assert not any(name.partition(".")[0] in ("quantopsy", "onnx") for name in sys.modules)
torch.save(outputs, "outputs.pt")
"""


@cache
def mixed() -> Network:
    """A depthwise convolution, a transposed one, a linear layer of three dimensions, and functions of reals."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False),
        nn.SiLU(), nn.ConvTranspose2d(8, 6, 2), nn.Flatten(2), nn.Linear(25, 5), nn.Flatten(), nn.Linear(30, 4),
    )  # fmt: skip
    return network_of(module, pictures(channels=6))


def traced(form, net: Network, plan: Plan, x: torch.Tensor) -> tuple[torch.export.ExportedProgram, nn.Module]:
    """The program, and the simulation."""
    ranges = calibrated(net, plan, x)
    return exported(net, plan, ranges, form), Simulated(net, plan, ranges)


def alone(program: torch.export.ExportedProgram, x: torch.Tensor, folder, define: str = "") -> torch.Tensor:
    """What ``program``, saved and loaded in another process, gives."""
    torch.export.save(program, folder / "program.pt2")
    torch.save(x, folder / "inputs.pt")
    script = LOADED_ALONE.format(define=define)
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, env={"PYTHONPATH": ""})
    return torch.load(folder / "outputs.pt")


@pytest.mark.parametrize(
    "spec",
    [
        Spec(),
        Spec(bits=4, tensors=2, granularity="per_channel"),
        Spec(kind="piecewise", bits=4, granularity="per_channel"),
        Spec(kind="piecewise", bits=4, granularity="per_group:3"),
        Spec(kind="power_of_two", bits=4, granularity="per_group:3"),
        Spec(kind="k_means", bits=3, granularity="per_channel"),
        Spec(bits=3, correction="mean_variance"),
        Spec(bits=3, correction="bias", granularity="per_group:3"),
    ],
    ids=lambda spec: f"{spec.kind}, {spec.granularity}, {spec.tensors}, {spec.correction}",
)
def test_the_simulation_is_the_program_to_the_bit(spec: Spec) -> None:
    if spec.correction == "bias":
        module = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False))
        net = network_of(module, pictures(channels=6))
    else:
        net = mixed()
    x = pictures(8, channels=6)
    activation = Spec(kind=spec.kind, bits=8 if spec.kind == "uniform" else 4)
    program, simulation = traced(Simulation(), net, everywhere(net, spec, activation), x)
    for images in (x, x[:1], x[:3]):  # their number is free
        assert torch.equal(program.module()(images), simulation(images))
    assert not any("quantized_decomposed" in str(node.target) for node in program.graph.nodes)


def test_a_program_needs_torch_only(tmp_path) -> None:
    net, x = mixed(), pictures(8, channels=6)
    program, simulation = traced(
        Simulation(), net, everywhere(net, Spec(kind="piecewise", bits=4, granularity="per_channel"), Spec()), x
    )
    assert torch.equal(alone(program, x, tmp_path), simulation(x))


def test_weights_are_stored_as_codes() -> None:
    net, x = network_of(nn.Conv2d(8, 16, 3), pictures(channels=8)), pictures(channels=8)
    for kind in ("uniform", "piecewise", "k_means"):
        program, _ = traced(Simulation(), net, everywhere(net, Spec(kind=kind, bits=4)), x)
        codes = [tensor for tensor in program.state_dict.values() if tensor.numel() == 16 * 8 * 9]
        assert [tensor.dtype for tensor in codes] == [torch.int8]


@pytest.mark.parametrize("seed", range(3))
def test_networks_of_any_structure_are_programs(seed: int) -> None:
    net, x = network_of(random_net(seed), pictures(size=10)), pictures(6, size=10)
    plan = everywhere(net, Spec(symmetric=True, signed=True, granularity="per_channel"), Spec())
    program, simulation = traced(Simulation(), net, plan, x)
    torch.testing.assert_close(program.module()(x), simulation(x), rtol=0, atol=0)
    program, _ = traced(Decomposed(), net, plan, x)
    step = float((simulation(x).max() - simulation(x).min()) / 255)
    assert ((program.module()(x) - simulation(x)).abs() < 0.5 * step).float().mean() > 0.9


@pytest.mark.parametrize(
    ("weight", "activation"),
    [
        (Spec(), Spec()),
        (Spec(symmetric=True, signed=True, narrow=True, granularity="per_channel"), Spec(signed=True, symmetric=True)),
        (Spec(symmetric=True, signed=False), Spec(bits=4)),
        (Spec(bits=4, granularity="per_channel"), Spec(granularity="per_channel")),
        (Spec(bits=12), Spec(bits=12)),
    ],
)
def test_the_operators_of_pt2e_give_what_the_simulation_gives(weight: Spec, activation: Spec) -> None:
    net, x = mixed(), pictures(8, channels=6)
    program, simulation = traced(Decomposed(), net, everywhere(net, weight, activation), x)
    expected = simulation(x)
    step = float((expected.max() - expected.min()) / 2**activation.bits)
    apart = (program.module()(x) - expected).abs() / step
    assert (apart < 0.5).float().mean() > 0.9  # 1 / scale instead of a division: ties
    assert float(apart.max()) < (2.5 if activation.bits <= 8 else 20)


def test_the_graph_is_the_one_that_pt2e_leaves() -> None:
    net, x = network_of(nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU()), pictures(channels=6)), pictures(channels=6)
    weight = Spec(symmetric=True, signed=True, granularity="per_channel")
    program, _ = traced(Decomposed(), net, everywhere(net, weight, Spec()), x)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == [
        "quantized_decomposed.quantize_per_tensor.default",
        "quantized_decomposed.dequantize_per_tensor.default",
        "quantized_decomposed.dequantize_per_channel.default",
        "aten.conv2d.default",
        "aten.relu.default",
        "quantized_decomposed.quantize_per_tensor.default",
        "quantized_decomposed.dequantize_per_tensor.default",
    ]
    quantize = next(node for node in program.graph.nodes if "quantize_per_tensor" in str(node.target))
    assert quantize.args[-3:] == (-128, 127, torch.int8)
    codes = [tensor for tensor in program.state_dict.values() if tensor.numel() == 8 * 6 * 9]
    assert [tensor.dtype for tensor in codes] == [torch.int8]  # and no float weight beside it


def test_a_corrected_bias_is_a_bias() -> None:
    module = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False))
    net, x = network_of(module, pictures(channels=6)), pictures(16, channels=6)
    program, simulation = traced(Decomposed(), net, everywhere(net, Spec(bits=3, correction="bias"), Spec()), x)
    convolutions = [node for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == 2
    assert all("corrected_bias" in node.args[2].name for node in convolutions)
    expected = simulation(x)
    apart = (program.module()(x) - expected).abs() / float((expected.max() - expected.min()) / 255)
    assert (apart < 0.5).float().mean() > 0.95


def test_pt2e_loads_where_its_operators_are_defined(tmp_path) -> None:
    net, x = mixed(), pictures(8, channels=6)
    program, _ = traced(Decomposed(), net, everywhere(net, Spec(), Spec()), x)
    define = "import torch.ao.quantization.fx._decomposed"
    assert torch.equal(alone(program, x, tmp_path, define), program.module()(x))


@pytest.mark.parametrize(
    ("weight", "activation", "words"),
    [
        (Spec(kind="piecewise", bits=4), Spec(), r"weight of layer '0'.*not evenly spaced.*--to pt2"),
        (Spec(), Spec(kind="power_of_two", bits=4), r"input of layer '0'.*not evenly spaced.*--to pt2"),
        (Spec(granularity="per_group:2"), Spec(), r"weight of layer '0'.*groups of channels.*--to pt2"),
        (Spec(bits=4, tensors=2), Spec(), r"weight of layer '0'.*sum of 2 tensors.*--to pt2"),
        (Spec(bits=4, correction="mean_variance"), Spec(), r"weight of layer '0'.*correction of its mean.*--to pt2"),
    ],
)
def test_what_pt2e_cannot_express_is_refused_with_its_layer(weight: Spec, activation: Spec, words: str) -> None:
    net, x = network_of(nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU()), pictures(channels=6)), pictures(channels=6)
    with pytest.raises(QuantopsyError, match=words):
        traced(Decomposed(), net, everywhere(net, weight, activation), x)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    x = many().tensors[0]
    net = capture(network(), (x[:2],))
    plan = everywhere(net, Spec(bits=4, granularity="per_channel", correction="bias"), Spec())
    ranges = calibrate(compile_network(net), [(x,)], wanted_statistics(net, [plan]))
    plan = portable(net, plan, ranges)
    return Recipe(
        plan=plan,
        transforms=(),
        encodings=encodings_of(net, plan, ranges),
        given=given_of(plan, ranges),
        model=model_of(net, "small"),
        expected=None,
        steps=(),
        provenance={},
    )


def test_a_recipe_is_compared_as_it_was_saved(recipe, tmp_path) -> None:
    done = export_program(recipe, tmp_path / "model.pt2", network(), many())
    assert (done.equal, done.largest, done.decisions) == (1.0, 0.0, 100.0)
    assert done.runtime == done.simulated
    assert done.departs[0] == 0.0
    assert done.bytes == (tmp_path / "model.pt2").stat().st_size
    assert torch.export.load(tmp_path / "model.pt2").module()(many().tensors[0][:4]).shape == (4, 5)
    done = export_program(recipe, tmp_path / "model.pt2", network(), many(), to="pt2e")
    assert done.equal > 0.9
    assert np.isclose(done.runtime, done.simulated, atol=2.0)


def test_the_command_writes_programs(recipe, command, tmp_path) -> None:
    recipe.save(tmp_path / "recipe.json")
    named = ("--model", "sample_models:network", "--data", "sample_models:many")
    code, out, err = command("export", ".", "--to", "pt2", *named, "--json")
    assert code == 0, err
    assert {"float", "simulated", "runtime", "equal", "file"} <= set(json.loads(out))
    assert (tmp_path / "model.pt2").exists()
    code, out, err = command("export", ".", "--to", "pt2e", *named)
    assert code == 0, err
    assert "import torch.ao.quantization.fx._decomposed" in " ".join(out.split())
    assert (tmp_path / "model.pt2e.pt2").exists()
    code, out, err = command("export", ".", "--to", "pt2", *named, "--out", "recipe.json/model.pt2")
    assert (code, out) == (2, "")
    assert "cannot be written" in err.strip().splitlines()[-1]
