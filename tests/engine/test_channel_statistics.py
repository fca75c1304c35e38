"""Statistics of channels against torch's own on all images at once."""

from __future__ import annotations

import pytest
import torch

from quantopsy.core import QuantopsyError
from quantopsy.engine.channel_statistics import channel_statistics
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network


def test_they_are_those_of_all_images_whatever_the_batches(small, images) -> None:
    network = capture(small, (images[:2],))
    program = compile_network(network)
    found = channel_statistics(program, [(images[:5],), (images[5:],)])
    values = program.place((images,))
    with torch.no_grad():
        program.forward(values, keep=True)
    assert set(found) == {layer.output for layer in network.layers}
    for layer in network.layers:
        rows = values[layer.output].movedim(1, 0).flatten(1)
        seen = found[layer.output]
        torch.testing.assert_close(seen.low, rows.amin(1))
        torch.testing.assert_close(seen.high, rows.amax(1))
        torch.testing.assert_close(seen.mean, rows.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen.std, rows.std(1, correction=0), rtol=1e-4, atol=1e-5)


def test_without_images_there_are_none(small, images) -> None:
    program = compile_network(capture(small, (images[:2],)))
    with pytest.raises(QuantopsyError, match="no image to take them from"):
        channel_statistics(program, [])
