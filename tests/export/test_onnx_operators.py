"""Every operator in float: ONNX Runtime and ONNX's reference give what torch gives, at any number of images."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx_files import Then, by_reference, by_runtime, network_of, pictures
from small_net import randomise_norms
from torch import nn

from quantopsy.core import Plan, QuantopsyError
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.graph import to_onnx


def check(module: nn.Module, *inputs: torch.Tensor, reference: bool = True) -> onnx.ModelProto:
    module.eval()
    network = network_of(module, *inputs)
    model = to_onnx(network, Plan(), Calibration())
    onnx.checker.check_model(model, full_check=True)
    for count in (len(inputs[0]), 1):
        some = [x[:count] for x in inputs]
        with torch.no_grad():
            expected = module(*some).numpy()
        np.testing.assert_allclose(by_runtime(model, *some)[0], expected, rtol=1e-4, atol=2e-5)
        if reference:
            np.testing.assert_allclose(by_reference(model, *some)[0], expected, rtol=1e-4, atol=2e-5)
    return model


POINTWISE = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.4, 0.7),
    "clamp": lambda x: x.clamp(-0.3, 0.5),
    "clamp_min": lambda x: x.clamp(min=-0.2),
    "clamp_max": lambda x: x.clamp(max=0.2),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.6),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus of 2": lambda x: F.softplus(x, beta=2.0),
    "softplus cut short": lambda x: F.softplus(10 * x, beta=2.0, threshold=3.0),
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "exp, sqrt, log, abs, neg": lambda x: -(x.abs() + 1).sqrt().log().exp(),
    "pow": lambda x: x**2 + (x.abs() + 1) ** 0.5,
    "rsqrt": lambda x: torch.rsqrt(x.square() + 1),
    "arithmetic": lambda x: (3 - x) / (x * x + 2) - 0.5 * x,
    "add with alpha": lambda x: torch.add(x, x.relu(), alpha=0.25) - torch.sub(x, x.tanh(), alpha=3),
    "maximum": lambda x: torch.maximum(x, -x) + torch.minimum(x, x * 0.5),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_a_function_of_single_values(name: str) -> None:
    torch.manual_seed(0)
    check(Then(POINTWISE[name]), pictures())


MOVEMENTS = {
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(x.shape[0], 2, 2, 8, 8).reshape(-1, 4, 64),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "movedim": lambda x: x.movedim(1, -1),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(-1),
    "slice": lambda x: x[:, 1:3, ::2, -3:],
    "select": lambda x: x[:, 2],
    "narrow": lambda x: x.narrow(2, 1, 4),
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([3, 0])),
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "chunk": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "unbind": lambda x: x.unbind(1)[1] + x.unbind(1)[3],
    "stack": lambda x: torch.stack([x, x + 1], 2),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8) + x,
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad with a value": lambda x: F.pad(x, (1, 2), value=-1.5),
    "reflect": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 2, 3, 1), mode="circular"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "flip": lambda x: x.flip(2, 3),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
}


@pytest.mark.parametrize("name", MOVEMENTS)
def test_a_movement_of_values(name: str) -> None:
    torch.manual_seed(0)
    check(Then(MOVEMENTS[name]), pictures())


POOLS = {
    "max": nn.MaxPool2d(3, 2, 1),
    "max to the end": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max, dilated": nn.MaxPool2d(2, 1, dilation=2),
    "average": nn.AvgPool2d(3, 2, 1),
    "average without padding": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average to the end": nn.AvgPool2d(3, 2, ceil_mode=True),
    "average to the end, padded": nn.AvgPool2d(4, 3, 1, ceil_mode=True),
    "average by a divisor": nn.AvgPool2d(2, divisor_override=3),
    "global": nn.AdaptiveAvgPool2d(1),
    "adaptive": nn.AdaptiveAvgPool2d(4),
    "adaptive, uneven": nn.AdaptiveAvgPool2d((3, 5)),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pooling(name: str) -> None:
    torch.manual_seed(0)
    check(Then(POOLS[name]), pictures())


REDUCTIONS = {
    "mean": lambda x: x.mean((2, 3)),
    "mean, kept": lambda x: x.mean((2, 3), keepdim=True),
    "mean of channels": lambda x: x.mean(1),
    "sum": lambda x: x.sum((1, 2)),
    "amax": lambda x: x.amax((2, 3)),
    "mean of all": lambda x: x - x.mean((1, 2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_reduction(name: str) -> None:
    torch.manual_seed(0)
    check(Then(REDUCTIONS[name]), pictures())


RESIZES = {
    "nearest": {"scale_factor": 2, "mode": "nearest"},
    "nearest to a size": {"size": (13, 5), "mode": "nearest"},
    "bilinear": {"scale_factor": 2, "mode": "bilinear"},
    "bilinear, corners": {"size": (13, 11), "mode": "bilinear", "align_corners": True},
    "bilinear to a size": {"size": (13, 5), "mode": "bilinear"},
    "bilinear to a pixel": {"size": (1, 1), "mode": "bilinear"},
    "bicubic": {"scale_factor": 2, "mode": "bicubic"},
}


@pytest.mark.parametrize("name", RESIZES)
def test_a_resampling(name: str) -> None:
    torch.manual_seed(0)
    # The reference evaluator rounds the coordinates of some sizes in another way than torch and the runtime.
    check(Then(lambda x: F.interpolate(x, **RESIZES[name])), pictures(), reference="size" not in RESIZES[name])


@pytest.mark.parametrize("scale", [1.5, 1.3, 0.6, 0.29, (1.04, 1.5), (1.25, 2.0)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bilinear, corners", "bicubic", "bilinear, by sizes"])
def test_a_resampling_by_a_factor_that_is_no_ratio_of_sizes(mode: str, scale) -> None:
    """torch places values by the factor that it is given, and 7 pixels by 1.5 are 10, not 10.5."""
    torch.manual_seed(0)
    given = {"align_corners": True} if "corners" in mode else {"recompute_scale_factor": "sizes" in mode}

    def resample(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=scale, mode=mode.split(",", maxsplit=1)[0], **given)

    check(Then(resample), pictures(size=7), reference=False)


def test_a_resampling_that_keeps_the_size_but_not_the_places_is_named() -> None:
    network = network_of(Then(lambda x: F.interpolate(x, scale_factor=1.04, mode="bicubic")), pictures(size=7))
    with pytest.raises(QuantopsyError, match=r"upsample_bicubic2d.*no form for resampling by 1.04, 1.04"):
        to_onnx(network, Plan(), Calibration())


def test_every_size_is_resampled_to_torchs_size_at_torchs_places() -> None:
    torch.manual_seed(0)
    for size in range(4, 40, 3):
        for mode, scale in (("nearest", 2.2), ("nearest", 1.3), ("bilinear", 0.29)):
            resample = partial(F.interpolate, scale_factor=scale, mode=mode)
            check(Then(resample), pictures(2, size=size), reference=False)


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, stride=2, padding=1), (4, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, dilation=1, bias=False), (2, 5, 5, 5)),
    "same": (lambda: nn.Conv2d(3, 4, (2, 5), padding="same", dilation=(1, 2)), (3, 12, 12)),
    "valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (3, 6, 6)),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), (4, 5, 5)),
    "transposed in 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, dilation=2), (4, 5)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear of more dimensions": (lambda: nn.Linear(7, 5), (2, 3, 7)),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), (3, 6, 6)),
    "prelu": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4)), (3, 6, 6)),
    "one prelu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU()), (3,)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), (3, 6, 6)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), (3,)),
    "dropout": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5)), (3, 6, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    module = randomise_norms(make())
    for part in module.modules():
        if isinstance(part, nn.PReLU | nn.GroupNorm | nn.LayerNorm):
            for parameter in part.parameters():
                nn.init.uniform_(parameter, 0.1, 0.9)
    # The reference evaluator has no transposed convolution in groups.
    check(module, torch.randn(3, *shape), reference=name != "transposed")


def test_a_clamp_by_bounds_of_each_channel() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("low", torch.tensor([0.0, -0.1, 0.0, -0.2]).reshape(1, 4, 1, 1))
            self.register_buffer("high", torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(1, 4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.clamp(self.conv(x), self.low, self.high)

    torch.manual_seed(0)
    check(Clamped(), pictures())


def test_products_of_two_activations_and_with_a_constant() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(6, 5), nn.Linear(6, 5)
            self.register_buffer("basis", torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1) @ self.basis

    torch.manual_seed(0)
    check(Attend(), torch.randn(3, 4, 6))


def test_several_inputs_and_outputs_keep_names_and_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor):
            y = self.a(left)
            return {"sum": y + self.b(right), "left": (y, left)}

    torch.manual_seed(0)
    module, inputs = Two().eval(), (torch.randn(3, 4), torch.randn(3, 5))
    network = network_of(module, *inputs)
    model = to_onnx(network, Plan(), Calibration())
    onnx.checker.check_model(model, full_check=True)
    assert [info.name for info in model.graph.input] == ["left", "right"]
    with torch.no_grad():
        expected = module(*inputs)
    found = network.unflatten([torch.from_numpy(y) for y in by_runtime(model, *inputs)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [lambda x: x / 255, lambda x: (x.float() - 127.5) * 0.01])
def test_bytes_go_in_where_the_network_takes_bytes(function) -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(function(x))

    torch.manual_seed(0)
    model = check(Normalising(), (pictures() * 255).to(torch.uint8))
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_an_operator_without_a_form_is_named_with_its_layer() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(self.conv(x))

    network = network_of(Odd(), pictures())
    with pytest.raises(QuantopsyError, match=r"special_bessel_j0.*no ONNX form"):
        to_onnx(network, Plan(), Calibration())


def test_an_argument_without_a_form_is_named_with_its_layer() -> None:
    network = network_of(Then(lambda x: torch.div(x, 0.25, rounding_mode="trunc")), pictures())
    with pytest.raises(QuantopsyError, match=r"div.*of 'mul'.*rounding_mode 'trunc'"):
        to_onnx(network, Plan(), Calibration())


@pytest.mark.parametrize("shuffle", [F.pixel_shuffle, F.pixel_unshuffle])
def test_pixels_of_more_axes_than_an_image_has_are_named(shuffle) -> None:
    network = network_of(Then(lambda x: shuffle(x.unsqueeze(1), 2)), pictures())
    with pytest.raises(QuantopsyError, match=r"pixel_(un)?shuffle.*in 5 dimensions"):
        to_onnx(network, Plan(), Calibration())


def test_a_network_that_is_not_float32_is_refused() -> None:
    network = network_of(nn.Conv2d(3, 4, 3).double(), pictures().double())
    with pytest.raises(QuantopsyError, match=r"weight.*float64"):
        to_onnx(network, Plan(), Calibration())
