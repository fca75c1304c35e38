"""Profiles of layers over one another (layer-wise paper, Figures 3 and 4)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from quantopsy.analysis.comparison import Compared


def columns(compared: Compared) -> Mapping[str, list[int]]:
    """For each study (by label) the column of each of its layers, so that partners share one.

    A layer without a partner has a column of its own, behind the layer before it. A network of another
    architecture than the first has its own order from 0: there is nothing to line up.
    """
    base, *others = {view.label: view for view in compared.views}.values()
    order: list[Hashable] = [(base.label, layer) for layer in range(len(base.results.layers))]
    keys: dict[str, list[Hashable]] = {base.label: list(order)}
    apart: dict[str, list[int]] = {}
    matchings = {d.after.label: d.matching for d in compared.differences if d.after.label != base.label}
    for view in others:
        matching, layers = matchings[view.label], len(view.results.layers)
        if not matching.pairs:
            apart[view.label] = list(range(layers))
            continue
        partner = {pair.after: pair.before for pair in matching.pairs}
        mine: list[Hashable] = []
        for layer in range(layers):
            key = (base.label, partner[layer]) if layer in partner else (view.label, layer)
            if layer not in partner:
                order.insert(order.index(mine[-1]) + 1 if mine else 0, key)
            mine.append(key)
        keys[view.label] = mine
    place = {key: index for index, key in enumerate(order)}
    return {**{label: [place[key] for key in mine] for label, mine in keys.items()}, **apart}
