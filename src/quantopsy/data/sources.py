"""Where images come from: anything with a length whose every image can be read at any time, by index.

Random access is what lets a run take an evenly spaced subset, resume, and hold one batch at a time.
"""

from __future__ import annotations

import bisect
import csv
import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from quantopsy.core import QuantopsyError
from quantopsy.data.items import Item, holds_picture, read_item
from quantopsy.data.pictures import EXAMPLE, PICTURE_SUFFIXES, Preprocess, read_picture

T = TypeVar("T")

# What a one-shot iterable may take: it has to be kept, since a run reads images more than once.
MATERIALISED_BYTES = 1 << 30
# A folder up to this size is hashed byte by byte; of a larger one, this many files are.
HASHED_BYTES = 256 << 20
HASHED_FILES = 64
HASHED_ITEMS = 16


class Source(ABC):
    """A collection of images in a fixed order."""

    name: str  # as the user knows it
    guessed = False  # whether items of a plain iterable are taken for images by their dimensions alone

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Item:
        """Image ``index``, the same every time; raises :class:`QuantopsyError` naming it where it is bad."""

    def label_of(self, index: int) -> str:
        """What a person calls image ``index``."""
        return f"image {index} of {self.name}"

    def entry(self, index: int) -> str:
        """Image ``index`` in a list of some of them: its file, or its number."""
        return str(index)

    def fingerprint(self, indices: Sequence[int]) -> str:
        """SHA-256 of how many ``indices`` there are and the tensors of a few evenly spaced ones."""
        digest = hashlib.sha256(str(len(indices)).encode())
        for index in _evenly(indices, HASHED_ITEMS):
            _hash_item(digest, self.read(index))
        return digest.hexdigest()


class Folder(Source):
    """Picture files, labelled by ``labels.csv``, by sub-folder, or not at all."""

    def __init__(self, root: Path, preprocess: Preprocess) -> None:
        self.name = root.name or str(root)
        self._root, self._preprocess = root, preprocess
        self._files, self._labels = list_folder(root)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Item:
        pixels = torch.from_numpy(read_picture(self._root / self._files[index], self._preprocess))
        return Item((pixels,), None, None if self._labels is None else torch.tensor(self._labels[index]))

    def label_of(self, index: int) -> str:
        return f"image {self._root / self._files[index]}"

    def entry(self, index: int) -> str:
        return self._files[index]

    def fingerprint(self, indices: Sequence[int]) -> str:
        """SHA-256 of names, labels, preprocessing and file contents of images ``indices``.

        Above 256 MiB the contents are sizes and the bytes of 64 evenly spaced files. The same
        pictures in another folder have the same fingerprint.
        """
        sizes = [(self._root / self._files[i]).stat().st_size for i in indices]
        head = {
            "files": [self._files[i] for i in indices],
            "labels": None if self._labels is None else [self._labels[i] for i in indices],
            "sizes": sizes,
            "preprocess": self._preprocess.to_json(),
        }
        digest = hashlib.sha256(json.dumps(head).encode())
        for index in indices if sum(sizes) <= HASHED_BYTES else _evenly(indices, HASHED_FILES):
            with (self._root / self._files[index]).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


class Indexed(Source):
    """Images that ``get`` reads one at a time at ``indices``: of a map-style dataset or a sequence."""

    def __init__(self, get: Callable[[int], Item], indices: Sequence[int], name: str) -> None:
        self.name = name
        self._get, self._indices = get, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Item:
        return _fetch(self._get, self._indices[index], self.label_of(index))

    def label_of(self, index: int) -> str:
        return f"image {self._indices[index]} of {self.name}"

    def entry(self, index: int) -> str:
        return str(self._indices[index])


class Batched(Source):
    """Images inside items that are batches, in memory or read by index one batch at a time."""

    def __init__(self, get: Callable[[int], Item], sizes: Sequence[int], name: str) -> None:
        self.name = name
        self._get = get
        self._starts = [0, *itertools.accumulate(sizes)]
        self._last: tuple[int, Item] | None = None  # neighbours are read one after the other

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> Item:
        number = bisect.bisect_right(self._starts, index) - 1
        last = self._last
        if last is None or last[0] != number:
            last = number, _fetch(self._get, number, f"batch {number} of {self.name}")
            self._last = last
        return last[1][index - self._starts[number]]


