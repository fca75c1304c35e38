"""Small networks whose structure is drawn at random from what image networks are made of."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5
WIDTH = 6


class Residual(nn.Module):
    """A value that three readers share: a depthwise branch, a pointwise one, and their sum with it."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2, groups=WIDTH)
        self.pointwise = nn.Conv2d(WIDTH, WIDTH, 1)
        self.beside = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + self.pointwise(F.silu(self.depthwise(x))) + self.beside(x))


class Padded(nn.Module):
    """Zeros added as an operator of their own, on two sides only, before a stride of two."""

    def __init__(self, kernel: int, groups: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(WIDTH, WIDTH, kernel, stride=2, groups=groups)
        self.pads = (0, kernel - 1, 0, kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.reduce(F.pad(x, self.pads)))


class Parallel(nn.Module):
    """Two convolutions of one value, concatenated, and its channels in another order."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=dilation, dilation=dilation)
        self.right = nn.Conv2d(WIDTH, WIDTH // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        batch, _, height, width = y.shape
        shuffled = y.view(batch, 2, WIDTH // 2, height, width).transpose(1, 2).contiguous()
        return shuffled.view(batch, WIDTH, height, width)


class Gate(nn.Module):
    """Channels scaled by what their means say."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.scale(F.adaptive_avg_pool2d(x, 1)))


class RandomNet(nn.Module):
    """A stem, three blocks drawn by ``seed``, pooling, and a linear head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        kernel, stride = draw.choice([(3, 1), (3, 2), (5, 2)])
        self.stem = nn.Conv2d(3, WIDTH, kernel, stride, padding=kernel // 2, bias=draw.random() < 0.5)
        makers = [
            lambda: Residual(draw.choice([3, 5])),
            lambda: Padded(draw.choice([2, 3]), draw.choice([1, 2, WIDTH])),
            lambda: Parallel(draw.choice([1, 2])),
            lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH), nn.Hardswish()),
            Gate,
            lambda: draw.choice([nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1)]),
        ]
        self.blocks = nn.Sequential(*(make() for make in draw.sample(makers, 3)))
        self.flat = draw.random() < 0.5
        self.head = nn.Linear(WIDTH * 4 if self.flat else WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(y, 2).flatten(1) if self.flat else y.mean((2, 3)))


def random_net(seed: int) -> nn.Module:
    """A :class:`RandomNet`, ready."""
    return RandomNet(seed).eval()


def pictures(count: int, size: int = 10, seed: int = 1) -> Tensor:
    """Images of three channels."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
