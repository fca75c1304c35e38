"""What a function or an object of the user's does, as a digest that another process finds again."""

from __future__ import annotations

import hashlib
import sys
import types
import uuid
from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Code of these is known by its name.
_LIBRARIES = frozenset({*sys.stdlib_module_names, "quantopsy", "torch", "torchmetrics", "numpy", "scipy", "sklearn"})

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice)
_NAMED = (types.ModuleType, torch.dtype, torch.device, np.ufunc)

# What a function reads in its own module and is described with it.
_READ = (bool, int, float, str, tuple, Tensor, np.ndarray)

# Objects that cannot be described, and what stands for them in this process.
_UNTOLD: list[tuple[Any, str]] = []


def definition(value: Any) -> str:
    """A digest of what ``value`` is: equal in every process for the same code and the same state.

    Of a function its import path, byte code, constants, defaults, closure and what it takes from its own module; of
    an object its class and what pickling would store. What cannot be pickled equals itself only, while this process
    lives.
    """
    try:
        return _Digest().of(value)
    except Exception:
        known = next((name for other, name in _UNTOLD if other is value), None)
        if known is None:
            known = f"untold {uuid.uuid4().hex}"
            _UNTOLD.append((value, known))
        return known


class _Digest:
    """Digests of one value and all that it consists of; what is met again stands as its number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._met: list[Any] = []  # alive, or another object could get the address

    def of(self, value: Any) -> str:
        """The digest of ``value``."""
        # Constants may be one object or two, as the interpreter likes.
        if type(value) not in (*_PLAIN, tuple, frozenset, types.CodeType):
            if id(value) in self._numbers:
                return f"met {self._numbers[id(value)]}"
            self._numbers[id(value)] = len(self._met)
            self._met.append(value)
        digest = hashlib.sha256(type(value).__qualname__.encode())
        for part in _parts(value):
            digest.update(hashlib.sha256(part if isinstance(part, bytes) else self.of(part).encode()).digest())
        return digest.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    """What ``value`` consists of: bytes, and values that are described in turn."""
    if isinstance(value, Enum):
        yield f"{_path(type(value))}.{value.name}".encode()
    elif type(value) in _PLAIN:
        yield repr(value).encode()
    elif isinstance(value, _NAMED):
        yield str(getattr(value, "__name__", value)).encode()
    elif type(value) in (tuple, list, torch.Size):
        yield from value
    elif type(value) in (set, frozenset):
        yield from sorted(_Digest().of(item).encode() for item in value)
    elif type(value) is dict:
        yield from value.items()
    elif isinstance(value, Tensor):
        yield from (str(value.dtype).encode(), tuple(value.shape))
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield from (value.dtype.str.encode(), value.shape, value.tobytes())
    elif isinstance(value, types.FunctionType):
        yield from _function(value)
    elif isinstance(value, types.BuiltinFunctionType):
        yield from (value.__name__, value.__self__)
    elif isinstance(value, types.CodeType):
        yield from (value.co_code, value.co_consts, value.co_names, value.co_freevars)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, classmethod | staticmethod):
        yield value.__func__
    elif isinstance(value, property):
        yield from (value.fget, value.fset)
    elif isinstance(value, type):
        yield from _class(value)
    else:
        yield from _stored(value)


def _function(value: types.FunctionType) -> Iterator[Any]:
    yield _path(value).encode()
    if _of_library(value):
        return
    yield from (value.__code__, value.__defaults__, value.__kwdefaults__)
    yield tuple(cell.cell_contents for cell in value.__closure__ or ())
    # Attributes among the names do no harm: what is described in vain only refuses more.
    for name in _names(value.__code__):
        used = value.__globals__.get(name)
        own = isinstance(used, types.FunctionType | type) and used.__module__ == value.__module__
        if own or isinstance(used, _READ):
            yield (name, used)


def _names(code: types.CodeType) -> list[str]:
    """Names that ``code`` and the functions within it use."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return sorted({*code.co_names, *inner})


def _class(value: type) -> Iterator[Any]:
    yield _path(value).encode()
    if _of_library(value):
        return
    for name, part in vars(value).items():
        code = isinstance(part, types.FunctionType | classmethod | staticmethod | property)
        if code or (not name.startswith("__") and isinstance(part, (*_READ, list, dict))):
            yield (name, part)
    yield value.__bases__


def _stored(value: Any) -> Iterator[Any]:
    """Class and state of an object, as pickle has them."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        yield reduced
        return
    for part in reduced:
        yield list(part) if isinstance(part, Iterator) else part


def _path(value: Any) -> str:
    return f"{value.__module__}:{value.__qualname__}"


def _of_library(value: Any) -> bool:
    return value.__module__ is not None and value.__module__.partition(".")[0] in _LIBRARIES
