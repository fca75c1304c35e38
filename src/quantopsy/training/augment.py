"""Random changes of training images that leave their label true, drawn anew for every step.

What is drawn depends on the generator alone, so that a training that is resumed sees the same images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from quantopsy.core import QuantopsyError, names

AUGMENTATIONS = ("auto", "none", "flip", "flip+shift")

SHIFT = 1 / 8
"""Largest shift, as a share of the side: 4 of 32 pixels, as is usual for CIFAR."""


def chosen(name: str, inputs: tuple[Tensor, ...], labels: Tensor | None) -> str:
    """The augmentation that ``name`` means: ``auto`` flips and shifts pictures of classes or without labels.

    A number that is no class, such as the angle of a steering wheel, may be another one of the mirrored picture.

    Raises :class:`QuantopsyError` for one that would part pictures from their label maps.
    """
    if name not in AUGMENTATIONS:
        raise names.unknown(name, AUGMENTATIONS, "augmentation")
    pictures = len(inputs) == 1 and inputs[0].dim() == 4
    moves = pictures and (labels is None or labels.dim() == 1)
    if name == "auto":
        return "flip+shift" if moves and (labels is None or not labels.is_floating_point()) else "none"
    if name != "none" and not moves:
        raise QuantopsyError(f"augmentation {name!r}", "the data are no pictures with a label each", "give none")
    return name


def augmented(x: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Pictures (B, C, H, W) mirrored with probability 1/2, and shifted, the border repeated."""
    if name == "none":
        return x
    mirror = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirror.to(x.device)[:, None, None, None], x.flip(3), x)
    if name == "flip":
        return x
    height, width = x.shape[2:]
    down, across = int(height * SHIFT), int(width * SHIFT)
    padded = F.pad(x, (across, across, down, down), mode="reflect")
    tops = torch.randint(2 * down + 1, (len(x),), generator=generator).tolist()
    lefts = torch.randint(2 * across + 1, (len(x),), generator=generator).tolist()
    cut = [image[:, t : t + height, s : s + width] for image, t, s in zip(padded, tops, lefts, strict=True)]
    return torch.stack(cut)
