"""From what a user names as DATA to images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from quantopsy.core import QuantopsyError
from quantopsy.core.imports import called, is_module
from quantopsy.data.images import Images
from quantopsy.data.pictures import EXAMPLE, Preprocess
from quantopsy.data.sources import (
    Folder,
    Source,
    from_dataset,
    from_iterable,
    from_loader,
    is_map_style,
    list_folder,
)

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def open_data(
    data: Any,
    *,
    preprocess: Preprocess | Path | str | Mapping[str, Any] | None = None,
    skip_bad: bool = False,
) -> Images:
    """The images that ``data`` names.

    ``data`` is one of

    - a folder: ``labels.csv`` with columns ``file,label``, or a sub-folder per class (label: its
      position in alphabetical order), or pictures without labels. Needs ``preprocess``;
    - ``"package.module:callable"``: called without arguments, returns one of the following;
    - one of these two and ``@LIST``, a text file: only the images listed in it, in every line a file of the
      folder or the number of an image, as ``quantopsy calibration --select`` writes it;
    - a map-style torch ``Dataset``: every item is one image;
    - a torch ``DataLoader``: stands for its dataset, sampler and collate function;
    - a tensor or array of images along the first dimension;
    - any other sequence or iterable: an item is a batch where its first input has four or more
      dimensions, else one image. What is no sequence is read once and kept, up to 1 GiB. Items of two
      dimensions are refused for networks without convolutions, which would take a batch of vectors for one.

    Items are described in :mod:`quantopsy.data.items`. ``preprocess`` is a JSON file, its content or
    a :class:`Preprocess`, for data that are pictures. ``skip_bad`` reads everything once and leaves
    bad images out; without it a bad image raises when it is read.

    Raises :class:`QuantopsyError` for whatever is wrong with the data.
    """
    how = None if preprocess is None else Preprocess.read(preprocess)
    data, listed = without_list(data)
    return Images(_source(data, how), only=None if listed is None else _entries(listed), skip_bad=skip_bad)


def without_list(data: Any) -> tuple[Any, Path | None]:
    """``data`` and the file that lists its images, from ``DATA@LIST``; None where it is not of that form."""
    if not isinstance(data, str | Path) or Path(data).exists():
        return data, None
    rest, at, file = str(data).rpartition("@")
    return (rest, Path(file)) if at and rest and file else (data, None)


def _entries(listed: Path) -> list[str]:
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise QuantopsyError(
            f"list of images {str(listed)!r}", f"it cannot be read ({error})", "check the path"
        ) from None
    return [line.strip() for line in lines if line.strip()]


def _source(data: Any, preprocess: Preprocess | None) -> Source:
    if isinstance(data, (str, Path)):
        text = str(data)
        if not Path(text).exists() and _CALLABLE.fullmatch(text):
            return _python_source(called(text, "data", "a Dataset or an iterable"), text, preprocess)
        if not Path(text).exists() and is_module(text):
            raise QuantopsyError(f"data {text!r}", "it is a module", f"add what gives the images: {text}:callable")
        if preprocess is None:
            list_folder(Path(text))  # a folder that is not there is the first thing to say
            raise QuantopsyError(
                f"data {text}",
                "pictures need the preprocessing that the network was trained with; a wrong one silently "
                "costs accuracy, so there is no default",
                f"give --preprocess FILE.json with {EXAMPLE}",
            )
        return Folder(Path(text), preprocess)
    return _python_source(data, type(data).__name__, preprocess)


def _python_source(data: Any, name: str, preprocess: Preprocess | None) -> Source:
    if not isinstance(data, Iterable) and not is_map_style(data):
        raise QuantopsyError(
            f"data {name}",
            f"a {type(data).__name__} is no collection of images",
            "give a folder, a torch Dataset, or an iterable of tensors, tuples or mappings",
        )
    source: Source
    if isinstance(data, DataLoader):
        if preprocess is not None:
            raise QuantopsyError("preprocess", "a DataLoader gives tensors, to which it does not apply", "leave it out")
        source = from_loader(data, name)
    elif isinstance(data, Dataset) and is_map_style(data):
        source = from_dataset(data, name, preprocess)
    else:
        source = from_iterable(data, name, preprocess)
    if not len(source):
        raise QuantopsyError(f"data {name}", "it holds no image", "give at least one")
    return source
