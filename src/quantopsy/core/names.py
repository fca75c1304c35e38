"""Matching what a user typed against the names that exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from quantopsy.core.errors import QuantopsyError

MOST = 3
"""Names that are offered for one there is not; of no more than that all are."""


def match(patterns: Iterable[str], names: Sequence[str], thing: str) -> list[str]:
    """The ``names``, in their own order, that equal or match (``*``, ``?``, ``[]``) a pattern.

    Raises :class:`QuantopsyError` with the nearest names for a pattern that matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not hits:
            raise unknown(pattern, names, thing)
        found |= hits
    return [name for name in names if name in found]


def unknown(name: str, names: Sequence[str], thing: str) -> QuantopsyError:
    """The error for a ``name`` that is not among ``names``, with the nearest ones."""
    near = get_close_matches(name, names, n=MOST, cutoff=0.3)
    if not near or len(names) <= MOST:
        near += [other for other in names if other not in near][:MOST]
    remedy = f"nearest are {', '.join(near)}" if near else "there is nothing to name"
    return QuantopsyError(f"{thing} {name!r}", "there is none of that name", remedy)
