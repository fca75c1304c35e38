"""Streaming statistics: the same however the images come, small, and close to looking at everything."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantopsy.calibrate import Observer, fit, observer, realise
from quantopsy.calibrate.histogram import Histogram
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import fake_quantize

GRANULARITIES = ("per_tensor", "per_channel")


def images(seed: int = 0, n: int = 12, size: int = 6) -> torch.Tensor:
    """(n, 3, size, size); later images are larger, so that ranges grow."""
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return x * (1 + torch.arange(n).reshape(-1, 1, 1, 1)) * torch.tensor([0.1, 1, 30]).reshape(3, 1, 1)


def watched(spec: Spec, *batches: torch.Tensor) -> Observer:
    seen = observer(spec)
    for batch in batches:
        seen.update(batch)
    return seen


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["min_max", "percentile:99", "aciq", "moving_average", "topk_median:3"])
@settings(max_examples=10, deadline=None)
@given(cut=st.integers(1, 11), size=st.integers(1, 12), seed=st.integers(0, 99))
def test_cutting_and_merging_change_nothing(name: str, granularity: str, cut: int, size: int, seed: int) -> None:
    spec = Spec(range_estimator=name, granularity=granularity, bits=4)
    x = images(seed)
    whole = realise(spec, watched(spec, x))
    batches = realise(spec, watched(spec, *x.split(size)))
    merged = realise(spec, watched(spec, x[:cut]).merge(watched(spec, x[cut:])))
    for other in (batches, merged):
        torch.testing.assert_close(other.scale, whole.scale, rtol=1e-6, atol=0)
        assert torch.equal(other.zero_point, whole.zero_point)


# No number so small that the bins of the largest make it vanish: such a one counts as a positive zero.
_NUMBERS = st.floats(-(2.0**90), 2.0**90, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-30)


@settings(max_examples=50, deadline=None)
@given(st.lists(_NUMBERS, min_size=2, max_size=40), st.data())
def test_histograms_of_parts_are_the_histogram_of_the_whole(values: list[float], data: st.DataObject) -> None:
    x = torch.tensor(values)[None]
    cut = data.draw(st.integers(1, len(values) - 1))
    whole, first, second = (Histogram.of(part, part.abs().amax(1), 16) for part in (x, x[:, :cut], x[:, cut:]))
    merged = second.merge(first)
    assert torch.equal(merged.counts, whole.counts)
    assert torch.equal(merged.exponent, whole.exponent)
    assert int(whole.counts.sum()) == len(values)
    assert int(whole.zeros) == values.count(0)


def test_histogram_bins_hold_what_lies_in_them() -> None:
    x = torch.randn(1, 10_000)
    histogram = Histogram.of(x, x.abs().amax(1), 64)
    width = float(histogram.width)
    edges = torch.arange(-64, 65) * width
    expected = torch.histogram(x[0].double(), edges.double()).hist
    assert torch.equal(histogram.counts[0].double(), expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["min_max", "percentile:99.9", "sigma:3", "mse", "entropy", "aciq", "sawb"])
def test_streaming_comes_close_to_a_look_at_everything(name: str, granularity: str) -> None:
    x = torch.randn(16, 4, 40, 40, generator=torch.Generator().manual_seed(3)).relu()
    for bits in (4, 8):
        spec = Spec(range_estimator=name, granularity=granularity, bits=bits)
        streamed, direct = realise(spec, watched(spec, *x.split(5))), fit(spec, x, axis=1)
        ours, theirs = ((fake_quantize(x, qparams) - x).square().mean() for qparams in (streamed, direct))
        # KL sees the bins themselves, and a histogram's are not those of the data in hand.
        slack = 1.6 if name == "entropy" else 1.15
        assert float(ours) <= slack * float(theirs) + 1e-6


@pytest.mark.parametrize("kind", ["piecewise", "k_means", "lloyd_max"])
def test_kinds_that_need_data_are_realised_from_the_histogram(kind: str) -> None:
    x = torch.randn(8, 4, 30, 30, generator=torch.Generator().manual_seed(4))
    spec = Spec(kind=kind, bits=3)
    streamed, direct = realise(spec, watched(spec, x)), fit(spec, x)
    ours, theirs = ((fake_quantize(x, qparams) - x).square().mean() for qparams in (streamed, direct))
    assert float(ours) <= 1.02 * float(theirs)


def test_large_images_are_thinned_but_extremes_are_exact() -> None:
    x = torch.randn(4, 8, 96, 96, generator=torch.Generator().manual_seed(5))
    x[2, 3, 5, 7] = 40
    for granularity in GRANULARITIES:
        spec = Spec(range_estimator="mse", granularity=granularity)
        seen = watched(spec, x)
        assert float(seen.high.max()) == 40
        laid = watched(spec, x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(realise(spec, laid).scale, realise(spec, seen).scale)
        expected = x.amax() if granularity == "per_tensor" else x.amax((0, 2, 3))
        assert torch.equal(seen.high, expected)


def test_moving_average_follows_its_recurrence() -> None:
    x = images()
    low, high = (x[0].min(), x[0].max())
    for image in x:
        low, high = torch.lerp(low, image.min(), 0.1), torch.lerp(high, image.max(), 0.1)
    spec = Spec(range_estimator="moving_average:0.1")
    expected = (high - low) / 255
    torch.testing.assert_close(realise(spec, watched(spec, *x.split(4))).scale, expected, rtol=1e-5, atol=0)


def test_topk_median_is_the_median_of_the_largest_extremes() -> None:
    x = images(n=20)
    spec = Spec(range_estimator="topk_median:4", symmetric=True, signed=False)
    highs = x.abs().amax((1, 2, 3)).sort().values[-4:]
    observed = realise(replace(spec), watched(spec, *x.abs().split(3)))
    torch.testing.assert_close(observed.scale, highs[1:3].mean() / 255, rtol=1e-5, atol=0)


def test_observers_are_shared_between_specs_that_need_the_same() -> None:
    key = observer(Spec(range_estimator="mse")).key
    assert key == observer(Spec(range_estimator="entropy", bits=3)).key
    assert key == observer(Spec(kind="k_means", bits=2)).key
    assert key != observer(Spec()).key
    assert key != observer(Spec(range_estimator="mse", granularity="per_channel")).key
    assert observer(Spec(range_estimator="topk_median:5")).key != observer(Spec(range_estimator="topk_median")).key
    assert len({key, observer(Spec()).key}) == 2


def test_observers_stay_tiny_and_can_be_pickled() -> None:
    spec = Spec(range_estimator="percentile")
    seen = watched(spec, *(torch.randn(2, 3, 50, 50) * 10**k for k in range(6)))
    packed = pickle.dumps(seen)
    assert len(packed) < 50_000
    again = pickle.loads(packed)
    assert again.key == seen.key
    assert torch.equal(realise(spec, again).scale, realise(spec, seen).scale)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["min_max", "percentile", "moving_average"])
def test_values_that_are_not_finite_are_refused_and_leave_no_trace(bad: float, name: str) -> None:
    spec = Spec(range_estimator=name)
    seen = watched(spec, images())
    before = realise(spec, seen).scale
    broken = images()
    broken[1, 2, 3, 4] = bad
    with pytest.raises(QuantopsyError, match="NaN or infinite"):
        seen.update(broken)
    assert torch.equal(realise(spec, seen).scale, before)
    with pytest.raises(QuantopsyError, match="NaN or infinite"):
        fit(spec, broken)


def test_misuse_is_explained() -> None:
    spec = Spec(range_estimator="percentile")
    with pytest.raises(QuantopsyError, match="empty"):
        observer(spec).update(torch.empty(0, 3, 4, 4))
    with pytest.raises(QuantopsyError, match="empty"):
        fit(spec, torch.empty(0, 3))
    with pytest.raises(QuantopsyError, match="seen no image"):
        realise(spec, observer(spec))
    with pytest.raises(QuantopsyError, match="other statistics"):
        realise(spec, watched(Spec(), images()))
    with pytest.raises(QuantopsyError, match="groups divide weights"):
        observer(Spec(granularity="per_group:4"))
    with pytest.raises(QuantopsyError, match="cannot join"):
        observer(spec).merge(observer(Spec()))
    with pytest.raises(QuantopsyError, match="axis 3"):
        observer(Spec(granularity="per_channel"), axis=3).update(torch.ones(3, 4, 5))


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 5), (7, 3, 2, 2, 2), (2, 4_000)])
def test_any_rank_of_activation_is_observed(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    for granularity in GRANULARITIES[: min(len(shape), 2)]:
        spec = Spec(range_estimator="percentile:100", granularity=granularity)
        result = fake_quantize(x, realise(spec, watched(spec, x)))
        assert (result - x).square().mean() < 1e-3


def test_half_precision_is_observed_as_float32() -> None:
    x = images().half()
    spec = Spec(range_estimator="percentile:99")
    assert torch.equal(realise(spec, watched(spec, x)).scale, realise(spec, watched(spec, x.float())).scale)


def test_a_number_for_each_image_is_one_channel() -> None:
    spec = Spec(granularity="per_channel")
    seen = observer(spec)
    x = torch.tensor([1.0, -2.0, 0.5])
    seen.update(x)
    qparams = realise(spec, seen)
    assert (float(seen.low), float(seen.high)) == (-2.0, 1.0)
    assert fake_quantize(x, qparams).shape == x.shape
