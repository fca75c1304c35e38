"""What every image on its own does to the activations: one float pass, and the ranges of any subset after it.

n images, V quantized activations, C channels of an input, R grids of an activation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantopsy.calibrate import ByImage, observer
from quantopsy.core import QuantopsyError, Spec
from quantopsy.data import Batch
from quantopsy.engine.calibration import Calibration, ImagesInFront, Wanted, look_at_values
from quantopsy.engine.memory import GIB
from quantopsy.graph.execute import Program
from quantopsy.graph.network import GridSources, Network
from quantopsy.quant import QParams


@dataclass(frozen=True)
class Moments:
    """Least and greatest value, mean and standard deviation of every image, float32, (n, C) or (n, V) each."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def __len__(self) -> int:
        return len(self.low)

    @property
    def columns(self) -> np.ndarray:
        """All of it side by side, (n, 4 C)."""
        return np.concatenate([self.low, self.high, self.mean, self.std], axis=1)

    def take(self, rows: np.ndarray) -> Moments:
        """Those of the images ``rows``, in that order."""
        return Moments(self.low[rows], self.high[rows], self.mean[rows], self.std[rows])

    @classmethod
    def of(cls, x: Tensor, axis: int | None = None) -> Moments:
        """Of every image of ``x`` (B, ...), by channel of ``axis`` or of all of it (C = 1), as where it is a vector."""
        x = x.float().reshape(len(x), -1) if x.dim() < 3 else x.float()
        rest = [dim for dim in range(1, x.dim()) if dim != axis or x.dim() == 2]
        variance, mean = torch.var_mean(x, dim=rest, correction=0)
        found = x.amin(rest), x.amax(rest), mean, variance.sqrt()
        return cls(*(part.reshape(len(x), -1).cpu().numpy() for part in found))

    @classmethod
    def beside(cls, parts: Sequence[Moments]) -> Moments:
        """The columns of ``parts`` beside one another."""
        return cls._concatenated(parts, 1)

    @classmethod
    def below(cls, parts: Sequence[Moments]) -> Moments:
        """The images of ``parts``, one part behind the other."""
        return cls._concatenated(parts, 0)

    @classmethod
    def _concatenated(cls, parts: Sequence[Moments], axis: int) -> Moments:
        return cls(
            np.concatenate([part.low for part in parts], axis),
            np.concatenate([part.high for part in parts], axis),
            np.concatenate([part.mean for part in parts], axis),
            np.concatenate([part.std for part in parts], axis),
        )


@dataclass(frozen=True)
class Activation:
    """A value that is put on a grid: its name, the ``layer`` that makes it (or the network's input), the spec."""

    value: str
    layer: str
    spec: Spec


@dataclass(frozen=True)
class Clipped:
    """What ranges cut off of every image: ``share`` (n, V) of the values, ``excess`` (n, V), how far the furthest
    lies beyond the grid, in units of the grid's width."""

    share: np.ndarray
    excess: np.ndarray


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of n images, each on its own.

    ``images`` (n,) are their positions, ``digests`` hashes of their pixels. ``inputs`` has the moments of every
    floating-point input by channel, ``moments`` those of the V ``activations``, and ``parts`` what ranges are made
    of. ``clipped`` is there where ranges were given.
    """

    images: np.ndarray
    digests: tuple[str, ...]
    inputs: dict[str, Moments]
    activations: tuple[Activation, ...]
    moments: Moments
    parts: tuple[ByImage, ...]
    sources: GridSources
    clipped: Clipped | None = None

    def __len__(self) -> int:
        return len(self.images)

    def calibration(self, rows: np.ndarray) -> Calibration:
        """What a calibration on the images ``rows`` would have seen, in ascending order."""
        rows = np.sort(rows)
        taken = torch.from_numpy(rows)
        observers = {}
        for activation, part in zip(self.activations, self.parts, strict=True):
            empty = observer(activation.spec, self.sources.axis(activation.value))
            observers[activation.value, empty.key] = empty.after(part.take(taken))
        return Calibration(observers=observers, sources=self.sources, images=len(rows))

    def ranges(self, calibration: Calibration) -> np.ndarray:
        """(V, 2): the ends of every activation's grid; of several grids the outermost."""
        return np.array([calibration.qparams(item.value, item.spec).outermost for item in self.activations])


