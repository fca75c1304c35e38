"""Images with colours, brightness and contrast like those of photographs, made by a generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

MEAN, STD = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1), torch.tensor([58.0, 57.0, 57.0]).view(3, 1, 1)


def pixels(n: int, seed: int, side: int = 12) -> Tensor:
    """(n, 3, side, side), 0 to 255: brightness in common, blue the darkest and most varied channel."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 40, (n, 1, 1, 1))
    tint = rng.normal([12, 0, -25], [8, 5, 25], (n, 3))[:, :, None, None]
    contrast = rng.uniform(15, 70, (n, 1, 1, 1)) * np.array([1.0, 0.95, 1.1])[:, None, None]
    x = 118 + shared + tint + contrast * rng.normal(size=(n, 3, side, side))
    return torch.from_numpy(np.clip(x, 0, 255).round()).float()


def normalised(x: Tensor) -> Tensor:
    """With the mean and standard deviation that every network here is for."""
    return (x - MEAN) / STD


def photographs(n: int = 64, seed: int = 0) -> TensorDataset:
    """``n`` images, normalised."""
    return TensorDataset(normalised(pixels(n, seed)))
