"""Weights in a file are integers, whatever their grid, and a runtime makes of them the simulation's reals."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_files import by_reference, by_runtime, calibrated, everywhere, kinds, network_of, pictures, simulated, stored
from torch import nn

from quantopsy.core import Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.check import as_stored
from quantopsy.export.onnx.graph import FLOAT_WEIGHTS, to_onnx
from quantopsy.export.onnx.runtime import kernels
from quantopsy.export.onnx.weights import CodedWeight, StoredWeight, stored_weight
from quantopsy.export.onnx.writer import OnnxWriter, Value
from quantopsy.graph.network import Layer, Network

PIECEWISE = Spec(kind="piecewise", bits=4)
KINDS = {
    "piecewise": PIECEWISE,
    "piecewise, unsigned": Spec(kind="piecewise", bits=3, signed=False),
    "piecewise, 8 bits": PIECEWISE.with_bits(8),
    "powers of two": Spec(kind="power_of_two", bits=4),
    "powers of two, 6 bits": Spec(kind="power_of_two", bits=6),
    "sums of powers of two": Spec(kind="additive_power_of_two", bits=5),
    "sums of powers of two, 8 bits": Spec(kind="additive_power_of_two", bits=8),
    "k-means": Spec(kind="k_means", bits=3),
    "Lloyd and Max": Spec(kind="lloyd_max", bits=4),
    "learned": Spec(kind="learned", bits=4, options=(("start", "power_of_two"), ("open_gates", 3))),
    "two tensors": Spec(bits=4, tensors=2),
    "uniform": Spec(bits=4),
    "uniform, 8 bits": Spec(),
}
GRAINS = ("per_tensor", "per_channel", "per_group:3")


@cache
def layer_with(axis: int = 0) -> Layer:
    """A layer of which only the weight's name and axis are asked for."""
    network = network_of(nn.Conv2d(3, 4, 3), pictures())
    return replace(network.layers[0], weight_axis=axis)


def evaluated(graph: OnnxWriter, *names: str) -> list[np.ndarray]:
    """What constants of ``graph`` come to in ONNX Runtime."""
    model = graph.model([], [Value(name, ()) for name in names], {})
    for output, name in zip(model.graph.output, names, strict=True):
        output.CopyFrom(onnx.ValueInfoProto(name=name))
    return by_runtime(model)


