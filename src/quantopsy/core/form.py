"""What a JSON document has to look like, checked before anything is made of it, and numbers that JSON lacks.

A form is a type or a union of types (``int | float``), ``{}`` an object, ``{"name": form}`` an object whose entry
``name`` has that form where it is there (``str`` stands for every other name), ``[form]`` an array of such, and
``(form, form)`` an array of exactly those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NUMBER = int | float

_SPELLED = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
"""Numbers that are no JSON, by the strings that stand for them: those of Protocol Buffers' JSON."""


def misfit(value: Any, form: Any, place: str = "it") -> str | None:
    """The first place in ``value`` that is not of ``form``, in words; None where all is."""
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            return f"{place} is {_words(value)}, no object"
        entries = ((item, form.get(key, form.get(str, object)), f"{place}[{key!r}]") for key, item in value.items())
    elif isinstance(form, list | tuple):
        if not isinstance(value, list):
            return f"{place} is {_words(value)}, no array"
        if isinstance(form, tuple) and len(value) != len(form):
            return f"{place} has {len(value)} entries, not {len(form)}"
        forms = form if isinstance(form, tuple) else form * len(value)
        entries = ((item, own, f"{place}[{i}]") for i, (item, own) in enumerate(zip(value, forms, strict=True)))
    else:
        return None if isinstance(value, form) else f"{place} is {_words(value)}"
    return next((found for item, own, where in entries if (found := misfit(item, own, where))), None)


def spelled(value: Any) -> Any:
    """``value`` with the strings ``Infinity``, ``-Infinity``, ``NaN`` in the place of numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def counted(value: Any, form: Any) -> Any:
    """The inverse of :func:`spelled` wherever ``form`` has a :data:`NUMBER`; the rest, fitting or not, as it is."""
    if isinstance(form, Mapping) and isinstance(value, dict):
        return {key: counted(item, form.get(key, form.get(str, object))) for key, item in value.items()}
    if isinstance(form, list | tuple) and form and isinstance(value, list):
        forms = form if isinstance(form, tuple) and len(form) == len(value) else (form[0],) * len(value)
        return [counted(item, own) for item, own in zip(value, forms, strict=True)]
    return _SPELLED.get(value, value) if form == NUMBER and isinstance(value, str) else value


def _words(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