def from_dataset(data: Any, name: str, preprocess: Preprocess | None) -> Source:
    """The images of a map-style dataset, every item of which is one."""
    return Indexed(partial(_single, data, name, preprocess), range(len(data)), name)


def from_loader(loader: DataLoader[Any], name: str) -> Source:
    """The images of a loader of a map-style dataset, one at a time through its ``collate_fn``.

    The loader's order, shuffling, batch size and ``drop_last`` do not matter; a sampler that selects
    does, each selected image counting once. A loader of an iterable dataset is read as batches.
    """
    sampler: Any = loader.batch_sampler
    dataset: Any = loader.dataset
    if sampler is None or not is_map_style(dataset):
        return from_iterable(loader, name, None, batches=True)
    whole = isinstance(loader.sampler, (SequentialSampler, RandomSampler))
    indices = range(len(dataset)) if whole else sorted({index for batch in sampler for index in batch})

    def get(index: int) -> Item:
        thing = f"image {index} of {name}"
        batch = read_item(loader.collate_fn([dataset[index]]), thing, None)
        if _batch_size(batch, thing) != 1:
            raise QuantopsyError(
                thing, "collate_fn does not put images along the first dimension", "give the dataset itself"
            )
        return batch[0]

    return Indexed(get, indices, name)


def from_iterable(
    data: Iterable[Any], name: str, preprocess: Preprocess | None, *, batches: bool | None = None
) -> Source:
    """Any other iterable: an item is a batch where its first input has four or more dimensions.

    ``batches`` decides instead of that rule where it is given. What has a length and an index is
    read as it is needed. Anything else is read once and kept, up to 1 GiB, because a run reads
    images more than once.
    """
    items: Any = data if is_map_style(data) else _materialise(data, name)
    if not len(items):
        return Indexed(partial(_single, items, name, None), (), name)
    raw = _fetch(items.__getitem__, 0, f"item 0 of {name}")
    if holds_picture(raw) or not _is_batch(raw, name, batches):
        source = from_dataset(items, name, preprocess)
        source.guessed = batches is None and not holds_picture(raw) and not isinstance(data, torch.Tensor | np.ndarray)
        return source
    _refuse_preprocess(preprocess, name)

    def get(number: int) -> Item:
        return read_item(items[number], f"batch {number} of {name}", None)

    return Batched(get, [_batch_size(get(i), f"batch {i} of {name}") for i in range(len(items))], name)


def is_map_style(data: object) -> bool:
    """Whether ``data`` has a length and is read by index."""
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(data, (str, bytes, Mapping)):
        return False
    try:
        len(data)
    except (TypeError, NotImplementedError):  # torch's IterableDataset inherits __getitem__
        return False
    return True


def list_folder(root: Path) -> tuple[list[str], list[int] | None]:
    """The picture files of ``root`` relative to it in a fixed order, and their labels if it has any."""
    if not root.is_dir():
        reason = "it is a file" if root.exists() else "no such folder"
        raise QuantopsyError(f"data {root}", reason, "give a folder of pictures or package.module:callable")
    if (root / "labels.csv").exists():
        return _labelled_by_csv(root)
    loose = _pictures(root, recursive=False)
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    labelled = [(file, label) for label, folder in enumerate(classes) for file in _pictures(folder, recursive=True)]
    if loose and labelled:
        raise QuantopsyError(
            f"data {root}",
            "it holds both pictures and sub-folders of pictures, so labels are ambiguous",
            "move the pictures into class folders or add labels.csv (file,label)",
        )
    files = loose or [file for file, _ in labelled]
    if not files:
        raise QuantopsyError(
            f"data {root}",
            "it holds no pictures",
            f"add files of type {', '.join(sorted(PICTURE_SUFFIXES))}, or one folder of them per class",
        )
    return [file.relative_to(root).as_posix() for file in files], [label for _, label in labelled] or None


