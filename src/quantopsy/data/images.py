"""Images by index, in batches, checked as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from quantopsy.core import QuantopsyError
from quantopsy.data.items import Item
from quantopsy.data.sources import Source


@dataclass(frozen=True)
class Batch:
    """``B`` images: tensors (B, ...), as a mapping where the data names its inputs."""

    inputs: tuple[Tensor, ...] | dict[str, Tensor]
    labels: Tensor | None  # (B,), or (B, H, W) label maps
    indices: np.ndarray  # (B,) int64, positions in the Images

    def __len__(self) -> int:
        return len(self.indices)


class Images:
    """A fixed sequence of images, all of one shape, that can be read at any index at any time.

    Everything else takes the first image as the pattern: an image of another shape, one without a
    label where the first has one, and one with a NaN or an infinity raise :class:`QuantopsyError`
    when they are read. ``only`` keeps those of a list, see :meth:`entry`. ``skip_bad`` reads every
    image once here instead (the cost of one pass over the data) and leaves the bad ones out, so that
    the length never changes afterwards.
    """

    def __init__(self, source: Source, *, only: Sequence[str] | None = None, skip_bad: bool = False) -> None:
        self._source = source
        self._pattern: Item | None = None
        self.bad: tuple[str, ...] = ()
        self._indices: Sequence[int] = range(len(source)) if only is None else _listed(source, only)
        if skip_bad:
            self._indices, self.bad = self._sift()
        first = self._first = self._read(0)
        if not _same(first, self._read(0)):
            raise QuantopsyError(
                source.label_of(0),
                "two reads of it differ, and results must be of the same images each time",
                "turn random augmentation off",
            )

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def has_labels(self) -> bool:
        """Whether every image comes with a label."""
        return self._first.label is not None

    @property
    def input_names(self) -> tuple[str, ...] | None:
        """Names of the inputs where the data gives them by name."""
        return self._first.names

    @property
    def may_be_batches(self) -> bool:
        """Whether what a plain iterable gave, and was taken for images, may be batches of vectors: (N, features)."""
        return self._source.guessed and self._first.inputs[0].ndim == 2

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that identifies the data, the same for a copy elsewhere.

        Of files it covers the content, of anything else the number of images and a few of them.
        """
        return self._source.fingerprint(self._indices)

    def describe(self) -> str:
        """Such as ``660 images of imagenet_sample, 3x224x224, labelled``."""
        shapes = " and ".join("x".join(map(str, x.shape)) or "scalar" for x in self._first.inputs)
        kind = "labelled" if self.has_labels else "without labels"
        skipped = f", {len(self.bad)} bad left out" if self.bad else ""
        return f"{len(self)} images of {self._source.name}, {shapes}, {kind}{skipped}"

    def name(self, index: int) -> str:
        """What a person calls image ``index``: its file where it has one."""
        return self._source.label_of(self._indices[index])

    def entry(self, index: int) -> str:
        """Image ``index`` in a list of images to keep: its file, or its number in the data."""
        return self._source.entry(self._indices[index])

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Images ``indices``, in that order."""
        wanted = np.asarray(indices, dtype=np.int64)
        if not wanted.size:
            raise ValueError("a batch needs at least one index")
        items = [self._read(int(index)) for index in wanted]
        inputs = tuple(_stack(parts) for parts in zip(*(item.inputs for item in items), strict=True))
        labels = [item.label for item in items if item.label is not None]
        names = self.input_names
        return Batch(
            inputs if names is None else dict(zip(names, inputs, strict=True)),
            _stack(labels) if labels else None,
            wanted,
        )

    def _read(self, index: int) -> Item:
        return self._checked(self._indices[index])

    def _checked(self, position: int) -> Item:
        item = self._source.read(position)
        thing = self._source.label_of(position)
        for x in item.inputs:
            # A sum is NaN or infinite whenever an element is, and takes no mask the size of the image.
            if x.is_floating_point() and not np.isfinite(x.numpy().sum(dtype=np.float64)):
                raise QuantopsyError(
                    thing,
                    "it holds a NaN or infinite value",
                    "mend the image or the preprocessing (std of 0?)",
                )
        if self._pattern is None:
            self._pattern = item
        self._compare(item, self._pattern, thing)
        return item

    @staticmethod
    def _compare(item: Item, pattern: Item, thing: str) -> None:
        if item.names != pattern.names or len(item.inputs) != len(pattern.inputs):
            raise QuantopsyError(
                thing,
                f"its inputs are {_inputs_text(item)}, those of the first image {_inputs_text(pattern)}",
                "give every image the same inputs",
            )
        for mine, theirs in zip(item.inputs, pattern.inputs, strict=True):
            if mine.shape != theirs.shape:
                raise QuantopsyError(
                    thing,
                    f"its shape is {tuple(mine.shape)}, that of the first image {tuple(theirs.shape)}",
                    "give all images one shape (resize and crop in the preprocessing)",
                )
        if (item.label is None) != (pattern.label is None):
            has, first = ("no", "has one") if item.label is None else ("a", "has none")
            raise QuantopsyError(thing, f"it has {has} label and the first image {first}", "label all or none")
        if item.label is not None and pattern.label is not None and item.label.shape != pattern.label.shape:
            raise QuantopsyError(
                thing,
                f"its label has shape {tuple(item.label.shape)}, the first one {tuple(pattern.label.shape)}",
                "give all labels one shape",
            )

    def _sift(self) -> tuple[list[int], tuple[str, ...]]:
        good: list[int] = []
        bad: list[str] = []
        last: QuantopsyError | None = None
        for position in self._indices:
            try:
                self._checked(position)
                good.append(position)
            except QuantopsyError as error:
                last = error
                bad.append(self._source.label_of(position))
        if last is not None and not good:
            raise QuantopsyError(
                f"data {self._source.name}",
                f"every image is bad, the last: {last.thing}: {last.reason}",
                last.remedy,
            )
        return good, tuple(bad)


def reader(name: str = "quantopsy-reader") -> ThreadPoolExecutor:
    """One background thread for reading images, which computes on one core.

    A data set's own tensor operations would give the thread an OpenMP team of its own. GNU's runtime
    then stops spinning at the barriers of every team, and the network beside it runs at two thirds of
    its speed, also while nothing is read.
    """

    def alone() -> None:
        torch.get_num_threads()  # torch sets a thread's team up when it is first asked; only then can it be undone
        threadpool_limits(1, user_api="openmp")

    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=alone)


def prefetch(images: Images, tiles: Iterable[Sequence[int] | np.ndarray]) -> Iterator[Batch]:
    """The batches of ``tiles``, the next one being read in a background thread while the caller computes.

    At most one tile waits, so that memory is two tiles' whatever their number. What goes wrong while
    reading is raised where the caller asks for that tile; a caller that stops early leaves no thread.
    """
    with reader() as reading:
        waiting = None
        for tile in tiles:
            following = reading.submit(images.batch, tile)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _listed(source: Source, entries: Sequence[str]) -> list[int]:
    """Positions of ``entries``, in the order of the data."""
    positions = {source.entry(position): position for position in range(len(source))}
    unknown = [entry for entry in entries if entry not in positions]
    if unknown:
        raise QuantopsyError(
            f"listed image {unknown[0]!r}",
            f"{source.name} has none of that name" + (f", nor {len(unknown) - 1} others" * (len(unknown) > 1)),
            "list a file of the folder, or the number of an image, in every line",
        )
    if not entries:
        raise QuantopsyError(f"list of images of {source.name}", "it is empty", "list at least one")
    return sorted({positions[entry] for entry in entries})


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    # NumPy does not start a second team of threads beside the one that computes.
    return torch.from_numpy(np.stack([tensor.numpy() for tensor in tensors]))


def _same(a: Item, b: Item) -> bool:
    pairs = zip(a.inputs, b.inputs, strict=True)
    labels = a.label is None or b.label is None or torch.equal(a.label, b.label)
    return labels and all(torch.equal(x, y) for x, y in pairs)


def _inputs_text(item: Item) -> str:
    return ", ".join(item.names) if item.names else f"{len(item.inputs)} unnamed"
