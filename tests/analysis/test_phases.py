"""Which images get which probe, and whether bfloat16 ranks as float32 does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from quantopsy.analysis.phases import lowest_rank, worth_probing
from quantopsy.core import Site, Spec
from quantopsy.engine.screen import Column


@pytest.mark.parametrize(
    ("near", "probed"),
    [(0, 25), (10, 25), (40, 40), (80, 50)],
)
def test_images_whose_runner_up_is_near_are_probed(near, probed) -> None:
    # A softmax gives a class ln 100 = 4.6 below another a hundredth of its probability.
    gaps = np.where(np.arange(100) < near, 4.5, 4.7)
    assert worth_probing(gaps) == probed


@given(st.lists(st.floats(0.0, 50.0, width=32), min_size=1, max_size=50))
def test_there_is_always_an_image_to_probe(gaps) -> None:
    assert 1 <= worth_probing(np.array(gaps)) <= (len(gaps) + 1) // 2


def made_up() -> list[Column]:
    """Five layers' weights at two bit-widths, and their inputs."""
    specs = [("weight", 4), ("weight", 8), ("input", 8)]
    return [Column(Site(f"l{i}", role), Spec(bits=bits), f"v{i}") for role, bits in specs for i in range(5)]


def test_the_lowest_rank_is_of_one_bit_width_of_weights_or_of_activations() -> None:
    rng = np.random.default_rng(0)
    exact = rng.uniform(1, 2, 15) * np.repeat([100.0, 1.0, 1.0], 5)  # bit-widths are orders of magnitude apart
    halved = exact.copy()
    assert lowest_rank(made_up(), exact, halved) == pytest.approx(1.0)
    halved[5:10] = halved[[6, 5, 7, 9, 8]]
    assert lowest_rank(made_up(), exact, halved) == pytest.approx(spearmanr(exact[5:10], halved[5:10]).statistic)


@pytest.mark.parametrize("rows", [slice(0, 5), slice(5, 10), slice(10, 15)])
def test_noises_that_overflow_are_not_ranked_as_float32_does(rows) -> None:
    exact = np.arange(1.0, 16.0)
    halved = exact.copy()
    halved[rows] = np.nan
    assert lowest_rank(made_up(), exact, halved) == 0.0


def test_what_is_hidden_is_not_ranked() -> None:
    exact = np.arange(1.0, 16.0)
    halved = exact.copy()
    exact[3], halved[3] = np.nan, np.nan
    exact[12], halved[12] = 0.0, 7.0
    assert lowest_rank(made_up(), exact, halved) == pytest.approx(1.0)
    assert lowest_rank(made_up()[:2], exact[:2], halved[:2]) == pytest.approx(1.0)