def image_statistics(
    program: Program,
    batches: Iterable[Batch],
    wanted: Wanted,
    *,
    images: int,
    ranges: Calibration | None = None,
    max_memory: float = 4.0,
    advance: Callable[[int], None] | None = None,
) -> ImageStatistics:
    """Look at every image of ``batches``, ``images`` in all, in one float pass; also at what ``ranges`` clip.

    Raises :class:`QuantopsyError` where what is kept of the images would take more than ``max_memory`` GiB.
    """
    network = program.network
    activations = tuple(
        Activation(value, _maker(network, value), spec) for (value, _), spec in wanted.statistics.items()
    )
    places: dict[str, list[int]] = {}
    for place, activation in enumerate(activations):
        places.setdefault(activation.value, []).append(place)
    empty = [observer(item.spec, network.grid_sources.axis(item.value)) for item in activations]
    grids = [None if ranges is None else ranges.qparams(item.value, item.spec) for item in activations]
    seen: list[_Tile] = []
    turned = ImagesInFront(program)

    for batch in batches:
        tile = _Tile(batch.indices, _digests(batch), {}, {}, {}, {})

        def look(name: str, value: Any, tile: _Tile = tile) -> None:
            if name in network.input_names and isinstance(value, Tensor) and value.is_floating_point():
                tile.inputs[name] = Moments.of(value, axis=1)
            if name not in places:
                return
            images = len(tile.images)
            for place in places[name]:
                rows = turned(name, value, empty[place].axis)
                assert rows is not None
                tile.parts[place] = empty[place].each(rows, images)
                tile.moments[place] = Moments.of(rows.unflatten(0, (images, -1)))
                grid = grids[place]
                if grid is not None:
                    tile.clipped[place] = _clipped(rows, grid, tile.parts[place])

        turned.begin(batch.inputs)
        for item, statistics in zip(activations, empty, strict=True):
            if not turned.tells(item.value, statistics.axis):
                raise QuantopsyError(
                    f"values at layer {item.layer!r}",
                    "what each image does on its own cannot be told in them",
                    "keep images apart in the network, and quantize activations per tensor",
                )
        size = look_at_values(program, batch.inputs, look)
        seen.append(tile)
        if len(seen) == 1:
            _check_memory(sum(part.nbytes for part in tile.parts.values()) / size, images, max_memory)
        if advance is not None:
            advance(size)
    order = range(len(activations))
    clipped = None
    if ranges is not None:
        table = np.concatenate([np.stack([tile.clipped[place] for place in order], axis=2) for tile in seen])
        clipped = Clipped(table[:, 0], table[:, 1])
    return ImageStatistics(
        images=np.concatenate([tile.images for tile in seen]),
        digests=tuple(digest for tile in seen for digest in tile.digests),
        inputs={name: Moments.below([tile.inputs[name] for tile in seen]) for name in seen[0].inputs},
        activations=activations,
        moments=Moments.below([Moments.beside([tile.moments[place] for place in order]) for tile in seen]),
        parts=tuple(ByImage.joined([tile.parts.pop(place) for tile in seen]) for place in order),
        sources=network.grid_sources,
        clipped=clipped,
    )


@dataclass(frozen=True)
class _Tile:
    images: np.ndarray
    digests: list[str]
    inputs: dict[str, Moments]
    parts: dict[int, ByImage]
    moments: dict[int, Moments]
    clipped: dict[int, np.ndarray]  # (B, 2): share and excess


def _maker(network: Network, value: str) -> str:
    return next((layer.name for layer in network.layers if layer.output == value), value)


def _digests(batch: Batch) -> list[str]:
    tensors = list(batch.inputs.values() if isinstance(batch.inputs, dict) else batch.inputs)
    return [
        hashlib.blake2b(b"".join(tensor[row].numpy().tobytes() for tensor in tensors), digest_size=16).hexdigest()
        for row in range(len(batch))
    ]


def _clipped(x: Tensor, grid: QParams, part: ByImage) -> np.ndarray:
    """(B, 2): share of each image's values (B rows, ...) that ``grid`` clips, and how far the furthest lies beyond it,
    in widths."""
    images = len(part)
    found = torch.zeros(images, 2)
    # Where no extreme is clipped nothing is: that is most of the time, and costs nothing.
    if grid.covers(torch.cat((part.low, part.high))).all():
        return found.numpy()
    outside = ~grid.covers(x)
    low, high = grid.outermost
    found[:, 0] = outside.reshape(images, -1).float().mean(1)
    found[:, 1] = (x - grid.snap(x)).abs().where(outside, 0).reshape(images, -1).amax(1) / (high - low)
    return found.numpy()


def _check_memory(per_image: float, images: int, max_memory: float) -> None:
    needed = per_image * images / GIB
    if needed > max_memory:
        raise QuantopsyError(
            f"{images} images",
            f"what is kept of each, {per_image / 2**20:.1f} MiB, needs {needed:.1f} GiB, more than --max-memory "
            f"{max_memory:g}",
            f"give --calibration-samples {int(max_memory * GIB / per_image)}, more memory, or a range estimator that "
            "needs only extremes",
        )
