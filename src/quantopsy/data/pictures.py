"""Picture files: how pixels become the tensor that a network was trained on.

Letters: C channels, H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from quantopsy.core import QuantopsyError

PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

EXAMPLE = (
    '{"resize": 256, "crop": 224, "interpolation": "bilinear", "channels": "RGB", '
    '"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}'
)

Interpolation = Literal["bilinear", "bicubic"]
Channels = Literal["RGB", "BGR", "GRAY"]


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes an input, in this order.

    ``resize``
        an integer: the shorter side, other side in proportion, and a picture that is already
        smaller stays; ``(height, width)``: exactly that. ``None`` leaves the size.
    ``crop``
        side of the central square; a picture with a shorter side is first resized to it.
    ``mean``, ``std``
        per channel in units of pixel values 0..255, in the order red, green, blue whatever
        ``channels`` says: x = (pixel - mean) / std.
    ``channels``
        order handed to the network, ``RGB`` or ``BGR``; ``GRAY`` is one channel of luminance.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    interpolation: Interpolation = "bilinear"
    channels: Channels = "RGB"

    def __post_init__(self) -> None:
        if self.channels not in get_args(Channels):
            raise _refuse("channels", self.channels, f"give one of {', '.join(get_args(Channels))}")
        if self.interpolation not in get_args(Interpolation):
            raise _refuse("interpolation", self.interpolation, f"give one of {', '.join(get_args(Interpolation))}")
        count = 1 if self.channels == "GRAY" else 3
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or len(value) != count or not all(map(_is_number, value)):
                raise _refuse(name, value, f"give {count} number(s) in units of 0..255")
            object.__setattr__(self, name, tuple(float(v) for v in value))
        if not all(v > 0 for v in self.std):
            raise _refuse("std", list(self.std), "give positive numbers in units of 0..255")
        if isinstance(self.resize, (list, tuple)):
            object.__setattr__(self, "resize", tuple(self.resize))
            if len(self.resize) != 2 or not all(map(_is_size, self.resize)):
                raise _refuse("resize", list(self.resize), "give the shorter side or [height, width]")
        elif self.resize is not None and not _is_size(self.resize):
            raise _refuse("resize", self.resize, "give the shorter side or [height, width]")
        if self.crop is not None and not _is_size(self.crop):
            raise _refuse("crop", self.crop, "give the side of the square in pixels")

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """The float32 array (C, H, W) that the network takes for ``picture``."""
        # NumPy and not torch: this runs beside the network's own computation, and torch would
        # start a second team of threads for it.
        resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[self.interpolation]
        picture = picture.convert("L" if self.channels == "GRAY" else "RGB")
        if isinstance(self.resize, tuple):
            height, width = self.resize
            picture = picture.resize((width, height), resample)
        elif self.resize is not None and min(picture.size) >= self.resize:
            scale = self.resize / min(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), resample)
        if self.crop is not None:
            if min(picture.size) < self.crop:
                picture = picture.resize((self.crop, self.crop), resample)
            left, top = (picture.width - self.crop) // 2, (picture.height - self.crop) // 2
            picture = picture.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.asarray(picture, dtype=np.float32)
        pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
        x = (pixels - _per_channel(self.mean)) / _per_channel(self.std)
        return np.ascontiguousarray(x[::-1] if self.channels == "BGR" else x)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, all fields."""
        return asdict(self)

    @classmethod
    def read(cls, source: Preprocess | Path | str | Mapping[str, Any]) -> Preprocess:
        """From a JSON file or its content; raises :class:`QuantopsyError` naming what is wrong in it."""
        if isinstance(source, Preprocess):
            return source
        if isinstance(source, (str, Path)):
            try:
                source = json.loads(Path(source).read_text(encoding="utf-8"))
            except OSError as error:
                reason = error.strerror or str(error)
                raise QuantopsyError(f"preprocess {source}", reason, f"write a file such as {EXAMPLE}") from None
            except ValueError as error:
                raise QuantopsyError(f"preprocess {source}", f"not JSON ({error})", f"write it as {EXAMPLE}") from None
        if not isinstance(source, Mapping):
            raise QuantopsyError("preprocess", "it is not an object", f"write it as {EXAMPLE}")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(source) - set(known)):
            near = get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"fields are {', '.join(known)}"
            raise QuantopsyError(f"preprocess field {unknown[0]!r}", "there is none of that name", hint)
        for name in ("mean", "std"):
            if name not in source:
                raise QuantopsyError(f"preprocess field {name!r}", "it is missing", f"write it as {EXAMPLE}")
        return cls(**source)


def read_picture(path: Path, preprocess: Preprocess) -> np.ndarray:
    """The picture at ``path`` as (C, H, W); raises :class:`QuantopsyError` naming it where it is broken."""
    try:
        with Image.open(path) as picture:
            return preprocess(picture)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise QuantopsyError(
            f"image {path}",
            f"it cannot be read ({reason})",
            "mend or remove it, or go on without it by --skip-bad",
        ) from None


def _per_channel(values: tuple[float, ...]) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _refuse(name: str, value: object, remedy: str) -> QuantopsyError:
    return QuantopsyError(f"preprocess {name} {value!r}", "not a valid value", remedy)