@st.composite
def weights(draw) -> tuple[torch.Tensor, Spec, int]:
    """A weight of any shape, a spec of any kind, and the axis of its output channels."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(2, 8)), *draw(st.sampled_from([(), (3,), (3, 3)])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-6, 3))
    spec = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    correction = draw(st.sampled_from(["none", "mean_variance"])) if spec.tensors == 1 else "none"
    values = {**spec.__dict__, "granularity": draw(st.sampled_from(GRAINS)), "correction": correction}
    return weight, Spec(**values), draw(st.sampled_from([0, 1]))


@settings(max_examples=150, deadline=None)
@given(weights())
def test_the_reals_of_a_stored_weight_are_the_simulations(case: tuple[torch.Tensor, Spec, int]) -> None:
    weight, spec, axis = case
    layer, calibration = layer_with(axis), Calibration()
    found, reason = stored_weight(calibration, layer, spec, weight)
    if found is None:
        assert reason
        return
    graph = OnnxWriter(21)
    expected = calibration.quantized_weight(layer, spec, weight)
    (reals,) = evaluated(graph, found.write(graph, "weight"))
    if isinstance(found, CodedWeight):
        np.testing.assert_array_equal(reals, expected.numpy())
    else:  # another scale, in whose units the levels are whole numbers
        np.testing.assert_allclose(reals, expected.numpy(), rtol=1e-6, atol=1e-37)


@settings(max_examples=60, deadline=None)
@given(weights())
def test_integer_terms_add_up_to_the_weight(case: tuple[torch.Tensor, Spec, int]) -> None:
    weight, spec, axis = case
    layer, calibration = layer_with(axis), Calibration()
    found, _ = stored_weight(calibration, layer, spec, weight)
    if found is None or not found.has_terms:
        return
    graph = OnnxWriter(21)
    terms = found.write_terms(graph, "weight")
    laid = [-1 if dim == axis else 1 for dim in range(weight.dim())]
    total = torch.zeros(weight.shape, dtype=torch.float64)
    for term, codes in zip(terms, evaluated(graph, *(term.codes for term in terms)), strict=True):
        assert codes.dtype in (np.int8, np.uint8)
        scale = term.scale.double().reshape(laid) if term.scale.dim() else term.scale.double()
        total += scale * (torch.from_numpy(codes.astype(np.int64)) - term.zero_point)
    expected = calibration.quantized_weight(layer, spec, weight).double()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@cache
def mixed_network() -> Network:
    """Layers with weights of every kind, and a function of reals."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.SiLU(),
        nn.ConvTranspose2d(8, 6, 2), nn.Flatten(2), nn.Linear(25, 5), nn.Flatten(), nn.Linear(30, 4),
    )  # fmt: skip
    return network_of(module, pictures(channels=6))


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("granularity", GRAINS)
@pytest.mark.parametrize("name", KINDS)
def test_networks_give_what_the_simulation_gives(name: str, granularity: str, integers: bool) -> None:
    network, x = mixed_network(), pictures(8, channels=6)
    weight = Spec(**{**KINDS[name].__dict__, "granularity": granularity})
    plan = everywhere(network, weight, Spec())
    ranges = calibrated(network, plan, x)
    model = to_onnx(network, plan, ranges, integer_convolutions=integers)
    onnx.checker.check_model(model, full_check=True)
    expected = simulated(*as_stored(network, plan, model), ranges, x)[0].numpy()
    step = float(ranges.qparams(network.layers[-1].output, Spec()).scale)
    found = [by_runtime(model, x, optimised=on)[0] for on in (False, True)] + [by_reference(model, x)[0]]
    for outputs in found:
        apart = np.abs(outputs - expected) / step
        assert (apart < 0.5).mean() > 0.9
        assert apart.max() < 2.5


@pytest.mark.parametrize("correction", ["mean_variance", "bias"])
@pytest.mark.parametrize("integers", [False, True])
def test_corrections_are_in_the_file(correction: str, integers: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, bias=False), nn.Flatten(), nn.Linear(96, 3)
    )
    network, x = network_of(module, pictures()), pictures(16)
    weight = Spec(kind="piecewise", bits=2, granularity="per_channel", correction=correction)
    plan = everywhere(network, weight, Spec())
    ranges = calibrated(network, plan, x)
    model = to_onnx(network, plan, ranges, integer_convolutions=integers)
    expected = simulated(network, plan, ranges, x)[0].numpy()
    step = float(ranges.qparams(network.layers[-1].output, Spec()).scale)
    for on in (False, True):
        apart = np.abs(by_runtime(model, x, optimised=on)[0] - expected) / step
        assert (apart < 0.5).mean() > 0.9
        assert apart.max() < 1.5


@pytest.mark.parametrize(
    ("spec", "kind", "bytes_each"),
    [
        (Spec(kind="piecewise", bits=2), TensorProto.INT4, 0.5),  # of +-6, 4 bits as in the paper
        (PIECEWISE, TensorProto.INT8, 1),
        (Spec(kind="piecewise", bits=7), TensorProto.INT16, 2),
        (Spec(kind="piecewise", bits=3, signed=False), TensorProto.UINT4, 0.5),
        (Spec(kind="power_of_two", bits=4), TensorProto.UINT4, 0.5),
        (Spec(kind="power_of_two", bits=6), TensorProto.UINT8, 1),
        (Spec(kind="additive_power_of_two", bits=4), TensorProto.UINT4, 0.5),
        (Spec(kind="k_means", bits=4), TensorProto.UINT4, 0.5),
        (Spec(kind="lloyd_max", bits=5), TensorProto.UINT8, 1),
    ],
)
def test_codes_take_the_smallest_type(spec: Spec, kind: int, bytes_each: float) -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Conv2d(8, 16, 3), pictures(channels=8)), pictures(channels=8)
    plan = everywhere(network, spec)
    codes = stored(to_onnx(network, plan, calibrated(network, plan, x)), f"{network.layers[0].name}.weight.codes")
    assert codes.data_type == kind
    assert len(codes.raw_data) == 8 * 16 * 9 * bytes_each


