"""When the float network is no reference any more."""

from __future__ import annotations

import numpy as np
import pandas as pd

from quantopsy.analysis.reference import reference_doubt


def cells(degradation: np.ndarray, noise: np.ndarray, width: float = 1.0, method: str = "exact") -> pd.DataFrame:
    """Layers with intervals of +- ``width``."""
    return pd.DataFrame(
        {
            "name": [f"layer{i}" for i in range(len(noise))],
            "noise": noise,
            "degradation": degradation,
            "degradation_low": degradation - width,
            "degradation_high": degradation + width,
            "method": method,
        }
    )


def test_a_sound_network_is_rarely_doubted() -> None:
    rng = np.random.default_rng(0)
    doubted = 0
    for _ in range(300):
        # Forty harmless layers whose losses scatter as their intervals say, and a few that lose by their noise.
        loss = rng.normal(0, 1 / 1.96, 40)
        noise = rng.uniform(0.1, 1, 40)
        noise[:6] = rng.uniform(5, 20, 6)
        loss[:6] += noise[:6]
        doubted += bool(reference_doubt(cells(loss, noise)))
    assert doubted < 0.03 * 300


def test_layers_that_improve_the_metric_are_no_chance_when_many() -> None:
    loss = np.where(np.arange(20) < 6, -3.0, 0.0)
    noise = np.linspace(1, 2, 20)
    assert reference_doubt(cells(loss, noise)).startswith("6 of 20 layers improve the metric")
    assert not reference_doubt(cells(np.where(np.arange(20) < 1, -3.0, 0.0), noise))
    assert not reference_doubt(cells(loss, noise, method="screened"))


def test_noise_that_says_nothing_of_the_loss_is_told() -> None:
    noise = np.arange(1.0, 11.0)
    assert not reference_doubt(cells(5 + noise, noise))
    assert "those with more noise do not lose more" in reference_doubt(cells(20 - noise, noise))
    assert not reference_doubt(cells(20 - noise[:3], noise[:3]))
