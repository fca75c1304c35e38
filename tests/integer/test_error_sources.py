"""The six sources of error, each alone, against plans and sums worked out here."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from onnx_files import calibrated, everywhere, network_of, pictures
from small_net import SmallNet, randomise_norms
from torch import nn

from quantopsy.core import Plan, QuantopsyError, Spec
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.execute import compile_network
from quantopsy.integer.accumulator import Accumulator
from quantopsy.integer.error_sources import error_sources
from quantopsy.integer.network import ARITHMETICS, IntegerNetwork
from quantopsy.integer.requantize import Requantization

PER_CHANNEL = Spec(symmetric=True, signed=True, granularity="per_channel")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    x = pictures(8, size=12)
    network = network_of(randomise_norms(SmallNet()), x)
    plan = everywhere(network, PER_CHANNEL, Spec())
    ranges = calibrated(network, plan, x)
    found = error_sources(IntegerNetwork(network, plan, ranges), [(x[:5],), (x[5:],)])
    return network, plan, ranges, x, found


def engine_noise(network, plan: Plan, ranges, x) -> float:
    engine = ExactEngine(compile_network(network), ranges)
    reals, quantized = (run.outputs[0] for run in engine.run_tile((x,), [engine.prepare(plan)]))
    return float((quantized - reals).double().square().flatten(1).sum(1).mean())


@pytest.mark.parametrize("source", ["input", "weight", "output"])
def test_a_tensor_quantized_alone_is_the_plan_with_its_site_alone(case, source) -> None:
    network, plan, ranges, x, found = case
    rows = {row.layer: row for row in found.rows if row.source == source and row.layer is not None}
    assert set(rows) == {layer.name for layer in network.layers if source != "weight" or layer.weight is not None}
    for name, row in rows.items():
        alone = Plan.of({site: spec for site, spec in plan.items() if site == (name, source)})
        assert row.noise == pytest.approx(engine_noise(network, alone, ranges, x), rel=1e-4)
        assert row.noise > 0
        assert 20 < row.sqnr_db < 80
    whole = next(row for row in found.whole if row.source == source)
    everywhere_on = Plan.of({site: spec for site, spec in plan.items() if site.role == source})
    assert whole.noise == pytest.approx(engine_noise(network, everywhere_on, ranges, x), rel=1e-3)


def test_all_together_is_the_integer_network(case) -> None:
    network, plan, ranges, x, found = case
    (row,) = (row for row in found.rows if row.source == "all")
    reals = ExactEngine(compile_network(network), ranges).float_pass((x,))[0][0]
    quantized = IntegerNetwork(network, plan, ranges).run((x,))[0]
    noises = (quantized - reals).double().square().sum(1)
    assert row.noise == pytest.approx(float(noises.mean()), rel=1e-4)
    assert row.noise_stderr == pytest.approx(float(noises.std() / len(noises) ** 0.5), rel=1e-4)
    signal = float(reals.double().square().sum())
    assert row.sqnr_db == pytest.approx(10 * math.log10(signal / float(noises.sum())), rel=1e-4)
    assert row.decisions == pytest.approx(100 * float((quantized.argmax(1) == reals.argmax(1)).double().mean()))
    assert found.images == len(x)


def test_an_accumulator_that_is_wide_enough_and_exact_multiplication_cost_nothing(case) -> None:
    network, plan, ranges, x, _ = case
    integers = IntegerNetwork(network, plan, ranges)
    found = error_sources(integers, [(x,)], accumulators=[Accumulator(32)], requantizations=[Requantization()])
    for row in found.rows:
        if row.source in ("accumulator", "requantization") and row.layer != "depthwise.0":
            assert row.noise == 0.0 or row.layer is None
            assert row.sqnr_db == math.inf or row.layer is None


def test_narrower_accumulators_and_mantissas_cost_more(case) -> None:
    *_, found = case
    whole = {row.variant: row.noise for row in found.whole}
    assert whole["32 bits, wrap"] == 0.0
    assert whole["16 bits, wrap"] > whole["20 bits, wrap"]
    assert whole["16 bits, saturate"] > whole["20 bits, wrap"]
    assert whole["fixed_point 8-bit, half_up"] > whole["fixed_point 31-bit, half_up"]
    assert whole["fixed_point 31-bit, gemmlowp"] > whole["fixed_point 31-bit, half_up"]


def test_one_layers_errors_by_hand() -> None:
    torch.manual_seed(0)
    x = pictures(6)
    module = nn.Conv2d(3, 4, 3)
    network = network_of(module, x)
    plan = everywhere(network, Spec(bits=4), Spec())
    ranges = calibrated(network, plan, x)
    narrow = Accumulator(12)
    tflite = Requantization("fixed_point", "gemmlowp", 8)
    integers = IntegerNetwork(network, plan, ranges)
    found = error_sources(integers, [(x,)], accumulators=[narrow], requantizations=[tflite])
    noise = {row.source: row.noise for row in found.rows if row.layer is not None}
    layer = network.layers[0]
    grid, target = (ranges.qparams(value, Spec()) for value in (layer.inputs[0], layer.output))
    weight_grid = ranges.weight_qparams(layer, Spec(bits=4), module.weight)
    s_x, s_w, s_y = (float(one.scale) for one in (grid, weight_grid, target))
    # Bias: every element of a channel moves by its rounding.
    rounding = torch.round(module.bias.detach().double() / (s_x * s_w)) * s_x * s_w - module.bias.detach().double()
    assert noise["bias"] == pytest.approx(float(36 * rounding.square().sum()), rel=0.05)
    # Accumulator: sums of the integers that a 12-bit register wraps.
    q_x = grid.encode(x).double() - int(grid.zero_point)
    q_w = weight_grid.encode(module.weight.detach()).double() - int(weight_grid.zero_point)
    sums = F.conv2d(q_x, q_w, torch.round(module.bias.detach().double() / (s_x * s_w)))
    wrapped = (sums + 2048).remainder(4096) - 2048
    error = (wrapped - sums) * s_x * s_w
    assert noise["accumulator"] == pytest.approx(float(error.square().flatten(1).sum(1).mean()), rel=1e-3)
    assert noise["accumulator"] > 0
    # Requantization: steps of the output where an 8-bit mantissa and two roundings give another code.
    M = s_x * s_w / s_y
    exponent = math.frexp(M)[1]
    mantissa = round(math.frexp(M)[0] * 256)
    high = torch.floor(sums * mantissa / 256 + 0.5)
    device = torch.sign(high) * torch.floor(high.abs() / 2.0**-exponent + 0.5)
    steps = [
        (part + int(target.zero_point)).clamp(target.qmin, target.qmax) for part in (device, torch.round(sums * M))
    ]
    expected = float(((steps[0] - steps[1]) * s_y).square().flatten(1).sum(1).mean())
    assert noise["requantization"] == pytest.approx(expected, rel=1e-3)
    assert noise["requantization"] > 0


def test_the_frame_has_a_row_for_each_layer_source_and_variant(case) -> None:
    network, *_, found = case
    frame = found.frame()
    assert list(frame.columns) == ["layer", "source", "variant", "noise", "noise_stderr", "sqnr_db", "decisions"]
    assert not frame.duplicated(["layer", "source", "variant"]).any()
    assert list(frame["layer"].dropna().unique()) == list(network.names)
    assert frame["layer"].isna().sum() == len(found.whole) == 3 + 4 + 4 + 1 + 1
    assert set(frame[frame["layer"] == "pool"]["source"]) == {"input", "output"}


def test_without_layers_only_the_whole_network_is_measured(case) -> None:
    network, plan, ranges, x, found = case
    integers = IntegerNetwork(network, plan, ranges, ARITHMETICS["tflite"])
    only = error_sources(integers, [(x,)], by_layer=False)
    assert only.rows == only.whole
    weight = next(row for row in found.whole if row.source == "weight")
    assert next(row for row in only.whole if row.source == "weight").noise == pytest.approx(weight.noise, rel=1e-5)


def test_no_image_is_an_error(case) -> None:
    network, plan, ranges, *_ = case
    with pytest.raises(QuantopsyError, match="no image"):
        error_sources(IntegerNetwork(network, plan, ranges), [])
