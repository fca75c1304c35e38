"""One item of a user's data set: which of its tensors are inputs and which is the label.

Rules, the same for a single image and for a batch of them:

- a tensor (or array) is the one input, without a label;
- a tuple or list is inputs followed by the label, where its last element is a number, a 0-d
  tensor or a tensor of integers (a label map, or a batch's labels) and something precedes it;
  otherwise all of it are inputs. ``None`` as the last element is no label;
- a mapping is inputs by name; the label is under ``label``, ``labels``, ``target`` or ``y``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quantopsy.core import QuantopsyError
from quantopsy.data.pictures import Preprocess

LABEL_KEYS = ("label", "labels", "target", "y")


@dataclass(frozen=True)
class Item:
    """``inputs`` as the network takes them, by ``names`` where they came in a mapping."""

    inputs: tuple[Tensor, ...]
    names: tuple[str, ...] | None
    label: Tensor | None

    def __getitem__(self, row: int) -> Item:
        """Image ``row`` of an item that is a batch."""
        label = None if self.label is None else self.label[row]
        return Item(tuple(x[row] for x in self.inputs), self.names, label)

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take, in bytes."""
        tensors = self.inputs if self.label is None else (*self.inputs, self.label)
        return sum(x.nbytes for x in tensors)


def read_item(raw: Any, thing: str, preprocess: Preprocess | None) -> Item:
    """``raw`` by the rules above. Floating-point inputs become float32, pictures go through ``preprocess``.

    Raises :class:`QuantopsyError` naming ``thing`` for a type that is none of these.
    """
    names: tuple[str, ...] | None = None
    label: Any = None
    if isinstance(raw, Mapping):
        raw, label = _split_mapping(raw, thing)
    elif isinstance(raw, (tuple, list)) and len(raw) > 1 and (raw[-1] is None or _is_label(raw[-1])):
        *raw, label = raw
        if len(raw) == 1 and isinstance(raw[0], (Mapping, tuple, list)):
            raw = raw[0]
    if isinstance(raw, Mapping):
        names, raw = tuple(str(name) for name in raw), list(raw.values())
    leaves = list(raw) if isinstance(raw, (tuple, list)) else [raw]
    if not leaves:
        raise QuantopsyError(thing, "it holds no input", "give a tensor, (tensor, label) or {name: tensor}")
    inputs = tuple(_input(leaf, thing, preprocess) for leaf in leaves)
    return Item(inputs, names, None if label is None else _label(label, thing))


def holds_picture(raw: Any) -> bool:
    """Whether an input of ``raw`` is a PIL picture, to be preprocessed."""
    if isinstance(raw, Mapping):
        raw = list(raw.values())
    if isinstance(raw, (tuple, list)):
        return any(holds_picture(leaf) for leaf in raw)
    return isinstance(raw, Image.Image)


def _split_mapping(raw: Mapping[Any, Any], thing: str) -> tuple[dict[str, Any], Any]:
    keys = [key for key in LABEL_KEYS if key in raw]
    if len(keys) > 1:
        raise QuantopsyError(thing, f"both {keys[0]!r} and {keys[1]!r} could be the label", "keep one of them")
    return {str(k): v for k, v in raw.items() if k not in keys}, raw[keys[0]] if keys else None


def _is_label(value: Any) -> bool:
    if isinstance(value, (int, float, np.number)):
        return True
    if isinstance(value, (Tensor, np.ndarray)):
        x = torch.as_tensor(value)
        return x.ndim == 0 or not (x.is_floating_point() or x.is_complex())
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, int) for v in value)


def _label(value: Any, thing: str) -> Tensor:
    try:
        label = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise QuantopsyError(thing, f"its label is a {type(value).__name__}", "give an integer or a tensor") from None
    return label if label.is_floating_point() else label.long()


def _input(value: Any, thing: str, preprocess: Preprocess | None) -> Tensor:
    if isinstance(value, Image.Image) and preprocess is not None:
        return torch.from_numpy(preprocess(value))
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise QuantopsyError(
            thing, f"it holds a {type(value).__name__}", "give a tensor, (tensor, label) or {name: tensor}"
        )
    x = value.detach().cpu()
    return x.float() if x.is_floating_point() else x
