"""A plan as QDQ: what is stored, where values are quantized, and that runtimes give what the simulation gives."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx_files import (
    Then,
    by_reference,
    by_runtime,
    calibrated,
    everywhere,
    kinds,
    network_of,
    pictures,
    simulated,
    stored,
)
from random_net import random_net
from small_net import SmallNet, randomise_norms
from torch import nn

from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.export.onnx.check import as_stored
from quantopsy.export.onnx.graph import to_onnx
from quantopsy.graph.capture import capture
from quantopsy.graph.network import Network

PER_CHANNEL = Spec(symmetric=True, signed=True, granularity="per_channel")


def exported(network, plan: Plan, *inputs: torch.Tensor, integer_convolutions: bool = False):
    ranges = calibrated(network, plan, *inputs)
    model = to_onnx(network, plan, ranges, integer_convolutions=integer_convolutions)
    onnx.checker.check_model(model, full_check=True)
    return model, ranges


def steps_apart(
    network, plan: Plan, *inputs: torch.Tensor, optimised: bool = False, reference: bool = False, **choices: bool
):
    """Every output element's distance to the simulation as stored, in steps of the last layer's grid."""
    model, ranges = exported(network, plan, *inputs, **choices)
    expected = simulated(*as_stored(network, plan, model), ranges, *inputs)[0].numpy()
    found = by_reference(model, *inputs) if reference else by_runtime(model, *inputs, optimised=optimised)
    last = network.layers[-1]
    step = float(ranges.qparams(last.output, plan[Site(last.name, "output")]).scale)
    return np.abs(found[0] - expected) / step


GRIDS = {
    "int8 per tensor": (Spec(), Spec()),
    "int8 per channel": (PER_CHANNEL, Spec()),
    "int8 asymmetric per channel": (Spec(granularity="per_channel"), Spec()),
    "uint8 weights": (Spec(symmetric=True, signed=False), Spec()),
    "narrow": (Spec(symmetric=True, signed=True, narrow=True), Spec(symmetric=True, signed=True, narrow=True)),
    "int4 per tensor": (Spec(bits=4), Spec()),
    "int4 per channel": (PER_CHANNEL.with_bits(4), Spec()),
    "uint4": (Spec(bits=4, symmetric=True, signed=False), Spec()),
    "int3": (PER_CHANNEL.with_bits(3), Spec()),
    "int6 with 5-bit activations": (PER_CHANNEL.with_bits(6), Spec(bits=5)),
    "signed activations": (PER_CHANNEL, Spec(signed=True, symmetric=True)),
    "int16": (PER_CHANNEL.with_bits(16), Spec(bits=16)),
    "12-bit activations": (PER_CHANNEL, Spec(bits=12)),
    "per group": (Spec(granularity="per_group:3"), Spec()),
    "int4 per group": (Spec(granularity="per_group:4", bits=4), Spec()),
    "power-of-two scales": (Spec(options=(("scale", "power_of_two"),)), Spec(options=(("scale", "power_of_two"),))),
}


@cache
def small_network() -> Network:
    """A :class:`SmallNet`."""
    torch.manual_seed(0)
    return network_of(randomise_norms(SmallNet()), pictures(size=12))


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_gives_what_the_simulation_gives(name: str, optimised: bool) -> None:
    torch.manual_seed(0)
    network, x = small_network(), pictures(16, size=12)
    apart = steps_apart(network, everywhere(network, *GRIDS[name]), x, optimised=optimised)
    assert (apart < 0.5).mean() > 0.95
    # At 16 bits float rounding is a good part of a step.
    assert apart.max() < (1.5 if "16" not in name and "12" not in name else 20)


@pytest.mark.parametrize("name", ["int8 per tensor", "int8 per channel", "narrow", "int4 per channel", "int16"])
def test_the_reference_evaluator_gives_what_the_simulation_gives(name: str) -> None:
    torch.manual_seed(0)
    network, x = small_network(), pictures(4, size=12)
    apart = steps_apart(network, everywhere(network, *GRIDS[name]), x, reference=True)
    assert (apart < 0.5).mean() > 0.9
    assert apart.max() < (1.5 if "16" not in name else 20)


@pytest.mark.parametrize("seed", range(12))
def test_networks_of_any_structure_give_what_the_simulation_gives(seed: int) -> None:
    network, x = network_of(random_net(seed), pictures(size=10)), pictures(12, size=10)
    plan = everywhere(network, PER_CHANNEL, Spec())
    for optimised in (False, True):
        apart = steps_apart(network, plan, x, optimised=optimised)
        assert (apart < 0.5).mean() > 0.9
        assert apart.max() < 2.5


def test_a_random_part_of_the_sites_is_quantized_where_the_engine_does_it() -> None:
    network, x = network_of(random_net(3), pictures(size=10)), pictures(12, size=10)
    full = everywhere(network, PER_CHANNEL, Spec())
    last = Site(network.layers[-1].name, "output")
    draw = np.random.default_rng(0)
    for _ in range(12):
        plan = Plan.of({site: spec for site, spec in full.items() if site == last or draw.random() < 0.5})
        apart = steps_apart(network, plan, x)
        assert (apart < 0.5).mean() > 0.9
        assert apart.max() < 2.5


def test_weights_are_stored_as_the_integers_that_torch_computes() -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Conv2d(3, 5, 3), pictures()), pictures()
    model, _ = exported(network, everywhere(network, PER_CHANNEL, Spec()), x)
    layer = network.layers[0]
    codes, scale = (numpy_helper.to_array(stored(model, f"{layer.name}.weight.{part}")) for part in ("codes", "scale"))
    assert codes.dtype == np.int8
    weight = network.tensors[layer.weight]
    np.testing.assert_allclose(scale, 2 * weight.abs().amax((1, 2, 3)) / 255, rtol=1e-6)
    expected = torch.fake_quantize_per_channel_affine(
        weight, torch.from_numpy(scale.copy()), torch.zeros(5, dtype=torch.int32), 0, -128, 127
    )
    apart = np.abs(codes - np.round(expected.numpy() / scale.reshape(-1, 1, 1, 1)))
    assert (apart == 0).mean() > 0.98  # torch multiplies by 1 / scale, which ties feel
    assert apart.max() <= 1


@pytest.mark.parametrize(
    ("spec", "kind", "bytes_each"),
    [
        (Spec(), TensorProto.INT8, 1),
        (Spec(symmetric=True, signed=False), TensorProto.UINT8, 1),
        (Spec(bits=4), TensorProto.INT4, 0.5),
        (Spec(bits=2, symmetric=True, signed=False), TensorProto.UINT4, 0.5),
        (Spec(bits=5), TensorProto.INT8, 1),
        (Spec(bits=16), TensorProto.INT16, 2),
        (Spec(bits=9, symmetric=True, signed=False), TensorProto.UINT16, 2),
    ],
)
def test_weights_take_the_smallest_type_of_onnx(spec: Spec, kind: int, bytes_each: float) -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Conv2d(3, 4, 3), pictures()), pictures()
    model, _ = exported(network, everywhere(network, spec), x)
    codes = stored(model, f"{network.layers[0].name}.weight.codes")
    assert codes.data_type == kind
    assert len(codes.raw_data) == 3 * 4 * 9 * bytes_each


def test_a_bias_is_int32_on_the_scale_of_input_and_weight() -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Conv2d(3, 5, 3), pictures()), pictures()
    plan = everywhere(network, PER_CHANNEL, Spec())
    model, ranges = exported(network, plan, x)
    layer = network.layers[0]
    codes, scale, weight_scale = (
        stored(model, f"{layer.name}.{name}") for name in ("bias.codes", "bias.scale", "weight.scale")
    )
    assert codes.data_type == TensorProto.INT32
    input_scale = ranges.qparams(layer.inputs[0], plan[Site(layer.name, "input")]).scale.numpy()
    np.testing.assert_array_equal(numpy_helper.to_array(scale), numpy_helper.to_array(weight_scale) * input_scale)
    reals = numpy_helper.to_array(codes) * numpy_helper.to_array(scale)
    apart = np.abs(reals - network.tensors[layer.bias].numpy())
    assert (apart <= 0.51 * numpy_helper.to_array(scale)).all()


def test_a_bias_that_leaves_int32_enlarges_the_scale_of_its_weight() -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        module.weight[1] *= 1e-9  # a channel next to nothing, whose bias is what it gives
        module.bias[1] = 0.7
    network, x = network_of(module, pictures()), pictures()
    plan = everywhere(network, PER_CHANNEL, Spec())
    model, ranges = exported(network, plan, x)
    expected = simulated(network, plan, ranges, x)[0].numpy()
    step = float(ranges.qparams(network.layers[0].output, Spec()).scale)
    for optimised in (False, True):
        assert np.abs(by_runtime(model, x, optimised=optimised)[0] - expected).max() < 1.5 * step


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_a_channel_without_weights_gives_its_bias(granularity: str) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        module.weight[1 if granularity == "per_channel" else slice(None)] = 0  # a pruned channel, or layer
        module.bias.copy_(torch.tensor([0.01, 0.013, -0.02, 0.0]))
        module.weight *= 0.01
    network, x = network_of(module, 40 * pictures()), 40 * pictures()
    plan = everywhere(network, Spec(symmetric=True, signed=True, granularity=granularity), Spec())
    model, ranges = exported(network, plan, x)
    expected = simulated(network, plan, ranges, x)[0].numpy()
    step = float(ranges.qparams(network.layers[0].output, Spec()).scale)
    for optimised in (False, True):
        apart = np.abs(by_runtime(model, x, optimised=optimised)[0] - expected) / step
        assert apart[:, 1].max() < 0.5
        assert apart.max() < 1.5


def test_a_corrected_bias_is_stored_corrected() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    network, x = network_of(Two(), pictures()), pictures(16)
    weight = Spec(bits=3, correction="bias")
    plan = everywhere(network, weight, Spec())
    model, ranges = exported(network, plan, x)
    assert stored(model, "second.bias.codes").data_type == TensorProto.INT32  # made for the correction
    expected = simulated(network, plan, ranges, x)[0].numpy()
    step = float(ranges.qparams(network.layers[-1].output, Spec()).scale)
    for optimised in (False, True):
        apart = np.abs(by_runtime(model, x, optimised=optimised)[0] - expected) / step
        assert (apart < 0.5).mean() > 0.85  # against the real bias
        assert apart.max() < 1.5
        assert (steps_apart(network, plan, x, optimised=optimised) < 0.5).mean() > 0.99
    uncorrected = to_onnx(network, everywhere(network, Spec(bits=3), Spec()), ranges)
    assert np.abs(by_runtime(uncorrected, x)[0] - expected).mean() > step


def test_only_weights_or_only_activations() -> None:
    torch.manual_seed(0)
    network, x = small_network(), pictures(8, size=12)
    weights = everywhere(network, PER_CHANNEL)
    model, ranges = exported(network, weights, x)
    assert "QuantizeLinear" not in kinds(model)
    expected = simulated(network, weights, ranges, x)[0].numpy()
    np.testing.assert_allclose(by_runtime(model, x)[0], expected, rtol=1e-4, atol=1e-5)
    activations = everywhere(network, None, Spec())
    assert steps_apart(network, activations, x).max() < 1.5


def test_an_input_on_its_producers_grid_gets_no_second_pair() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.first(x))
            left, right = self.left(y), self.right(y)
            return torch.cat([left + right, y], 1)

    torch.manual_seed(0)
    network, x = network_of(Shared(), pictures()), pictures()
    model, _ = exported(network, everywhere(network, PER_CHANNEL, Spec()), x)
    # The input, and each of the five layers; y has one pair for its three readers.
    assert kinds(model).count("QuantizeLinear") == 6
    readers = [node for node in model.graph.node if "relu.codes" in node.input]
    assert [node.op_type for node in readers] == ["DequantizeLinear"]
    optimised = steps_apart(network, everywhere(network, PER_CHANNEL, Spec()), x, optimised=True)
    assert optimised.max() < 1.5


def test_an_input_on_another_grid_than_its_producers_output_is_quantized_again() -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), pictures()), pictures(8)
    full = everywhere(network, PER_CHANNEL, Spec())
    plan = full | {Site(network.layers[1].name, "input"): Spec(bits=4)}
    model, _ = exported(network, plan, x)
    assert kinds(model).count("QuantizeLinear") == kinds(exported(network, full, x)[0]).count("QuantizeLinear") + 1
    assert steps_apart(network, plan, x).max() < 1.5


def test_two_roundings_behind_each_other_stay_two_in_the_runtime() -> None:
    torch.manual_seed(0)
    x = pictures(8)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    unfused = capture(module, (x[:2],), unfused=("relu",))
    plan = everywhere(unfused, PER_CHANNEL, Spec())
    assert steps_apart(unfused, plan, x, optimised=True).max() < 0.5
    network = network_of(module, x)
    plan = everywhere(network, PER_CHANNEL, Spec())
    plan |= {Site(network.layers[1].name, "input"): Spec(signed=True, symmetric=True)}
    assert steps_apart(network, plan, x, optimised=True).max() < 0.5


CLIPS = {
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "hardtanh": lambda x: nn.functional.hardtanh(x, -0.25, 0.5),
    "clamp": lambda x: x.clamp(-0.3),
    "each channel": lambda x: torch.clamp(
        x, torch.tensor([0.0, -0.1, 0.1, 0.0]).reshape(-1, 1, 1), torch.tensor([0.3, 0.2, 9.0, 0.5]).reshape(-1, 1, 1)
    ),
}


@pytest.mark.parametrize("activation", [Spec(), Spec(symmetric=True, signed=True), Spec(bits=4), Spec(bits=12)])
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_behind_a_layer_is_a_clip_of_codes(name: str, activation: Spec) -> None:
    torch.manual_seed(0)
    network, x = network_of(Then(CLIPS[name]), pictures()), pictures(16)
    assert len(network.layers) == 1
    plan = everywhere(network, PER_CHANNEL, activation)
    model, ranges = exported(network, plan, x)
    for optimised in (False, True):
        assert steps_apart(network, plan, x, optimised=optimised).max() < 1.5
    if activation.bits <= 8:  # the convolution's own result is what is quantized
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        assert [node.op_type for node in model.graph.node if conv.output[0] in node.input] == ["QuantizeLinear"]
    assert np.isfinite(ranges.range(network.layers[0].output)[0])


def test_a_relu_whose_grid_starts_at_zero_costs_nothing() -> None:
    torch.manual_seed(0)
    network, x = network_of(Then(torch.relu), pictures()), pictures(16)
    model, _ = exported(network, everywhere(network, PER_CHANNEL, Spec()), x)
    assert not {"Relu", "Clip", "Max", "Min"} & set(kinds(model))


def test_values_that_only_move_do_so_as_codes() -> None:
    def moved(x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.pad(x[:, :, ::2], (1, 0, 2, 0)).flatten(2).transpose(1, 2)
        return y.split([2, y.shape[1] - 2], 1)[1]

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(moved(self.first(x)))

    torch.manual_seed(0)
    network, x = network_of(Moved(), pictures()), pictures(8)
    plan = everywhere(network, PER_CHANNEL, Spec())
    model, _ = exported(network, plan, x)
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {info.name: info.type.tensor_type.elem_type for info in inferred.graph.value_info}
    movers = [node for node in model.graph.node if node.op_type in ("Pad", "Slice", "Reshape", "Transpose")]
    assert len(movers) >= 5
    assert {types[node.output[0]] for node in movers} == {TensorProto.UINT8}
    assert kinds(model).count("QuantizeLinear") == 3  # the input, and two layers
    for optimised in (False, True):
        assert steps_apart(network, plan, x, optimised=optimised).max() < 1.5


def test_a_maximum_is_of_codes() -> None:
    torch.manual_seed(0)
    network, x = network_of(Then(nn.MaxPool2d(3, 2, 1)), pictures()), pictures(8)
    plan = everywhere(network, PER_CHANNEL, Spec())
    model, _ = exported(network, plan, x)
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    assert pool.input[0] == "conv2d.codes"
    for optimised in (False, True):
        assert steps_apart(network, plan, x, optimised=optimised).max() < 1.5


@pytest.mark.parametrize("function", [lambda y: y, torch.relu, nn.functional.relu6, lambda y: y.clamp(-0.3, 0.2)])
def test_the_runtime_leaves_float_weights_alone(function) -> None:
    torch.manual_seed(0)
    network, x = network_of(Then(function), pictures()), pictures(8)
    with torch.no_grad():
        network.tensors["first.weight"][0, 0, 0, 0] = 40.0  # 8 bits for all weights would leave of the rest nothing
    plan = everywhere(network, None, Spec())
    for optimised in (False, True):
        apart = steps_apart(network, plan, x, optimised=optimised)
        assert (apart < 0.5).mean() > 0.99
        assert apart.max() < 1.5


def test_activations_that_are_not_evenly_spaced_are_refused_with_their_layer() -> None:
    network, x = network_of(Then(torch.relu), pictures()), pictures()
    plan = everywhere(network, None, Spec(kind="power_of_two", bits=4))
    with pytest.raises(QuantopsyError, match=r"input of layer 'first'.*evenly spaced"):
        to_onnx(network, plan, calibrated(network, plan, x))


def test_an_opset_without_the_types_is_refused() -> None:
    network, x = network_of(Then(torch.relu), pictures()), pictures()
    plan = everywhere(network, Spec())
    with pytest.raises(QuantopsyError, match=r"opset 13.*21"):
        to_onnx(network, plan, calibrated(network, plan, x), opset=13)


@pytest.mark.parametrize("weight", [Spec(), PER_CHANNEL, PER_CHANNEL.with_bits(4), Spec(granularity="per_channel")])
@pytest.mark.parametrize("function", [nn.functional.silu, nn.functional.hardswish, lambda x: nn.functional.elu(x)])
def test_convolutions_that_go_on_in_reals_can_be_of_integers(function, weight: Spec) -> None:
    torch.manual_seed(0)
    network, x = network_of(Then(function), pictures()), pictures(8)
    plan = everywhere(network, weight, Spec())
    model, _ = exported(network, plan, x, integer_convolutions=True)
    # ONNX Runtime's kernel takes one zero point for all channels.
    assert ("ConvInteger" in kinds(model)) == (weight != Spec(granularity="per_channel"))
    assert "ConvInteger" not in kinds(exported(network, plan, x)[0])
    for optimised in (False, True):
        apart = steps_apart(network, plan, x, optimised=optimised, integer_convolutions=True)
        assert (apart < 0.5).mean() > 0.99
        assert apart.max() < 1.5


class Twice(nn.Module):
    """A convolution read twice, so that two layers have its weight and its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(torch.relu(self.shared(torch.relu(self.first(x))))).mean((2, 3))


