"""Recipes with something wrong in them: one value of the JSON swapped, dropped, stretched or cut, by a seeded draw."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

WRONG: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**9, 10**40, -(10**18), 0.5, 1e300, -1e-300, float("nan"), float("inf"),
    float("-inf"), "", "8", "conv2d", "given:0000", "none", "../x", "\u0000", [], [1], [[1, 2], [3]], [None], {},
    {"a": 1}, {"kind": "uniform"}, [{}], "A" * 5000, [0] * 300,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value in a JSON document, containers included."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in children for found in places(child, (*path, key)))]


def mutated(document: Any, seed: int) -> str:
    """The text of ``document`` with one to three mutations.

    Every level of the document is drawn equally often: most of its values are numbers of grids.
    """
    draw = random.Random(seed)
    changed = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        by_depth: dict[int, list[tuple[Any, ...]]] = {}
        for path in places(changed):
            by_depth.setdefault(len(path), []).append(path)
        path = draw.choice(by_depth[draw.choice(sorted(by_depth))])
        changed = _changed(changed, path, draw)
    text = json.dumps(changed)
    if draw.random() < 0.05:
        text = text[: draw.randrange(len(text))]
    return text


def _changed(document: Any, path: tuple[Any, ...], draw: random.Random) -> Any:
    if not path:
        return copy.deepcopy(draw.choice(WRONG))
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    own = holder[key]
    what = draw.choice(("wrong", "wrong", "drop", "repeat", "rename", "number"))
    if what == "drop":
        del holder[key]
    elif what == "repeat" and isinstance(own, list | str):
        holder[key] = own[: len(own) // 2] if draw.random() < 0.5 else own * 2
    elif what == "rename" and isinstance(holder, dict):
        holder[draw.choice(("other", f"{key}x", "", *holder))] = holder.pop(key)
    elif what == "number" and isinstance(own, int | float):
        holder[key] = draw.choice((own + 1, -own, own * 1e6, own * 1e-30, float(own), str(own), [own]))
    else:
        holder[key] = copy.deepcopy(draw.choice(WRONG))
    return document
