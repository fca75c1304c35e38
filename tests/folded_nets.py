"""Networks whose values hold images elsewhere than outermost, or several rows of each: windows, pixels, sequences."""

from __future__ import annotations

import torch
from random_net import CLASSES
from torch import Tensor, nn


class Windows(nn.Module):
    """Windows of an image beside those of others, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        x = x.reshape(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(b * 4, -1, c)
        x = self.second(self.first(x).relu())
        return self.head(x.reshape(b, -1, c).mean(1))


class Frames(nn.Module):
    """Parts of an image as images of their own for convolutions, as video networks have frames."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, c, 2, h // 2, w).transpose(1, 2).flatten(0, 1)
        x = self.deep(self.stem(x).relu()).relu().mean((2, 3))
        return self.head(x).view(b, 2, CLASSES).mean(1)


class FramesFirst(Frames):
    """The first parts of all images, then the second ones: those of an image apart from each other."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, c, 2, h // 2, w).permute(2, 0, 1, 3, 4).flatten(0, 1)
        x = self.deep(self.stem(x).relu()).relu().mean((2, 3))
        return self.head(x).view(2, b, CLASSES).mean(0)


class SequenceFirst(nn.Module):
    """Positions outermost, as `nn.MultiheadAttention` has them inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        return self.head((self.norm(x) + self.body(x).relu()).mean(0))


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x)[0].mean(1))


class Parts(nn.Module):
    """Values in parts that go different ways, as in ShuffleNet and in gated units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).relu().chunk(2, 1)
        first, second = right.split(2, 1)
        right = self.right(first) * second.mean(1, keepdim=True).sigmoid()
        up, down = torch.cat([self.left(left), right], 1).unflatten(2, (2, -1)).unbind(2)
        return self.head((up + 2 * down).mean((2, 3)))


class Mixed(nn.Module):
    """What one layer reads is centred over the images of the batch, to no effect on the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, CLASSES)
        self.aside = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu().mean((2, 3))
        return self.head(x) + 0.0 * self.aside(x - x.mean(0)).sum(1, keepdim=True)


FOLDED = (Windows, Frames, FramesFirst, SequenceFirst, Attention, Parts)


def folded(kind: type[nn.Module]) -> nn.Module:
    """With fixed weights."""
    torch.manual_seed(0)
    return kind().eval()
