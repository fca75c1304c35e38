"""Algorithm 1 of the layer-wise paper as one would write it down: deep-copy, swap a layer, run again.

Shares nothing with the package: batch norms are fused by torch, grids are computed here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fake_quantize(x: Tensor, low: float, high: float, bits: int) -> Tensor:
    """Asymmetric per tensor, ONNX's formula."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    scale = torch.tensor((high - low) / levels, dtype=torch.float32)
    zero = torch.round(torch.tensor(-low) / scale)
    return (torch.clamp(torch.round(x / scale) + zero, 0, levels) - zero) * scale


def quantized_tensor(x: Tensor, bits: int) -> Tensor:
    """``x`` on the grid of its own range."""
    return fake_quantize(x, float(x.min()), float(x.max()), bits)


class Quantized(nn.Module):
    """A layer with its weight, input edge and output edge quantized."""

    def __init__(
        self, layer: nn.Module, activation: Callable[[Tensor], Tensor], bits: int, calibration: Tensor
    ) -> None:
        super().__init__()
        self.layer, self.activation = copy.deepcopy(layer), activation
        with torch.no_grad():
            y = activation(layer(calibration))
            self.layer.weight.copy_(quantized_tensor(layer.weight, bits))
        self.input = float(calibration.min()), float(calibration.max())
        self.output = float(y.min()), float(y.max())

    def forward(self, x: Tensor) -> Tensor:
        x = fake_quantize(x, *self.input, 8)
        return fake_quantize(self.activation(self.layer(x)), *self.output, 8)


def fuse(module: nn.Module) -> nn.Module:
    """A copy with every Conv2d + BatchNorm2d neighbour in a Sequential fused by torch."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, nn.Sequential):
            for i in range(len(part) - 1):
                if isinstance(part[i], nn.Conv2d) and isinstance(part[i + 1], nn.BatchNorm2d):
                    part[i], part[i + 1] = fuse_conv_bn_eval(part[i], part[i + 1]), nn.Identity()
    return module


def noise(
    fused: nn.Module, path: str, activation_path: str | None, bits: int, calibration: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """(B,) squared l2 distance, and the outputs, of ``fused`` with the layer at ``path`` quantized.

    ``activation_path`` is the module of the activation behind it, which is moved into the layer.
    """
    seen: list[Tensor] = []
    handle = fused.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        fused(calibration)
        handle.remove()
        single = copy.deepcopy(fused)
        activation: Callable[[Tensor], Tensor] = nn.Identity()
        if activation_path is not None:
            activation = single.get_submodule(activation_path)
            single.set_submodule(activation_path, nn.Identity())
        single.set_submodule(path, Quantized(fused.get_submodule(path), activation, bits, seen[0]))
        y = single(images)
        return (y - fused(images)).double().square().flatten(1).sum(1), y
