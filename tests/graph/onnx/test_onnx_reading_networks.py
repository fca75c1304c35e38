"""A network through an ONNX file has the layers, the names and the noise of the network from PyTorch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import NETWORKS
from onnx_models import by_runtime
from small_net import randomise_norms
from torch import Tensor, nn

import quantopsy as qp
from quantopsy.core import Plan, QuantopsyError
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.graph import to_onnx
from quantopsy.graph.capture import capture, load
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network

X = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(NETWORKS[name]())


def exported(module: nn.Module, path: Path, how: str, x: Tensor = X) -> Path:
    """``module`` as a file: by torch's exporters (the older one at a fixed batch of 1 or 2 too), or by ours."""
    if how == "quantopsy":
        path.write_bytes(to_onnx(capture(module, (x[:2],)), Plan(), Calibration()).SerializeToString())
        return path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            if how == "torch":
                free = ({0: torch.export.Dim.DYNAMIC},)
                torch.onnx.export(
                    module, (x[:2],), path, dynamo=True, dynamic_shapes=free, external_data=False, verbose=False
                )
            else:
                images = {"a batch of 1": 1, "a batch of 2": 2}.get(how)
                torch.onnx.export(
                    module, (x[: images or 2],), path, dynamo=False, input_names=["x"], opset_version=17,
                    dynamic_axes=None if images else {"x": {0: "images"}},
                )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
    return path


def described(network: Network) -> list[tuple]:
    return [
        (x.name, x.activation, x.weight_shape, x.macs, x.groups, len(x.inputs), int(np.prod(x.output_shape)))
        for x in network.layers
    ]


CASES = [(name, how) for name in NETWORKS for how in ("torchscript", "a batch of 1", "quantopsy")]
CASES += [("residual", "torch"), ("tokens", "torch"), ("shuffled", "a batch of 2")]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_layers_and_outputs_are_those_of_the_module(name: str, how: str, tmp_path) -> None:
    module = network(name)
    path = exported(module, tmp_path / "model.onnx", how)
    read = load(path)
    other = capture(read, (X[:2],))
    assert described(other) == described(capture(module, (X[:2],)))
    assert all(layer.onnx_node in {node.name for node in onnx.load(path).graph.node} for layer in other.layers)
    program = compile_network(other)
    for count in (1, 6):
        with torch.no_grad():
            wanted = module(X[:count])
            torch.testing.assert_close(read(X[:count]), wanted, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(program.forward(program.place((X[:count],)))[0], wanted, rtol=1e-4, atol=1e-5)
    if how != "a batch of 1":
        images = X[:2].numpy()
        np.testing.assert_allclose(
            by_runtime(onnx.load(path), images)[0], read(X[:2]).detach().numpy(), rtol=1e-4, atol=1e-5
        )


def test_lines_of_the_code_come_through_torchs_exporter(tmp_path) -> None:
    module = network("residual")
    here = capture(module, (X[:2],)).layer("layer1.0.add")
    there = capture(load(exported(module, tmp_path / "model.onnx", "torch")), (X[:2],)).layer("layer1.0.add")
    assert here.source is not None
    assert here.source.endswith(f"networks.py:{here.source.rpartition(':')[2]}")
    assert there.source == here.source
    older = capture(load(exported(module, tmp_path / "older.onnx", "torchscript")), (X[:2],)).layer("layer1.0.add")
    assert older.source == older.onnx_node == "/layer1/layer1.0/Add"


def test_noise_and_verdicts_are_those_of_the_module(tmp_path) -> None:
    """Cells of all layers at 8 and 4 bits, through files of both of torch's exporters."""
    module = network("small")
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        images = torch.utils.data.TensorDataset(x, module(x).argmax(1))
    frames = []
    for how in (None, "torch", "torchscript"):
        model = module if how is None else str(exported(module, tmp_path / f"{how}.onnx", how))
        study = qp.analyze(model, images, out=tmp_path / f"study of {how}", bits=(8, 4), mode="exact")
        frames.append(study.frame())
    wanted = frames[0]
    for found in frames[1:]:
        for column in ("layer", "name", "bits", "verdict", "degradation"):
            assert list(found[column]) == list(wanted[column])
        np.testing.assert_allclose(found["noise"], wanted["noise"], rtol=1e-3)


def test_images_that_a_file_mixes_are_refused(tmp_path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).mean((2, 3))
            return y - y.mean(0, keepdim=True)

    path = exported(Mixed().eval(), tmp_path / "model.onnx", "a batch of 1")
    with pytest.raises(QuantopsyError, match=r"an image alone gives other outputs than in a batch"):
        capture(load(path), (X[:2],))


def test_a_number_of_images_that_cannot_be_freed_is_refused(tmp_path) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).permute(1, 0, 2, 3).reshape(4, 100).t()

    path = exported(Turned().eval(), tmp_path / "model.onnx", "a batch of 1")
    with pytest.raises(QuantopsyError, match=r"Reshape.* does not run|batch size is fixed"):
        capture(load(path), (X[:2],))


def test_a_real_network_through_a_file(zoo, tmp_path) -> None:
    name = "resnet20"
    module = zoo.network(name)
    images = zoo.images(name, zoo.NETWORKS[name]["datasets"][0], limit=2)
    x = torch.stack([images[0][0], images[1][0]])
    path = exported(module, tmp_path / "model.onnx", "torch", x)
    read = load(path)
    here, there = (capture(m, (x,)) for m in (module, read))
    assert [layer.weight_shape for layer in here.layers] == [layer.weight_shape for layer in there.layers]
    assert [layer.activation for layer in here.layers] == [layer.activation for layer in there.layers]
    assert [layer.name for layer in here.layers if layer.weight] == [
        layer.name for layer in there.layers if layer.weight
    ]
    with torch.no_grad():
        np.testing.assert_allclose(by_runtime(onnx.load(path), x.numpy())[0], read(x).numpy(), rtol=1e-3, atol=1e-4)