def test_scales_of_groups_are_stored_once_and_one_group_is_a_channel() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(5, 6, 3), nn.Conv2d(6, 6, 3, groups=6))
    network, x = network_of(module, pictures(channels=5)), pictures(channels=5)
    for spec, name in ((Spec(), "scale"), (PIECEWISE, "outer_scale")):
        plan = everywhere(network, Spec(**{**spec.__dict__, "granularity": "per_group:2"}), Spec())
        model = to_onnx(network, plan, calibrated(network, plan, x))
        first, second = (stored(model, f"{layer.name}.weight.{name}") for layer in network.layers)
        assert list(first.dims) == [6, 3, 1, 1]  # 5 inputs: two pairs and one
        assert np.prod(second.dims) == 6


def test_powers_of_two_of_4_bits_run_in_integer_kernels() -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), pictures()), pictures(8)
    for kind, bits in (("power_of_two", 4), ("additive_power_of_two", 6)):
        plan = everywhere(network, Spec(kind=kind, bits=bits, granularity="per_channel"), Spec())
        model = to_onnx(network, plan, calibrated(network, plan, x))
        assert kernels(model, network).macs_share == 1.0


def test_piecewise_layers_are_two_products_of_integers_by_choice() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    network, x = network_of(module, pictures()), pictures(8)
    plan = everywhere(network, PIECEWISE, Spec())
    ranges = calibrated(network, plan, x)
    model = to_onnx(network, plan, ranges, integer_convolutions=True)
    assert (kinds(model).count("ConvInteger"), kinds(model).count("MatMulInteger")) == (2, 2)
    assert kernels(model, network).macs_share == 1.0
    assert kernels(to_onnx(network, plan, ranges), network).macs_share == 0.0


def test_tables_larger_than_their_weight_leave_it_in_reals_and_that_is_said() -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Conv2d(6, 6, 3, groups=6), pictures(channels=6)), pictures(channels=6)
    plan = everywhere(network, Spec(kind="k_means", bits=4, granularity="per_channel"), Spec())
    model = to_onnx(network, plan, calibrated(network, plan, x))
    said = json.loads(next(entry.value for entry in model.metadata_props if entry.key == FLOAT_WEIGHTS))
    assert said == {network.layers[0].name: "its codes and tables of k_means levels take no less"}
    assert kinds(model).count("Gather") == 0


def test_a_bias_that_leaves_int32_enlarges_the_scale_of_powers_of_two_as_well() -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        module.weight[1] *= 1e-9
        module.bias[1] = 0.7
    network, x = network_of(module, pictures()), pictures()
    plan = everywhere(network, Spec(kind="power_of_two", bits=4, granularity="per_channel"), Spec())
    ranges = calibrated(network, plan, x)
    model = to_onnx(network, plan, ranges)
    expected = simulated(network, plan, ranges, x)[0].numpy()
    step = float(ranges.qparams(network.layers[0].output, Spec()).scale)
    for on in (False, True):
        assert np.abs(by_runtime(model, x, optimised=on)[0] - expected).max() < 1.5 * step


@pytest.mark.parametrize("spec", [Spec(granularity="per_channel"), Spec(bits=4, kind="power_of_two"), Spec(bits=4)])
def test_products_with_several_matrices_run_optimised_too(spec: Spec) -> None:
    class Matrices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.Parameter(torch.randn(3, 8, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.factors

    torch.manual_seed(0)
    network, x = network_of(Matrices(), pictures()), pictures()
    plan = everywhere(network, spec, Spec())
    ranges = calibrated(network, plan, x)
    expected = simulated(network, plan, ranges, x)[0].numpy()
    step = float(ranges.qparams(network.layers[0].output, Spec()).scale)
    for on in (False, True):
        found = by_runtime(to_onnx(network, plan, ranges), x, optimised=on)[0]
        assert np.abs(found - expected).max() < 1.5 * step


def test_uniform_weights_stay_behind_dequantize_linear() -> None:
    found, _ = stored_weight(Calibration(), layer_with(), Spec(bits=4), torch.randn(4, 3, 3, 3))
    assert isinstance(found, StoredWeight)
    assert found.table is None
