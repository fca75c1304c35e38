"""What a JSON document has to look like, checked before anything is made of it.

A form is a type or a union of types (``int | float``), ``{}`` an object, ``{"name": form}`` an object whose entry
``name`` has that form where it is there (``str`` stands for every other name), ``[form]`` an array of such, and
``(form, form)`` an array of exactly those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUMBER = int | float


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


def _words(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
