"""``package.module:attribute``: how a command line names something in Python."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from quantopsy.core.errors import QuantopsyError
from quantopsy.core.names import unknown


def imported(text: str, thing: str) -> Any:
    """What ``text`` names, the current folder being importable too; ``thing`` is what it should be.

    Raises :class:`QuantopsyError` for a module that fails to import and, with the nearest names, for
    an attribute that is not there.
    """
    module_name, _, attribute = text.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
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
            public = [name for name in dir(target) if not name.startswith("_")]
            raise unknown(part, public, f"{thing} in module {module_name!r}") from None
    return target


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