@pytest.mark.parametrize("layer", ["shared", "shared_1"])
@pytest.mark.parametrize(
    "spec", [Spec(bits=3, correction="bias"), Spec(kind="k_means", bits=6, granularity="per_channel")]
)
def test_a_layer_in_float_keeps_its_tensors_beside_one_that_quantizes_and_corrects_them(layer: str, spec: Spec) -> None:
    torch.manual_seed(0)
    network, x = network_of(Twice(), pictures()), pictures(16)
    plan = Plan.of({Site(layer, "weight"): spec})
    model, ranges = exported(network, plan, x)
    expected = simulated(network, plan, ranges, x)[0].numpy()
    assert np.abs(expected - by_runtime(to_onnx(network, Plan(), ranges), x)[0]).max() > 1e-5
    np.testing.assert_allclose(by_runtime(model, x)[0], expected, atol=1e-6)


def test_layers_that_share_a_weight_share_its_codes() -> None:
    torch.manual_seed(0)
    network, x = network_of(Twice(), pictures()), pictures(16)
    model, _ = exported(network, everywhere(network, PER_CHANNEL, Spec()), x)
    names = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith("weight.codes")]
    assert names == ["first.weight.codes", "shared.weight.codes"]
    assert (steps_apart(network, everywhere(network, PER_CHANNEL, Spec()), x, optimised=True) < 0.5).mean() > 0.95


def test_activations_with_a_grid_per_channel_run_optimised_too() -> None:
    torch.manual_seed(0)
    network, x = network_of(Then(lambda y: y.relu().mean((2, 3), keepdim=True)), pictures()), pictures(16)
    plan = everywhere(network, PER_CHANNEL, Spec(granularity="per_channel"))
    model, ranges = exported(network, plan, x)
    expected = simulated(*as_stored(network, plan, model), ranges, x)[0].numpy()
    for optimised in (False, True):
        found = by_runtime(model, x, optimised=optimised)[0]
        step = float(
            ranges.qparams(network.layers[-1].output, plan[Site(network.layers[-1].name, "output")]).scale.min()
        )
        assert (np.abs(found - expected) < step / 2).mean() > 0.95
