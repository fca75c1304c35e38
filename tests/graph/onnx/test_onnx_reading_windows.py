"""Pooling, convolution and resampling at any size and padding: as ONNX Runtime gives them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_models import by_runtime, integers, model_of, node, opened, values

from quantopsy.core import QuantopsyError
from quantopsy.graph.capture import capture


def ours(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray | None:
    """By our reading; None where it refuses."""
    with TemporaryDirectory() as folder, torch.no_grad(), contextlib.suppress(QuantopsyError):
        return opened(model, Path(folder))(torch.from_numpy(x)).numpy()
    return None


def theirs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """By the runtime; what it refuses is no example."""
    try:
        found = by_runtime(model, x)[0]
    except Exception:  # its exceptions share no class
        assume(False)
        raise
    assume(found.size)  # a window larger than the image gives it an empty picture
    return found


@st.composite
def pools(draw: st.DrawFn) -> tuple[tuple[int, int], dict[str, Any]]:
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "ceil_mode": draw(st.integers(0, 1)),
    }
    if draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    else:
        attributes["auto_pad"] = draw(st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]))
        attributes["ceil_mode"] = 0
        # Of a stride beyond the kernel the runtime's pools take pads below nothing, its convolutions none.
        attributes["strides"] = [min(pair) for pair in zip(attributes["strides"], kernel, strict=True)]
    return (draw(st.integers(7, 9)), draw(st.integers(7, 9))), attributes  # no window is larger


@settings(max_examples=60, deadline=None)
@given(pools(), st.sampled_from([1, 2]))
def test_max_pooling(pool: tuple[tuple[int, int], dict[str, Any]], dilation: int) -> None:
    size, attributes = pool
    x = values(2, 3, *size)
    if "auto_pad" in attributes:  # the runtime's SAME leaves dilations out
        dilation = 1
    made = node("MaxPool", ["x"], dilations=[dilation] * 2, **attributes)
    model = model_of([made], ("n", 3, *size))
    wanted = theirs(model, x)
    found = ours(model, x)
    if found is None:  # what torch has no form for is refused, and only there
        assert dilation > 1
        return
    np.testing.assert_array_equal(found, wanted)


@settings(max_examples=60, deadline=None)
@given(pools(), st.integers(0, 1))
def test_average_pooling(pool: tuple[tuple[int, int], dict[str, Any]], counted: int) -> None:
    size, attributes = pool
    x = values(2, 3, *size)
    model = model_of([node("AveragePool", ["x"], count_include_pad=counted, **attributes)], ("n", 3, *size))
    np.testing.assert_allclose(ours(model, x), theirs(model, x), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(pools(), st.integers(1, 2), st.sampled_from(["Conv", "ConvTranspose"]))
def test_convolutions(pool: tuple[tuple[int, int], dict[str, Any]], dilation: int, op_type: str) -> None:
    size, attributes = pool
    del attributes["ceil_mode"]
    if "auto_pad" in attributes:
        dilation = 1
    if op_type == "ConvTranspose":  # the runtime leaves open what a pad larger than the image is
        assume(all(s <= k for s, k in zip(attributes["strides"], attributes["kernel_shape"], strict=True)))
    x = values(2, 4, *size)
    made = node(op_type, ["x", "w"], dilations=[dilation] * 2, **attributes)
    model = model_of([made], ("n", 4, *size), {"w": values(4, 4, *attributes["kernel_shape"])})
    np.testing.assert_allclose(ours(model, x), theirs(model, x), rtol=1e-3, atol=1e-4)


NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(PLACES),
    st.sampled_from(NEAREST),
    st.tuples(st.integers(2, 6), st.integers(2, 6)),
    st.tuples(*[st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])] * 2),
    st.booleans(),
)
def test_resizing(
    mode: str, place: str, rounding: str, size: tuple[int, int], scales: tuple[float, float], by_size: bool
) -> None:
    x = values(2, 3, *size)
    out = [int(n * s) for n, s in zip(size, scales, strict=True)]
    assume(min(out) >= 1)
    constants: dict[str, np.ndarray] = (
        {"to": integers(2, 3, *out)} if by_size else {"scales": np.array([1, 1, *scales], np.float32)}
    )
    operands = ["x", "", "", "to"] if by_size else ["x", "", "scales"]
    made = node("Resize", operands, mode=mode, coordinate_transformation_mode=place, nearest_mode=rounding)
    model = model_of([made], (2, 3, *size), constants, opset=17)
    found, wanted = ours(model, x), theirs(model, x)
    assert found is not None
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rounding", NEAREST)
@pytest.mark.parametrize("scale", [0.7, 1.1, 2.2])
def test_neighbours_are_the_runtimes_where_a_float_decides(place: str, rounding: str, scale: float) -> None:
    made = node(
        "Resize", ["x", "", "scales"], mode="nearest", coordinate_transformation_mode=place, nearest_mode=rounding
    )
    x = values(1, 1, 1, 50)
    model = model_of([made], (1, 1, 1, 50), {"scales": np.array([1, 1, 1, scale], np.float32)}, opset=17)
    np.testing.assert_array_equal(ours(model, x), by_runtime(model, x)[0])


@pytest.mark.parametrize(("size", "out"), [(198, 174), (14, 25), (47, 94), (61, 33)])
def test_neighbours_are_the_runtimes_at_every_size(size: int, out: int) -> None:
    made = node("Resize", ["x", "", "", "to"], coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    x = np.arange(size, dtype=np.float32).reshape(1, 1, 1, size)
    model = model_of([made], x.shape, {"to": integers(1, 1, 1, out)}, opset=17)
    np.testing.assert_array_equal(ours(model, x), by_runtime(model, x)[0])


@pytest.mark.parametrize(
    ("mode", "place", "scale", "op"),
    [
        ("nearest", "asymmetric", 2.0, "upsample"),
        ("nearest", "half_pixel", 2.0, "upsample"),
        ("linear", "half_pixel", 2.0, "upsample"),
        ("linear", "pytorch_half_pixel", 1.5, "upsample"),
        ("linear", "align_corners", 2.0, "upsample"),
        ("cubic", "half_pixel", 2.0, "upsample"),
        ("linear", "asymmetric", 2.0, "matmul"),
    ],
)
def test_what_torch_upsamples_is_one_layer(mode: str, place: str, scale: float, op: str, tmp_path) -> None:
    made = [
        node("Conv", ["x", "w"], ["c"]),
        node(
            "Resize", ["c", "", "scales"], mode=mode, coordinate_transformation_mode=place,
            nearest_mode="floor" if place == "asymmetric" else "round_prefer_floor",
        ),
    ]  # fmt: skip
    constants = {"w": values(4, 3, 1, 1), "scales": np.array([1, 1, scale, scale], np.float32)}
    model = model_of(made, ("n", 3, 6, 6), constants, opset=19)
    network = capture(opened(model, tmp_path), (torch.from_numpy(values(2, 3, 6, 6)),))
    assert {layer.op for layer in network.layers} == {"conv2d", op}
