"""Networks as people write them, to be exported and read back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from small_net import SmallNet
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


class Residual(nn.Module):
    """As torchvision writes ResNet: nested sequences, a pooling in ceil mode, flatten, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Excitation(nn.Module):
    """As MobileNetV3: hard swish, squeeze and excitation, a flatten by the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)])
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.classifier = nn.Sequential(nn.Linear(8 * 9, 12), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.features:
            x = F.hardswish(part(x))
        gate = F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        x = F.avg_pool2d(x * gate, 2)
        return self.classifier(x.view(x.shape[0], -1))


class Tokens(nn.Module):
    """Linear layers over three dimensions, GELU, layer norm, a split and a product with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.5))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.gamma * self.down(F.gelu(self.up(self.norm(x))))
        left, right = x.split([4, 4], 2)
        return self.head(torch.cat([right, left], 2).mean(1))


class Shuffled(nn.Module):
    """Groups shuffled by reshapes, PReLU, asymmetric padding, upsampling and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2)
        self.act = nn.PReLU(8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.skip = nn.ConvTranspose2d(8, 8, 2, 2)
        self.last = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(F.pad(x, (0, 1, 0, 1))))
        n, c, h, w = x.shape
        x = self.grouped(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(torch.cat([self.up(x), F.leaky_relu(self.skip(x), 0.1)], 1))


NETWORKS: dict[str, type[nn.Module]] = {
    "small": SmallNet,
    "residual": Residual,
    "excitation": Excitation,
    "tokens": Tokens,
    "shuffled": Shuffled,
}
