"""Statistics of images on their own: the ranges of any subset are those that a calibration on it would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from folded_nets import FOLDED, Mixed, folded
from random_net import pictures
from small_net import SmallNet, randomise_norms

from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.core import QuantopsyError
from quantopsy.data import open_data
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.image_statistics import Moments, image_statistics
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.quant import fake_quantize

ESTIMATORS = ("min_max", "percentile:99", "mse", "moving_average:0.2", "topk_median:3", "entropy")


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    model = randomise_norms(SmallNet())
    return compile_network(capture(model, (torch.randn(2, 3, 16, 16),)))


@pytest.fixture(scope="module")
def images():
    return open_data(3 * torch.randn(14, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


def wanted_by(program, estimator, bits=8):
    changes = {role: {"range_estimator": estimator} for role in ("input", "output")}
    return wanted_statistics(program.network, [full_plan(program.network, grids("per-tensor", bits, changes))])


def looked_at(program, images, wanted, *, tile=4, **options):
    batches = [images.batch(range(start, min(start + tile, len(images)))) for start in range(0, len(images), tile)]
    return image_statistics(program, batches, wanted, images=len(images), **options)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rows", [[0], [3, 8, 11], list(range(14))])
def test_a_subset_has_the_ranges_of_a_calibration_on_it(program, images, estimator, rows) -> None:
    wanted = wanted_by(program, estimator)
    found = looked_at(program, images, wanted).calibration(np.array(rows))
    expected = calibrate(program, [images.batch(rows).inputs], wanted)
    for (value, _), spec in wanted.statistics.items():
        mine, theirs = found.qparams(value, spec), expected.qparams(value, spec)
        torch.testing.assert_close(mine.scale, theirs.scale, rtol=1e-6, atol=0)
        assert torch.equal(mine.zero_point, theirs.zero_point)


def test_tiles_of_any_size_give_the_same(program, images) -> None:
    wanted = wanted_by(program, "mse")
    one, other = looked_at(program, images, wanted, tile=1), looked_at(program, images, wanted, tile=14)
    assert one.digests == other.digests
    np.testing.assert_allclose(one.moments.columns, other.moments.columns, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one.inputs["x"].high, other.inputs["x"].high)


def test_moments_are_numpys() -> None:
    x = torch.randn(5, 3, 4, 6)
    found, pixels = Moments.of(x, axis=1), x.numpy().reshape(5, 3, -1)
    for part, expected in (("low", "min"), ("high", "max"), ("mean", "mean"), ("std", "std")):
        np.testing.assert_allclose(getattr(found, part), getattr(pixels, expected)(2), rtol=1e-5, atol=1e-6)
    vectors = Moments.of(x.reshape(5, -1), axis=1)
    np.testing.assert_allclose(vectors.mean[:, 0], pixels.reshape(5, -1).mean(1), rtol=1e-4, atol=1e-6)


def test_what_ranges_clip_is_counted_value_by_value(program, images) -> None:
    wanted = wanted_by(program, "min_max", bits=4)
    ranges = calibrate(program, [images.batch([0, 1]).inputs], wanted)
    found = looked_at(program, images, wanted, ranges=ranges)
    assert found.clipped is not None
    assert found.clipped.share[:2].max() == 0
    assert (found.clipped.share[2:] > 0).any()
    place = next(i for i, item in enumerate(found.activations) if item.value == "x")
    x = images.batch(range(14)).inputs[0]
    grid = ranges.qparams("x", found.activations[place].spec)
    low, high = fake_quantize(torch.tensor([-1e9, 1e9]), grid)
    # Clipped is what rounding alone, by half a step, does not explain.
    beyond = torch.maximum(low - x, x - high).flatten(1)
    np.testing.assert_allclose(found.clipped.share[:, place], (beyond > grid.scale / 2).float().mean(1), atol=1e-6)
    furthest = beyond.amax(1) / (high - low)
    expected = furthest.where(furthest > grid.scale / 2 / (high - low), 0)
    np.testing.assert_allclose(found.clipped.excess[:, place], expected, rtol=1e-4, atol=1e-6)


def test_memory_is_bounded(program, images) -> None:
    with pytest.raises(QuantopsyError, match=r"14 images.*GiB.*--calibration-samples"):
        looked_at(program, images, wanted_by(program, "mse"), max_memory=1e-4)


@pytest.mark.parametrize("kind", FOLDED)
@pytest.mark.parametrize("estimator", ["min_max", "moving_average:0.2", "percentile:99"])
def test_an_image_may_have_several_rows_in_a_value_or_not_be_outermost(kind, estimator) -> None:
    program = compile_network(capture(folded(kind), (pictures(2),)))
    data = open_data(pictures(12))
    wanted = wanted_by(program, estimator)
    found = looked_at(program, data, wanted)
    one = looked_at(program, data, wanted, tile=1)
    np.testing.assert_allclose(found.moments.columns, one.moments.columns, rtol=1e-3, atol=1e-4)
    rows = [1, 4, 5, 6, 10]
    expected = calibrate(program, [data.batch(some).inputs for some in ([1, 4, 5], [6, 10])], wanted)
    alone = calibrate(program, [data.batch([row]).inputs for row in rows], wanted)
    clipped = looked_at(program, data, wanted, ranges=expected).clipped
    assert clipped is not None
    assert clipped.share.shape == (12, len(found.activations))
    for (value, _), spec in wanted.statistics.items():
        for other in (found.calibration(np.array(rows)), alone):
            mine, theirs = other.qparams(value, spec), expected.qparams(value, spec)
            torch.testing.assert_close(mine.scale, theirs.scale, rtol=1e-5, atol=0)


def test_values_that_mix_images_are_named() -> None:
    program = compile_network(capture(folded(Mixed), (pictures(2),)))
    with pytest.raises(QuantopsyError, match=r"values at layer 'mean_1'.*keep images apart"):
        looked_at(program, open_data(pictures(4)), wanted_by(program, "min_max"))
