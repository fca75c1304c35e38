"""Comparisons of made-up studies that most tests here look at."""

from __future__ import annotations

import pytest
from made_up import layer_table
from made_up_study import write_study

import quantopsy as qp
from quantopsy.analysis.comparison import Compared

LAYERS = layer_table(20)


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Compared:
    """Layer 5 lost 40 in 100 more and layer 9 is louder; the last layer of the second study has no partner."""
    folder = tmp_path_factory.mktemp("studies")
    more = layer_table(21).assign(name=[*LAYERS["name"][:19], "extra", "classifier"])
    before = write_study(folder / "before", LAYERS, bits=(4, 8))
    after = write_study(
        folder / "after",
        more,
        bits=(4, 8),
        seed=1,
        lost={5: 0.4},
        noise={9: 4e-3},
        whole_lost=0.5,
        scheme="per-channel",
    )
    return qp.compare(before, after).compared


@pytest.fixture(scope="module")
def alike(tmp_path_factory) -> Compared:
    """The same network on other images: nothing changed."""
    folder = tmp_path_factory.mktemp("studies")
    before = write_study(folder / "before", LAYERS)
    return qp.compare(before, write_study(folder / "after", LAYERS, seed=1, data="others")).compared


@pytest.fixture(scope="module")
def widths(tmp_path_factory) -> Compared:
    """One study at three bit-widths."""
    return qp.compare(write_study(tmp_path_factory.mktemp("studies") / "one", LAYERS, bits=(4, 6, 8))).compared
