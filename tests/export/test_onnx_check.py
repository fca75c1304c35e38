"""The comparison with the simulation, kernels and latencies: what is reported is so, and a wrong file is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_files import Then, by_runtime, calibrated, everywhere, network_of, pictures, simulated, stored
from small_net import SmallNet, randomise_norms
from torch import nn
from torch.utils.data import TensorDataset

from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.core import Plan, QuantopsyError, Spec
from quantopsy.data import open_data, prefetch
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.aten import WRITERS
from quantopsy.export.onnx.check import as_stored, verify
from quantopsy.export.onnx.export import export_onnx
from quantopsy.export.onnx.graph import to_onnx
from quantopsy.export.onnx.runtime import kernels, latency, open_session, saturates, seconds_by_layer
from quantopsy.metrics import resolve_metric

COUNT = 24


@pytest.fixture
def case():
    """A network, a plan of 8 bits, its ranges, and labelled images."""
    torch.manual_seed(0)
    module, x = randomise_norms(SmallNet()).eval(), pictures(COUNT, size=12)
    network = network_of(module, x)
    plan = everywhere(network, Spec(symmetric=True, signed=True, granularity="per_channel"), Spec())
    with torch.no_grad():
        labels = module(x).argmax(1)
    labels[::4] = (labels[::4] + 1) % 5
    return network, plan, calibrated(network, plan, x), open_data(TensorDataset(x, labels)), x, labels


def batches(images):
    return prefetch(images, np.array_split(np.arange(len(images)), 3))


def test_what_is_verified_is_what_other_software_computes(case) -> None:
    network, plan, ranges, images, x, labels = case
    model, exact = (to_onnx(network, made, ranges) for made in (plan, Plan()))
    found = verify(model, exact, network, plan, ranges, batches(images), resolve_metric("top1", True))

    def top1(outputs) -> float:
        return 100 * float((np.asarray(outputs).argmax(1) == labels.numpy()).mean())

    runs = {on: by_runtime(model, x, optimised=on)[0] for on in (False, True)}
    assert found.images == COUNT
    assert found.float_network == pytest.approx(75.0)
    assert found.simulated == pytest.approx(top1(simulated(network, plan, ranges, x)[0]))
    assert found.optimised.value == pytest.approx(top1(runs[True]))
    expected = simulated(*as_stored(network, plan, model), ranges, x)[0].numpy()
    assert found.stored == pytest.approx(top1(expected))
    step = float(ranges.qparams(network.layers[-1].output, Spec()).scale)
    for on, run in ((False, found.plain), (True, found.optimised)):
        apart = np.abs(runs[on] - expected) / step
        assert run.outputs.equal == pytest.approx((apart < 0.5).mean())
        assert run.outputs.within_step == pytest.approx((apart < 1.5).mean())
        assert run.outputs.largest == pytest.approx(apart.max(), abs=1e-3)
        assert run.layers.equal > 0.999
        assert run.layers.within_step == 1.0
        same = (runs[on].argmax(1) == simulated(network, plan, ranges, x)[0].numpy().argmax(1)).mean()
        assert run.decisions == pytest.approx(100 * same)
        assert list(run.by_layer) == list(network.names)


def test_a_file_that_computes_something_else_is_found_with_its_layer(case) -> None:
    network, plan, ranges, images, _, _ = case
    model, exact = (to_onnx(network, made, ranges) for made in (plan, Plan()))
    codes = stored(model, "right.0.weight.codes")
    wrong = numpy_helper.to_array(codes).copy()
    wrong[:, :, 1, 1] = -wrong[:, :, 1, 1]
    codes.CopyFrom(numpy_helper.from_array(wrong, codes.name))
    found = verify(model, exact, network, plan, ranges, batches(images), resolve_metric("top1", True))
    for run in (found.plain, found.optimised):
        shares = {layer: departure.within_step for layer, departure in run.by_layer.items()}
        assert shares.pop("right.0") < 0.9
        assert min(shares.values()) == 1.0  # each layer is judged from the inputs that it had


def test_biases_as_stored_are_those_of_the_file(case) -> None:
    network, plan, ranges, _, _, _ = case
    model = to_onnx(network, plan, ranges)
    network_stored, plan_stored = as_stored(network, plan, model)
    assert plan_stored == plan
    for layer, after in zip(network.layers, network_stored.layers, strict=True):
        if layer.bias is not None and layer.activation != "silu":
            codes, scale = (numpy_helper.to_array(stored(model, f"{layer.name}.bias.{p}")) for p in ("codes", "scale"))
            np.testing.assert_allclose(network_stored.tensors[after.bias].numpy(), codes * scale, rtol=1e-6)
    assert network_stored.names == network.names


def test_the_kernels_are_read_from_what_the_runtime_runs(case) -> None:
    network, plan, ranges, _, _, _ = case
    found = kernels(to_onnx(network, plan, ranges), network)
    assert found.real == ("depthwise.0",)  # a SiLU follows
    assert found.integer == ("stem.0", "left", "right.0", "head")
    macs = {layer.name: layer.macs for layer in network.layers}
    assert found.macs_share == pytest.approx(1 - macs["depthwise.0"] / sum(macs.values()))
    whole = kernels(to_onnx(network, plan, ranges, integer_convolutions=True), network)
    assert whole.real == ()
    assert whole.macs_share == 1.0
    assert kernels(to_onnx(network, Plan(), Calibration()), network).integer == ()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_few_bits_run_in_the_same_integer_kernels(bits: int) -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Sequential(Then(torch.relu), nn.Conv2d(4, 4, 3)), pictures()), pictures()
    plan = everywhere(network, Spec(bits=bits, granularity="per_channel"), Spec(bits=max(4, bits)))
    assert kernels(to_onnx(network, plan, calibrated(network, plan, x)), network).macs_share == 1.0


def test_latencies_are_of_the_models_named(case) -> None:
    network, plan, ranges, _, x, _ = case
    models = {"float": to_onnx(network, Plan(), Calibration()), "quantized": to_onnx(network, plan, ranges)}
    found = latency({name: open_session(model) for name, model in models.items()}, network, (x,), runs=5)
    assert found.keys() == models.keys()
    for timed in found.values():
        assert 0 < timed.low <= timed.median <= timed.high
        assert timed.runs == 5
    by_layer = seconds_by_layer(models["quantized"], network, (x,), runs=3)
    assert by_layer.keys() == {*network.names, ""}
    assert all(by_layer[name] > 0 for name in ("stem.0", "left", "right.0", "head"))


def test_export_writes_a_file_that_runs_alone(case, tmp_path) -> None:
    network, plan, ranges, images, x, _ = case
    path = tmp_path / "small.onnx"
    done = export_onnx(network, plan, ranges, path, batches(images), resolve_metric(None, True))
    assert done.path == path
    assert done.bytes == path.stat().st_size
    assert 0 < done.size_ratio < 3  # a few thousand weights weigh less than their nodes
    assert done.float_weights == {}
    again = by_runtime(onnx.load(path), x, optimised=True)[0]
    step = float(ranges.qparams(network.layers[-1].output, Spec()).scale)
    assert np.abs(again - simulated(network, plan, ranges, x)[0].numpy()).max() < 2.5 * step


def test_an_operator_that_computes_another_function_leaves_no_file(case, tmp_path, monkeypatch) -> None:
    network, plan, ranges, images, _, _ = case
    monkeypatch.setitem(WRITERS, "add", lambda w, x, y: w.add("Add", x, w.add("Mul", y, w.graph.constant(1.01))))
    with pytest.raises(QuantopsyError, match=r"in float it is .* % off the network"):
        export_onnx(network, plan, ranges, tmp_path / "a.onnx", batches(images), resolve_metric(None, True))
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_in_a_line(case, tmp_path) -> None:
    network, plan, ranges, images, _, _ = case
    metric = resolve_metric(None, True)
    with pytest.raises(QuantopsyError, match="quantizes nothing"):
        export_onnx(network, Plan(), ranges, tmp_path / "a.onnx", batches(images), metric)
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantopsyError, match="cannot be written"):
        export_onnx(network, plan, ranges, tmp_path / "file" / "a.onnx", batches(images), metric)
    with pytest.raises(QuantopsyError, match="no image"):
        export_onnx(network, plan, ranges, tmp_path / "a.onnx", [], metric)
    broken, exact = (to_onnx(network, made, ranges) for made in (plan, Plan()))
    broken.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(QuantopsyError, match="checker refuses"):
        verify(broken, exact, network, plan, ranges, batches(images), metric)
    with pytest.raises(QuantopsyError, match="does not load"):
        open_session(broken)
    split = to_onnx(network, plan, ranges)
    split.graph.node.append(onnx.helper.make_node("Reshape", [split.graph.input[0].name, "seven"], ["part"]))
    split.graph.initializer.append(numpy_helper.from_array(np.array([7], np.int64), "seven"))
    split.graph.output.append(onnx.helper.make_tensor_value_info("part", onnx.TensorProto.FLOAT, [7]))
    with pytest.raises(QuantopsyError, match=r"ONNX model: the runtime fails on it .*Reshape"):
        verify(split, exact, network, plan, ranges, batches(images), metric)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_outputs_off_any_grid_are_measured_by_their_range() -> None:
    torch.manual_seed(0)
    network, x = network_of(nn.Conv2d(3, 5, 3), pictures()), pictures(8)
    plan = everywhere(network, Spec(bits=4))
    images = open_data(TensorDataset(x))
    ranges = calibrated(network, plan, x)
    model, exact = (to_onnx(network, made, ranges) for made in (plan, Plan()))
    found = verify(model, exact, network, plan, ranges, batches(images), resolve_metric(None, False))
    assert found.plain.outputs.equal == 1.0
    assert found.plain.outputs.largest < 1e-3
    assert found.plain.by_layer == {}
    assert found.optimised.value == pytest.approx(found.simulated)


def test_onnx_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, quantopsy.api, quantopsy.cli.app; print({'onnx', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("scheme", ["per-tensor", "per-channel"])
def test_resnet20_runs_as_simulated(zoo, scheme: str, tmp_path) -> None:
    module = zoo.network("resnet20")
    images = open_data(zoo.images("resnet20", "cifar10_test", 48))
    x = images.batch(range(32)).inputs
    network = network_of(module, *x)
    plan = full_plan(network, grids(scheme, 8))
    ranges = calibrated(network, plan, *x)
    done = export_onnx(network, plan, ranges, tmp_path / "r.onnx", batches(images), resolve_metric("top1", True))
    assert done.kernels.macs_share == 1.0
    assert done.size_ratio < 0.3
    for run in (done.verified.plain, done.verified.optimised):
        assert run.outputs.within_step > 0.99
        assert run.layers.within_step == 1.0
        assert run.layers.equal > 0.9999
        assert run.decisions > 97
    assert abs(done.verified.optimised.value - done.verified.stored) <= 100 / 48 + 1e-9


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux what the processor has")
def test_whether_sums_saturate_is_measured() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    expected = "avx2" in flags and not {"avx512_vnni", "avx_vnni", "avxvnni"} & flags
    assert saturates() == expected