def _labelled_by_csv(root: Path) -> tuple[list[str], list[int]]:
    table = root / "labels.csv"
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            entries = [(rows.line_num, row.get("file"), row.get("label")) for row in rows]
    except (OSError, UnicodeError, csv.Error) as error:
        raise QuantopsyError(f"labels {table}", f"it cannot be read ({error})", "save it as UTF-8 CSV") from None
    for column in ("file", "label"):
        if column not in columns:
            raise QuantopsyError(
                f"labels {table}",
                f"it has no column {column!r} ({', '.join(columns) or 'no header'})",
                "begin it with the line file,label",
            )
    files, labels = [], []
    for line, name, text in entries:
        if not name or not (root / name).is_file():
            raise QuantopsyError(
                f"labels {table} line {line}",
                f"file {name!r} does not exist",
                "name files relative to the folder",
            )
        try:
            labels.append(int(text or ""))
        except ValueError:
            raise QuantopsyError(
                f"labels {table} line {line}",
                f"label {text!r} is not an integer",
                "give the class index, from 0",
            ) from None
        files.append(name)
    if not files:
        raise QuantopsyError(f"labels {table}", "it lists no image", "add a line per image: file,label")
    return files, labels


def _pictures(folder: Path, *, recursive: bool) -> list[Path]:
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        p for p in found if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def _materialise(data: Iterable[Any], name: str) -> list[Any]:
    kept: list[Any] = []
    total = 0
    iterator = iter(data)
    while True:
        try:
            raw = next(iterator)
        except StopIteration:
            return kept
        except Exception as error:
            raise _failed(f"item {len(kept)} of {name}", error) from error
        kept.append(raw)
        if holds_picture(raw):
            continue
        total += read_item(raw, f"item {len(kept) - 1} of {name}", None).nbytes
        if total > MATERIALISED_BYTES:
            raise QuantopsyError(
                name,
                f"an iterable is kept in memory and its first {len(kept)} items take over 1 GiB",
                "give a torch Dataset with __len__ and __getitem__, which is read as it is needed",
            )


def _single(data: Any, name: str, preprocess: Preprocess | None, index: int) -> Item:
    thing = f"image {index} of {name}"
    raw = data[index]
    if not holds_picture(raw):
        _refuse_preprocess(preprocess, name)
    elif preprocess is None:
        raise QuantopsyError(thing, "a picture without preprocessing", f"give --preprocess FILE.json with {EXAMPLE}")
    return read_item(raw, thing, preprocess)


def _is_batch(raw: Any, name: str, batches: bool | None) -> bool:
    if batches is not None:
        return batches
    return read_item(raw, f"item 0 of {name}", None).inputs[0].ndim >= 4


def _refuse_preprocess(preprocess: Preprocess | None, name: str) -> None:
    if preprocess is not None:
        raise QuantopsyError("preprocess", f"data {name} gives tensors, to which it does not apply", "leave it out")


def _batch_size(item: Item, thing: str) -> int:
    tensors = item.inputs if item.label is None else (*item.inputs, item.label)
    sizes = {len(x) if x.ndim else 0 for x in tensors}
    if len(sizes) != 1:
        raise QuantopsyError(
            thing,
            f"its tensors have different first dimensions ({', '.join(map(str, sorted(sizes)))})",
            "give as many labels as images, or a Dataset of single images",
        )
    return sizes.pop()


def _evenly(indices: Sequence[int], count: int) -> list[int]:
    positions = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[position] for position in positions]


def _fetch(get: Callable[[int], T], index: int, thing: str) -> T:
    try:
        return get(index)
    except QuantopsyError:
        raise
    except Exception as error:
        raise _failed(thing, error) from error


def _failed(thing: str, error: Exception) -> QuantopsyError:
    return QuantopsyError(thing, f"reading it failed ({type(error).__name__}: {error})", "mend the data's own code")


def _hash_item(digest: Any, item: Item) -> None:
    for tensor in (*item.inputs, *([] if item.label is None else [item.label])):
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
