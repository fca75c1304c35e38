"""Every operator that is read gives what ONNX Runtime gives, or ONNX's reference where the runtime lacks it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx_models import (
    NEWEST,
    NEWEST_OF_RUNTIME,
    by_reference,
    by_runtime,
    integers,
    model_of,
    node,
    opened,
    read_as,
    values,
)

from quantopsy.core import QuantopsyError
from quantopsy.graph.capture import capture, load
from quantopsy.graph.execute import compile_network
from quantopsy.graph.onnx.operators import READERS

OPSETS = (13, 17, 18, 21, NEWEST_OF_RUNTIME, NEWEST)


class Case(NamedTuple):
    """A node over ``x`` of ``shape`` and constants; ``opsets`` between which its form is this one.

    ``where``: who is right, where ONNX's reference has a mistake, or the runtime no kernel.
    """

    op_type: str
    constants: Mapping[str, np.ndarray] = {}
    attributes: Mapping[str, Any] = {}
    shape: Sequence[int] = (2, 4, 6, 6)
    opsets: tuple[int, int] = (13, NEWEST)
    outputs: int = 1
    positive: bool = False
    operands: Sequence[str] | None = None
    where: str = "both"


def case_model(case: Case, opset: int, first: Any = "n") -> onnx.ModelProto:
    names = ["x", *case.constants] if case.operands is None else list(case.operands)
    outputs = [f"y{i}" for i in range(case.outputs)]
    made = node(case.op_type, names, outputs, **case.attributes)
    return model_of([made], (first, *case.shape[1:]), case.constants, outputs, opset)


W2, W1, W3 = values(6, 4, 3, 3), values(6, 4, 3), values(2, 4, 2, 2, 2)
SCALE, SHIFT = values(4, seed=1), values(4, seed=2)
CASES: dict[str, Case] = {
    "Conv": Case("Conv", {"w": W2, "b": values(6)}),
    "Conv strided, dilated, padded": Case(
        "Conv", {"w": W2}, {"strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [1, 2]}
    ),
    "Conv with pads of two sides": Case("Conv", {"w": W2, "b": values(6)}, {"pads": [0, 1, 1, 2], "strides": [2, 2]}),
    "Conv SAME_UPPER": Case("Conv", {"w": W2}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv SAME_LOWER": Case("Conv", {"w": W2}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "Conv VALID": Case("Conv", {"w": W2}, {"auto_pad": "VALID"}),
    "Conv in groups": Case("Conv", {"w": values(8, 1, 3, 3)}, {"group": 4, "kernel_shape": [3, 3]}),
    "Conv 1d": Case("Conv", {"w": W1}, {"pads": [1, 0]}, (2, 4, 9)),
    "Conv 3d": Case("Conv", {"w": W3}, {}, (2, 4, 4, 5, 3)),
    "ConvTranspose": Case(
        "ConvTranspose", {"w": values(4, 5, 3, 3), "b": values(5)}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    ),
    "ConvTranspose with an output padding": Case(
        "ConvTranspose", {"w": values(4, 5, 3, 3)}, {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 1, 0]}
    ),
    "ConvTranspose with pads of two sides": Case(
        "ConvTranspose", {"w": values(4, 5, 3, 3), "b": values(5)}, {"strides": [2, 2], "pads": [0, 1, 1, 2]}
    ),
    "ConvTranspose to a shape": Case(
        "ConvTranspose", {"w": values(4, 5, 3, 3)}, {"strides": [2, 2], "output_shape": [12, 11]}, where="runtime"
    ),
    "ConvTranspose SAME_UPPER": Case(
        "ConvTranspose", {"w": values(4, 5, 3, 3)}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}
    ),
    "ConvTranspose SAME_LOWER in groups": Case(
        "ConvTranspose",
        {"w": values(4, 3, 3, 3)},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER", "group": 2},
        where="runtime",
    ),
    "Gemm as torch writes it": Case("Gemm", {"w": values(5, 6), "b": values(5)}, {"transB": 1}, (3, 6)),
    "Gemm with factors": Case("Gemm", {"w": values(6, 5), "b": values(1, 5)}, {"alpha": 0.5, "beta": 2.0}, (3, 6)),
    "Gemm with one number": Case("Gemm", {"w": values(6, 5), "b": values(1)}, {}, (3, 6)),
    "Gemm without a bias": Case("Gemm", {"w": values(6, 5)}, {}, (3, 6)),
    "MatMul": Case("MatMul", {"w": values(6, 5)}, {}, (3, 4, 6)),
    "MatMul by a batch of matrices": Case("MatMul", {"w": values(4, 6, 5)}, {}, (3, 4, 2, 6)),
    "MatMul from the left": Case("MatMul", {"w": values(5, 4)}, {}, (3, 4, 6), operands=("w", "x")),
    "Einsum": Case("Einsum", {"w": values(4, 5)}, {"equation": "nchw,cd->ndhw"}),
    "BatchNormalization": Case(
        "BatchNormalization",
        {"s": SCALE, "b": SHIFT, "m": values(4, seed=3), "v": np.abs(values(4, seed=4)) + 0.1},
        {"epsilon": 1e-3},
    ),
    "InstanceNormalization": Case("InstanceNormalization", {"s": SCALE, "b": SHIFT}, {"epsilon": 1e-4}),
    "LayerNormalization": Case("LayerNormalization", {"s": values(6), "b": values(6, seed=2)}, {}, opsets=(17, NEWEST)),
    "LayerNormalization over two axes": Case(
        "LayerNormalization", {"s": values(6, 6)}, {"axis": 2}, opsets=(17, NEWEST)
    ),
    "GroupNormalization, values by group": Case(
        "GroupNormalization", {"s": values(2), "b": values(2, seed=2)}, {"num_groups": 2}, opsets=(18, 20)
    ),
    "GroupNormalization, values by channel": Case(
        "GroupNormalization", {"s": SCALE, "b": SHIFT}, {"num_groups": 2}, opsets=(21, NEWEST)
    ),
    "RMSNormalization": Case("RMSNormalization", {"s": values(6)}, {}, opsets=(23, NEWEST)),
    "LpNormalization": Case("LpNormalization", {}, {"axis": 1, "p": 1}, where="runtime"),
    "LRN": Case("LRN", {}, {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 1.5}, where="runtime"),
    "LRN of an even size": Case("LRN", {}, {"size": 2, "alpha": 0.1}, (4, 4, 6, 6), where="reference"),
    "MaxPool": Case("MaxPool", {}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "MaxPool padded": Case("MaxPool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "MaxPool SAME_UPPER": Case("MaxPool", {}, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "MaxPool SAME_LOWER": Case(
        "MaxPool", {}, {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, where="runtime"
    ),
    "MaxPool with pads of two sides": Case("MaxPool", {}, {"kernel_shape": [3, 2], "pads": [2, 0, 0, 1]}),
    "MaxPool in ceil mode": Case("MaxPool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "MaxPool dilated": Case("MaxPool", {}, {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [0, 1, 0, 1]}),
    "MaxPool 1d": Case("MaxPool", {}, {"kernel_shape": [3]}, (2, 4, 9)),
    "MaxPool 3d": Case("MaxPool", {}, {"kernel_shape": [2, 2, 2]}, (2, 4, 4, 4, 5)),
    "AveragePool": Case("AveragePool", {}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "AveragePool padded": Case("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "AveragePool with its pads counted": Case(
        "AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    ),
    "AveragePool SAME_UPPER": Case(
        "AveragePool", {}, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}
    ),
    "AveragePool SAME_LOWER": Case(
        "AveragePool", {}, {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}
    ),
    "AveragePool with pads of two sides": Case("AveragePool", {}, {"kernel_shape": [3, 2], "pads": [2, 0, 0, 1]}),
    "AveragePool with pads of two sides counted": Case(
        "AveragePool", {}, {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1}
    ),
    "AveragePool in ceil mode": Case("AveragePool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "AveragePool in ceil mode with its pads counted": Case(
        "AveragePool",
        {},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
        (2, 4, 7, 7),
        (19, NEWEST),
    ),
    "AveragePool 1d": Case("AveragePool", {}, {"kernel_shape": [3]}, (2, 4, 9)),
    "GlobalAveragePool": Case("GlobalAveragePool"),
    "GlobalAveragePool 1d": Case("GlobalAveragePool", {}, {}, (2, 4, 9)),
    "GlobalMaxPool": Case("GlobalMaxPool"),
    "Clip": Case("Clip", {"low": np.float32(-0.3), "high": np.float32(0.5)}),
    "Clip from below": Case("Clip", {"low": np.float32(0)}),
    "Clip from above": Case("Clip", {"high": np.float32(0.5)}, operands=("x", "", "high")),
    "Clip with bounds crossed": Case("Clip", {"low": np.float32(0.5), "high": np.float32(-0.5)}),
    "PRelu by channel": Case("PRelu", {"s": values(4, 1, 1)}),
    "PRelu of one slope": Case("PRelu", {"s": values(1)}),
    "PRelu along the last axis": Case("PRelu", {"s": values(6)}),
    "LeakyRelu": Case("LeakyRelu", {}, {"alpha": 0.2}),
    "Elu": Case("Elu", {}, {"alpha": 0.7}),
    "Celu": Case("Celu", {}, {"alpha": 0.6}),
    "Selu": Case("Selu"),
    "Selu with its own factors": Case("Selu", {}, {"alpha": 1.2, "gamma": 0.9}),
    "ThresholdedRelu": Case("ThresholdedRelu", {}, {"alpha": 0.4}),
    "HardSigmoid": Case("HardSigmoid"),
    "HardSigmoid as in torch": Case("HardSigmoid", {}, {"alpha": 1 / 6, "beta": 0.5}),
    "HardSwish": Case("HardSwish", opsets=(14, NEWEST)),
    "Mish": Case("Mish", opsets=(18, NEWEST)),
    "Gelu": Case("Gelu", opsets=(20, NEWEST)),
    "Gelu by tanh": Case("Gelu", {}, {"approximate": "tanh"}, opsets=(20, NEWEST)),
    "Swish": Case("Swish", {}, {"alpha": 1.3}, opsets=(24, NEWEST)),
    "Softmax": Case("Softmax", {}, {"axis": 1}),
    "LogSoftmax": Case("LogSoftmax"),
    **{
        name: Case(name)
        for name in (
            "Relu",
            "Sigmoid",
            "Tanh",
            "Softplus",
            "Softsign",
            "Erf",
            "Exp",
            "Abs",
            "Neg",
            "Floor",
            "Ceil",
            "Round",
            "Sign",
            "Sin",
            "Cos",
            "Identity",
            "Shape",
            "Size",
            "Flatten",
            "Transpose",
            "Dropout",
            "Sum",
            "Mean",
            "Min",
            "Max",
        )
    },
    **{name: Case(name, positive=True) for name in ("Log", "Sqrt", "Reciprocal")},
    "Flatten from the third axis": Case("Flatten", {}, {"axis": 2}),
    "Flatten from the last axis": Case("Flatten", {}, {"axis": -1}),
    "Transpose with an order": Case("Transpose", {}, {"perm": [0, 2, 3, 1]}),
    "Shape of some axes": Case("Shape", {}, {"start": 1, "end": -1}, opsets=(15, NEWEST)),
    **{name: Case(name, {"c": values(4, 1, 6)}) for name in ("Add", "Sub", "Mul")},
    "Div": Case("Div", {"c": np.abs(values(4, 1, 6)) + 1}),
    "Sub from a number": Case("Sub", {"c": np.float32(1.5)}, operands=("c", "x")),
    "Div of a number": Case("Div", {"c": np.float32(1.5)}, positive=True, operands=("c", "x")),
    "Add of more dimensions": Case("Add", {"c": values(1, 1, 1, 1, 1)}),
    "Pow": Case("Pow", {"c": np.float32(1.5)}, positive=True),
    **{name: Case(name, {"c": values(6)}) for name in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")},
    "Min of several": Case("Min", {"a": values(6), "b": values(4, 1, 1)}),
    "Max of several": Case("Max", {"a": values(6), "b": values(4, 1, 1)}),
    "Mean of several": Case("Mean", {"a": values(6), "b": values(4, 1, 1)}),
    "Mod": Case("Mod", {"c": np.float32(0.7)}, {"fmod": 1}),
    **{
        f"{name} along axes given as an attribute": Case(name, {}, {"axes": [2, -1]}, opsets=(13, 17))
        for name in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
            "ReduceProd",
        )
    },
    **{
        f"{name} along axes given as an operand": Case(
            name, {"axes": integers(2, -1)}, {"keepdims": 0}, opsets=(18, NEWEST)
        )
        for name in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
            "ReduceProd",
        )
    },
    "ReduceSum": Case("ReduceSum", {"axes": integers(1)}),
    "ReduceSum of nothing": Case("ReduceSum", {}, {"noop_with_empty_axes": 1}),
    **{
        f"{name} of each value": Case(name, {"axes": integers()}, {"noop_with_empty_axes": 1}, opsets=(18, NEWEST))
        for name in ("ReduceMean", "ReduceMax", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd")
    },
    "ReduceSum of all": Case("ReduceSum", {}, {"keepdims": 0}),
    "ArgMax": Case("ArgMax", {}, {"axis": 1, "keepdims": 0}),
    "ArgMin of the last": Case("ArgMin", {}, {"axis": -1, "select_last_index": 1}),
    "CumSum": Case("CumSum", {"axis": integers(2).reshape(())}, {"exclusive": 1, "reverse": 1}),
    "Concat": Case("Concat", {}, {"axis": -3}, operands=("x", "x")),
    "Split by number": Case("Split", {}, {"axis": 1}, outputs=2, opsets=(13, 17)),
    "Split by num_outputs": Case("Split", {}, {"axis": 2, "num_outputs": 4}, (2, 4, 7, 6), (18, NEWEST), 4),
    "Split by lengths": Case("Split", {"n": integers(1, 3)}, {"axis": 1}, outputs=2),
    "Slice": Case("Slice", {"a": integers(1, -4), "b": integers(3, 100), "c": integers(1, 3), "d": integers(1, 2)}),
    "Slice of leading axes": Case("Slice", {"a": integers(0, 1), "b": integers(2, 3)}),
    "Slice backwards": Case(
        "Slice", {"a": integers(-1, 4), "b": integers(-100, 0), "c": integers(2, 3), "d": integers(-1, -2)}
    ),
    "Gather one": Case("Gather", {"i": integers(-2).reshape(())}, {"axis": 1}),
    "Gather several": Case("Gather", {"i": integers(3, 0, -1)}, {"axis": 2}),
    "Gather a table": Case("Gather", {"i": integers(3, 0, 1, 1).reshape(2, 2)}, {"axis": 1}),
    "GatherElements": Case(
        "GatherElements", {"i": np.random.default_rng(0).integers(-6, 6, (2, 4, 6, 3))}, {"axis": 3}
    ),
    "Reshape": Case("Reshape", {"s": integers(0, 2, -1, 6)}),
    "Reshape with zeros allowed": Case("Reshape", {"s": integers(-1, 24, 6)}, {"allowzero": 1}, opsets=(14, NEWEST)),
    "Squeeze": Case("Squeeze", {"a": integers(-1)}, {}, (2, 4, 6, 1)),
    "Unsqueeze": Case("Unsqueeze", {"a": integers(1, -1)}),
    "Expand": Case("Expand", {"s": integers(3, 1, 1, 6, 1)}, {}, (2, 4, 1, 6), where="runtime"),
    "Tile": Case("Tile", {"r": integers(1, 2, 1, 3)}),
    "Pad": Case("Pad", {"p": integers(0, 0, 1, 2, 0, 1, 3, 0), "v": np.float32(0.5)}),
    "Pad by zeros": Case("Pad", {"p": integers(0, 0, 1, 1, 0, 0, 1, 1)}),
    "Pad along some axes": Case(
        "Pad",
        {"p": integers(1, 2, 3, 0), "a": integers(-1, 2)},
        {"mode": "edge"},
        opsets=(18, NEWEST),
        operands=("x", "p", "", "a"),
    ),
    "Pad by less than nothing": Case("Pad", {"p": integers(0, 0, -1, 2, 0, 0, -2, -1)}, where="runtime"),
    "Pad mirrored": Case("Pad", {"p": integers(0, 0, 1, 2, 0, 0, 3, 0)}, {"mode": "reflect"}),
    "Pad channels mirrored": Case("Pad", {"p": integers(0, 1, 0, 2, 0, 2, 0, 0)}, {"mode": "reflect"}),
    "Pad repeated and cut": Case("Pad", {"p": integers(0, 0, 1, -2, 0, 0, 3, 1)}, {"mode": "edge"}, where="runtime"),
    "Pad around": Case("Pad", {"p": integers(0, 0, 1, 2, 0, 0, 3, 0)}, {"mode": "wrap"}, opsets=(19, NEWEST)),
    "DepthToSpace": Case("DepthToSpace", {}, {"blocksize": 2}, (2, 8, 3, 5)),
    "DepthToSpace, columns first": Case("DepthToSpace", {}, {"blocksize": 2, "mode": "CRD"}, (2, 8, 3, 5)),
    "SpaceToDepth": Case("SpaceToDepth", {}, {"blocksize": 2}, (2, 3, 4, 6)),
    "Cast": Case("Cast", {}, {"to": 7}),
    "CastLike": Case("CastLike", {"c": integers(1)}, opsets=(15, NEWEST)),
    "Where": Case("Where", {"c": np.array([True, False] * 3), "z": np.float32(2)}, operands=("c", "x", "z")),
}


def expected(case: Case, model: onnx.ModelProto, opset: int, x: np.ndarray) -> list[np.ndarray]:
    """By the runtime where it knows the opset; it and the reference must agree first."""
    if case.where == "reference" or opset > NEWEST_OF_RUNTIME:
        return by_reference(model, x)
    try:
        return by_runtime(model, x)
    except Exception as error:  # it has no kernel for a few; its exceptions share no class
        if "NOT_IMPLEMENTED" not in str(error) and "is not a registered" not in str(error):
            raise
        return by_reference(model, x)


def same(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_other_software_gives(name: str, tmp_path) -> None:
    case = CASES[name]
    x = values(*case.shape)
    x = np.abs(x) + 0.1 if case.positive else x
    tried = 0
    for opset in OPSETS:
        newest = NEWEST_OF_RUNTIME if case.where == "runtime" else case.opsets[1]
        if case.opsets[0] <= opset <= newest:
            # Shapes are computed from what flows, so what is a size here becomes a tensor of the file's output.
            model = case_model(case, opset)
            if case.op_type in ("Shape", "Size"):
                model.graph.node.append(node("Cast", ["y0"], ["real"], to=1))
                model.graph.node.append(node("ReduceSum", ["x"], ["sum"], keepdims=0))
                model.graph.node.append(node("Mul", ["sum", "real"], ["product"]))
                model.graph.output[0].name = "product"
            same(read_as(model, tmp_path, x), expected(case, model, opset, x))
            tried += 1
    assert tried


def test_every_operator_that_is_read_is_tested() -> None:
    elsewhere = {"Resize", "And", "Or", "Not", "Constant", "ConstantOfShape", "Range"}
    assert {case.op_type for case in CASES.values()} | elsewhere == set(READERS)
    assert len(READERS) > 60


def test_sizes_are_computed_from_shapes_for_any_number_of_images(tmp_path) -> None:
    """What exporters write around Reshape, Expand and Resize: floors, minima, masks, products of dimensions."""
    constants = {
        "w": values(4, 3, 1, 1),
        "i0": integers(0),
        "i1": integers(1),
        "two": integers(2),
        "minus": integers(-1),
        "cut": integers(2),
        "rest": integers(2**62),
        "half": np.array([1.5], np.float32),
        "axes": integers(0),
        "three": integers(3),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Shape", ["c"], ["s"]),
        node("Gather", ["s", "i0"], ["images"], axis=0),
        node("Gather", ["s", "i1"], ["channels"], axis=0),
        node("Slice", ["s", "cut", "rest", "axes"], ["sides"]),
        node("Cast", ["sides"], ["real"], to=1),
        node("Mul", ["real", "half"], ["grown"]),
        node("Floor", ["grown"], ["floor"]),
        node("Cast", ["floor"], ["new"], to=7),
        node("Concat", ["images", "channels", "new"], ["to"], axis=0),
        node("Resize", ["c", "", "", "to"], ["r"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("ReduceProd", ["new"], ["area"], keepdims=1),
        node("Div", ["channels", "two"], ["halved"]),
        node("Mul", ["area", "halved"], ["columns"]),
        node("Sub", ["columns", "area"], ["difference"]),
        node("Max", ["columns", "difference"], ["most"]),
        node("Equal", ["most", "minus"], ["unknown"]),
        node("Where", ["unknown", "three", "most"], ["last"]),
        node("Concat", ["images", "two", "last"], ["shape"], axis=0),
        node("Reshape", ["r", "shape"], ["y"]),
    ]
    for index, made in enumerate(nodes):
        made.name = f"n{index}"
    model = model_of(nodes, ("n", 3, 4, 6), constants, opset=18)
    x = values(5, 3, 4, 6)
    same(read_as(model, tmp_path, x), by_runtime(model, x))
    program = compile_network(capture(opened(model, tmp_path), (torch.from_numpy(x[:2]),)))
    with torch.no_grad():
        found = program.forward(program.place((torch.from_numpy(x),)))[0]
    same([found.numpy()], by_runtime(model, x))


def test_constants_are_computed_when_a_file_is_read(tmp_path) -> None:
    """Ranges, filled tensors, masks and arithmetic on weights leave nothing to run."""
    nodes = [
        node("Constant", [], ["four"], value_ints=[4, 1, 1]),
        node("Constant", [], ["start"], value_int=0),
        node("Constant", [], ["end"], value_int=4),
        node("Constant", [], ["step"], value_int=1),
        node("Constant", [], ["third"], value_float=1 / 3),
        node("Range", ["start", "end", "step"], ["r"]),
        node("Cast", ["r"], ["f"], to=1),
        node("Mul", ["f", "third"], ["g"]),
        node("Reshape", ["g", "four"], ["slope"]),
        node("ConstantOfShape", ["four"], ["full"], value=onnx.helper.make_tensor("v", 1, [1], [0.25])),
        node("Greater", ["slope", "full"], ["large"]),
        node("Not", ["large"], ["small"]),
        node("And", ["large", "small"], ["never"]),
        node("Or", ["large", "never"], ["mask"]),
        node("Where", ["mask", "slope", "full"], ["factor"]),
        node("Mul", ["x", "factor"]),
    ]
    for index, made in enumerate(nodes):
        made.name = f"n{index}"
    model = model_of(nodes)
    x = values(2, 4, 6, 6)
    same(read_as(model, tmp_path, x), by_runtime(model, x))
    assert len(opened(model, tmp_path).nodes) == 1


def test_a_missing_package_is_a_line(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(case_model(CASES["Relu"], 21).SerializeToString())
    for name in [name for name in sys.modules if name == "quantopsy.graph.onnx.file"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(QuantopsyError, match=r'ONNX cannot be imported .*; pip install "quantopsy\[onnx\]"'):
        load(path)
