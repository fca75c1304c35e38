"""Study folders with planted losses and noises, written image by image, without a network behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from quantopsy.core import Plan, Site, Spec
from quantopsy.study import FLOAT, RunnerUp, TileResult, create

ACCURACY = 0.85


def write_study(
    folder: Path,
    layers: pd.DataFrame,
    *,
    bits: Sequence[int] = (8,),
    images: int = 300,
    lost: Mapping[int, float] | None = None,
    noise: Mapping[int, float] | None = None,
    whole_lost: float = 0.02,
    seed: int = 0,
    network_seed: int = 0,
    data: str = "images",
    scheme: str = "per-tensor",
    metric: str = "top1",
) -> Path:
    """A study of ``layers``, a share ``lost`` of the right answers going with a layer, and ``noise`` over signal.

    Else a hundredth is lost, and noise is 0.001 at 8 bits, four times as much a bit below. ``network_seed``
    makes the float network and ``data`` its images; ``seed`` what quantizing does to them.
    """
    lost, noise = lost or {}, noise or {}
    hard = np.random.default_rng(sum(map(ord, data))).random(images)
    random = np.random.default_rng(network_seed)
    right = (hard + 0.2 * random.standard_normal(images) < ACCURACY).astype(float)
    signal = 100.0 * random.lognormal(0.0, 0.3, images)
    random = np.random.default_rng([seed, network_seed, len(layers)])
    indices = np.arange(images)

    def tile(run: int, share: float, over_signal: float) -> TileResult:
        own = np.where(random.random(images) < 0.5, hard, random.random(images))
        scores = np.where(own > 1.0 - share, 0.0, right)
        energy = over_signal * signal * random.lognormal(0.0, 0.6, images)
        return TileResult(run, indices, energy, np.full(images, 1.0 - share), scores[:, None], 0.1)

    identity = {"model": f"network {network_seed}", "data": data, "metric": metric}
    with create(folder, identity) as store:
        float_run = TileResult(FLOAT, indices, signal, np.ones(images), right[:, None], 0.1)
        results = {FLOAT: float_run}
        cells, whole = [], []
        for width in bits:
            for layer in layers.itertuples():
                weighted = layer.weight_shape is not None
                spec = Spec(bits=width) if weighted else Spec()
                run = store.run(Plan.of({Site(layer.name, "weight" if weighted else "output"): spec}))
                cells.append({"layer": layer.layer, "bits": width, "run": run})
                if run not in results:
                    over_signal = noise.get(layer.layer, 1e-3) * (4.0 ** (8 - width) if weighted else 1.0)
                    results[run] = tile(run, lost.get(layer.layer, 0.01), over_signal)
            run = store.run(Plan.of({Site(name, "weight"): Spec(bits=width) for name in layers["name"]}))
            whole.append({"bits": width, "run": run})
            results[run] = tile(run, whole_lost, 1e-2 * 4.0 ** (8 - width))
        store.append(results.values(), RunnerUp(indices, np.empty((images, 0)), np.empty((images, 0))))
        for key, value in {
            "request": {"given": {"metric": metric}},
            "settings": {"scheme": scheme, "mode": "exact", "samples": images, "level": 0.95},
            "order": indices.tolist(),
            "layers": layers.rename(columns={"layer": "index"}).to_dict("records"),
            "cells": cells,
            "whole": whole,
            "model": f"package:network_{network_seed}",
            "data": data,
            "labelled": True,
            "provenance": identity,
        }.items():
            store.note(key, value)
    return folder
