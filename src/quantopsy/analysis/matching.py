"""Which layers of two networks are the same: by name, else by operation, shape and order."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import pandas as pd

SAME_NETWORK = 0.5
"""Share of the smaller network's layers with weights that must have a partner; below, the architectures differ."""


@dataclass(frozen=True)
class Pair:
    """A layer of each network, as its position in topological order, and what they have in common."""

    before: int
    after: int
    by: Literal["name", "shape"]


@dataclass(frozen=True)
class Matching:
    """``pairs`` in the order of the first network, and the positions of layers without a partner."""

    pairs: tuple[Pair, ...]
    only_before: tuple[int, ...]
    only_after: tuple[int, ...]


def match_layers(before: pd.DataFrame, after: pd.DataFrame) -> Matching:
    """Partners among the layers of two networks, tables as :class:`quantopsy.analysis.results.Results` has them.

    Layers of equal name, operation and kernel size are partners, whatever their channels: a network and a
    narrower one. The others are aligned as sequences of (operation, weight shape), in topological order and
    between those that were found by name (longest common blocks: J. Ratcliff, D. Metzener, Dr. Dobb's
    Journal 13 (1988) 46, as in :mod:`difflib`). Where fewer than :data:`SAME_NETWORK` of the smaller
    network's layers with weights find a partner the architectures differ, and nothing is matched.
    """
    shared = _shared_names(before, after)
    first, second = _tokens(before, shared), _tokens(after, shared)
    place = {name: index for index, name in enumerate(after["name"])}
    pairs = {index: Pair(index, place[name], "name") for index, name in enumerate(before["name"]) if name in shared}
    for block in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            pairs.setdefault(block.a + step, Pair(block.a + step, block.b + step, "shape"))
    found = tuple(pairs[index] for index in sorted(pairs))
    if not _enough(found, before, after):
        found = ()
    return Matching(
        found,
        tuple(sorted(set(range(len(before))) - {pair.before for pair in found})),
        tuple(sorted(set(range(len(after))) - {pair.after for pair in found})),
    )


def _shared_names(before: pd.DataFrame, after: pd.DataFrame) -> set[str]:
    """Names that mean the same operation with the same kernel size in both."""
    mine, other = (
        {name: (op, shape and shape[2:]) for name, op, shape in _described(table)} for table in (before, after)
    )
    return {name for name, kind in mine.items() if other.get(name) == kind}


def _tokens(layers: pd.DataFrame, shared: Container[str]) -> list[tuple[object, ...]]:
    """What stands for each layer in the alignment: a shared name, or operation and weight shape."""
    return [(name,) if name in shared else (op, shape) for name, op, shape in _described(layers)]


def _described(layers: pd.DataFrame) -> Iterator[tuple[str, str, tuple[int, ...] | None]]:
    """Name, operation and weight shape of every layer; no shape where there is no weight."""
    for name, op, shape in zip(layers["name"], layers["op"], layers["weight_shape"], strict=True):
        yield name, op, tuple(shape) if isinstance(shape, list | tuple) else None


def _enough(pairs: Sequence[Pair], before: pd.DataFrame, after: pd.DataFrame) -> bool:
    with_weights = before["weight_shape"].notna().to_numpy()
    smaller = min(int(with_weights.sum()), int(after["weight_shape"].notna().sum()))
    return sum(bool(with_weights[pair.before]) for pair in pairs) >= max(1.0, SAME_NETWORK * smaller)
