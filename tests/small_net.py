"""A small network with every kind of layer of an image classifier."""

from __future__ import annotations

import torch
from torch import nn


class SmallNet(nn.Module):
    """Every kind of layer of an image classifier, in a few thousand weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, stride=2), nn.BatchNorm2d(8), nn.SiLU())
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.BatchNorm2d(8))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.stem(x))
        y = torch.relu(self.left(x) + self.right(x))
        y = torch.cat([y, x], 1)
        return self.head(self.pool(y).mean((2, 3)))


def randomise_norms(module: nn.Module) -> nn.Module:
    """Batch norms with statistics and parameters worth folding."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
    return module.eval()
