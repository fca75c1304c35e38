"""The picture of a layer's channels before and after equalization."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantopsy.core import QuantopsyError
from quantopsy.graph.capture import capture
from quantopsy.report.distributions import channel_shares
from quantopsy.report.figures import equalized_ranges
from quantopsy.transforms.equalization import find_equalization


def test_shares_are_of_the_largest_weight(small, images) -> None:
    with torch.no_grad():
        small.left.weight[3] = 0
    network = capture(small, (images[:2],))
    weight = small.left.weight.detach().abs()
    found = channel_shares(network, "left")
    np.testing.assert_allclose(found.out, (weight.amax((1, 2, 3)) / weight.max()).numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.into, (weight.amax((0, 2, 3)) / weight.max()).numpy(), rtol=1e-6)
    assert len(channel_shares(network, "depthwise.0").into) == 8
    with pytest.raises(QuantopsyError, match="it has no weight to show"):
        channel_shares(network, "pool")


def test_the_figure_shows_both_networks_on_both_sides(small, images) -> None:
    with torch.no_grad():
        small.left.weight[3] = 0
    network = capture(small, (images[:2],))
    figure = equalized_ranges(network, find_equalization(network).apply(network), "left")
    assert [trace.name for trace in figure.data] == ["before", "after", "before", "after"]
    assert np.isnan(figure.data[0].y[3])
    np.testing.assert_allclose(np.delete(figure.data[0].y, 3), np.delete(channel_shares(network, "left").out, 3))
    assert not np.allclose(figure.data[1].y[:3], figure.data[0].y[:3])
