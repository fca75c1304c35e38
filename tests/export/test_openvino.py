"""The same files in OpenVINO: the simulation's values, in integers where it has kernels, in float32 elsewhere."""

from __future__ import annotations

import json
import sys

import onnx
import pytest
import torch
from onnx_files import Then, calibrated, everywhere, network_of, pictures
from torch import nn
from torch.utils.data import TensorDataset

from quantopsy.core import Plan, QuantopsyError, Spec
from quantopsy.data import Batch, open_data
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.check import Run, verify
from quantopsy.export.onnx.graph import to_onnx
from quantopsy.export.onnx.runtime import run
from quantopsy.export.onnx.runtimes import further
from quantopsy.graph.network import Network
from quantopsy.metrics import resolve_metric

openvino = pytest.importorskip("quantopsy.export.onnx.openvino", exc_type=QuantopsyError)
SYMMETRIC = Spec(granularity="per_channel", symmetric=True, signed=True)


def verified(network: Network, plan: Plan, x: torch.Tensor) -> Run:
    ranges, images = calibrated(network, plan, x), open_data(TensorDataset(x))
    batches: list[Batch] = [images.batch(range(len(x)))]
    metric, also = resolve_metric(None, False), {"openvino": openvino.open_session}
    model, exact = (to_onnx(network, made, ranges) for made in (plan, Plan()))
    return verify(model, exact, network, plan, ranges, batches, metric, also=also).also["openvino"]


@pytest.fixture(scope="module")
def small() -> tuple[Network, torch.Tensor]:
    torch.manual_seed(0)
    x = pictures(16)
    return network_of(nn.Sequential(Then(torch.relu), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(216, 5)), x), x


def test_the_layers_are_the_simulations_and_multiply_in_integers(small) -> None:
    network, x = small
    plan = everywhere(network, SYMMETRIC, Spec())
    found = verified(network, plan, x)
    assert list(found.by_layer) == list(network.names)
    assert found.layers.within_step == 1.0
    assert found.layers.equal > 0.999
    assert found.decisions > 90
    assert openvino.kernels(to_onnx(network, plan, calibrated(network, plan, x)), network).real == ()


def test_weights_off_centre_are_computed_in_reals_with_the_same_values(small) -> None:
    network, x = small
    plan = everywhere(network, Spec(granularity="per_channel"), Spec())
    assert verified(network, plan, x).layers.within_step == 1.0
    assert openvino.kernels(to_onnx(network, plan, calibrated(network, plan, x)), network).integer == ()


def test_reals_are_float32_on_every_processor(small) -> None:
    network, x = small
    session = openvino.open_session(to_onnx(network, Plan(), Calibration()))
    assert session.compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    with torch.inference_mode():
        (expected,) = network.module()(x)
    torch.testing.assert_close(run(session, network, (x,))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ceil", [False, True])
def test_zeros_that_an_average_counts_in_are_zeros(ceil: bool) -> None:
    torch.manual_seed(0)
    pool = nn.AvgPool2d(3, 2, padding=1, ceil_mode=ceil)
    x = pictures(8)  # no ReLU in front: the zero point is not 0
    network = network_of(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pool, nn.Conv2d(4, 4, 1)), x)
    assert verified(network, everywhere(network, SYMMETRIC, Spec()), x).layers.within_step == 1.0


def test_pixels_halfway_between_codes_are_no_layers_fault() -> None:
    torch.manual_seed(0)
    x = (torch.randint(0, 256, (16, 3, 8, 8)).float() - 127.5) / 127.5
    x[:, 0, 0, 0], x[:, 0, 0, 1] = -1.0, 1.0
    network = network_of(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    assert verified(network, everywhere(network, SYMMETRIC, Spec()), x).layers.within_step == 1.0


def test_what_it_refuses_is_told_in_a_line(small) -> None:
    network, _ = small
    broken = to_onnx(network, Plan(), Calibration())
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(QuantopsyError, match=r"OpenVINO.*does not load") as error:
        openvino.open_session(broken)
    assert "\n" not in str(error.value)
    with pytest.raises(QuantopsyError, match="runtime 'openvine'"):
        further(["openvine"])


def test_without_it_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "quantopsy.export.onnx.openvino", raising=False)
    monkeypatch.setattr("quantopsy.export.onnx.openvino", None, raising=False)
    monkeypatch.delattr("quantopsy.export.onnx.openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(QuantopsyError, match=r"pip install \"quantopsy\[openvino\]\""):
        further(["openvino"])


def test_export_and_parity_run_it_besides(small, command, tmp_path) -> None:
    from test_recipe_export import recipe_of

    recipe_of(SYMMETRIC).save(tmp_path / "recipe.json")
    named = ("--model", "sample_models:network", "--data", "sample_models:many", "--also", "openvino")
    code, out, err = command("export", ".", *named, "--json")
    assert code == 0, err
    found = json.loads(out)["also"]["openvino"]
    assert found["layers"]["within_step"] == 1.0
    assert found["integer"]["macs_share"] > 0.5
    assert found["latency"]["quantized"]["low"] > 0
    assert onnx.load(tmp_path / "model.onnx").graph.node
    code, out, _ = command("export", ".", *named)
    assert code == 0
    assert "In openvino" in " ".join(out.split())
    code, out, _ = command("parity", ".", *named, "--json")
    assert code == 0
    way = next(way for way in json.loads(out)["ways"] if way["name"] == "file, OpenVINO")
    assert way["layers"]["first"] is None
