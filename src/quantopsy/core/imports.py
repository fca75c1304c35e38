"""``package.module:attribute``: how a command line names something in Python."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from quantopsy.core.errors import QuantopsyError
from quantopsy.core.names import unknown


def imported(text: str, thing: str) -> Any:
    """What ``text`` names, the current folder being importable too; ``thing`` is what it should be.

    Raises :class:`QuantopsyError` for a module that fails to import and, with the nearest names, for
    an attribute that is not there.
    """
    module_name, _, attribute = text.partition(":")
    _make_importable()
    try:
        target: Any = importlib.import_module(module_name)
    except Exception as error:
        raise QuantopsyError(
            f"{thing} {text!r}",
            f"module {module_name!r} cannot be imported ({error})",
            "give package.module:callable with the package on PYTHONPATH or in this folder",
        ) from error
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            remedy = unknown(part, _own_names(target), thing).remedy
            reason = f"module {module_name!r} has no {attribute!r}"
            raise QuantopsyError(f"{thing} {text!r}", reason, remedy) from None
    return target


def is_module(text: str) -> bool:
    """Whether ``text`` names a module that could be imported."""
    if not all(part.isidentifier() for part in text.split(".")):
        return False
    _make_importable()
    try:
        return importlib.util.find_spec(text) is not None
    except Exception:  # a package in front of it that is none, or that fails
        return False


def _make_importable() -> None:
    """The current folder, too."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _own_names(target: Any) -> list[str]:
    """What a module itself defines, not what it imports; of anything else all its public names."""
    public = [name for name in dir(target) if not name.startswith("_")]
    if not isinstance(target, ModuleType):
        return public
    places = {name: f"{getattr(getattr(target, name), '__module__', '')}." for name in public}
    return [name for name, place in places.items() if place.startswith(f"{target.__name__}.")]


def called(text: str, thing: str, returns: str) -> Any:
    """What the callable that ``text`` names returns; ``returns`` says what it should.

    Raises :class:`QuantopsyError` as :func:`imported` does, and for a callable that fails.
    """
    target = imported(text, thing)
    if not callable(target):
        raise QuantopsyError(f"{thing} {text!r}", f"it is a {type(target).__name__}, not callable", "name a function")
    try:
        return target()
    except Exception as error:
        raise QuantopsyError(
            f"{thing} {text!r}",
            f"the callable failed ({type(error).__name__}: {error})",
            f"it must run without arguments and return {returns}",
        ) from error
