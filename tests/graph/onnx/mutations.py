"""Damaged ONNX files: a small network with bytes changed, or with its graph changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx_models import integers, model_of, node, values

from quantopsy.graph.onnx.operators import READERS

NUMBERS = (-(2**63), -(2**31), -3, -1, 0, 1, 2, 3, 5, 17, 1000, 2**24, 2**31 - 1, 2**40, 2**63 - 1)


def seed_model() -> onnx.ModelProto:
    """Convolution, norm, two pools, a resize, shapes computed, a split, a classifier."""
    constants = {
        "w": values(4, 3, 3, 3),
        "b": values(4),
        "s": values(4),
        "v": np.abs(values(4)) + 0.5,
        "low": np.float32(0),
        "high": np.float32(6),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "zero": integers(0),
        "minus": integers(-1),
        "pads": integers(0, 0, 1, 0, 0, 0, 0, 1),
        "half": integers(2, 2),
        "head": values(5, 36),
        "shift": values(5),
        "two": np.float32(2),
    }
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", "s", "b", "s", "v"], ["n"]),
        node("Clip", ["n", "low", "high"], ["r"]),
        node("MaxPool", ["r"], ["m"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("Resize", ["m", "", "scales"], ["u"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Split", ["u", "half"], ["left", "right"], axis=1),
        node("Concat", ["right", "left"], ["j"], axis=1),
        node("Pad", ["j", "pads"], ["p"]),
        node("AveragePool", ["p"], ["a"], kernel_shape=[2, 2], strides=[1, 1], ceil_mode=1),
        node("Div", ["a", "two"], ["d"]),
        node("ReduceMean", ["d", "minus"], ["q"], keepdims=1),
        node("Add", ["d", "q"], ["e"]),
        node("MaxPool", ["e"], ["f"], kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 0, 0]),
        node("Shape", ["f"], ["shape"]),
        node("Gather", ["shape", "zero"], ["images"], axis=0),
        node("Concat", ["images", "minus"], ["to"], axis=0),
        node("Reshape", ["f", "to"], ["flat"]),
        node("Gemm", ["flat", "head", "shift"], ["y"], transB=1),
    ]
    model = model_of(nodes, ("n", 3, 8, 8), constants, opset=21)
    for index, made in enumerate(model.graph.node):
        made.name = f"{made.op_type}_{index}"
    return model


Mutation = Callable[[onnx.ModelProto, random.Random], None]


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    made = rng.choice([n for n in model.graph.node if n.attribute])
    attribute = rng.choice(list(made.attribute))
    if attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(NUMBERS)
    elif attribute.type == AttributeProto.INTS:
        ints = list(attribute.ints)
        change = rng.randrange(3)
        if change == 0 and ints:
            ints[rng.randrange(len(ints))] = rng.choice(NUMBERS)
        elif change == 1:
            ints.append(rng.choice(NUMBERS))
        else:
            ints = ints[:-1]
        del attribute.ints[:]
        attribute.ints.extend(ints)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice([b"", b"VALID", b"nearest", b"\xff\xfe", b"SAME_LOWER", b"cubic", b"align_corners"])
    else:
        attribute.type = AttributeProto.FLOAT


def _forget_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    made = rng.choice([n for n in model.graph.node if n.attribute])
    del made.attribute[rng.randrange(len(made.attribute))]


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    made = rng.choice(model.graph.node)
    made.op_type = rng.choice([*READERS, "NonZero", "If", "QuantizeLinear", ""])
    if rng.random() < 0.7:
        del made.attribute[:]


def _rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    """Another operand: of any value, so that there are circles too."""
    made = rng.choice([n for n in model.graph.node if n.input])
    names = [name for n in model.graph.node for name in n.output] + [t.name for t in model.graph.initializer]
    made.input[rng.randrange(len(made.input))] = rng.choice([*names, "x", "", "nobody"])


def _operands(model: onnx.ModelProto, rng: random.Random) -> None:
    made = rng.choice(model.graph.node)
    if rng.random() < 0.5 and made.input:
        del made.input[-1]
    else:
        made.input.append(rng.choice([t.name for t in model.graph.initializer]))


def _remove(model: onnx.ModelProto, rng: random.Random) -> None:
    part = rng.choice([model.graph.node, model.graph.initializer, model.graph.input, model.graph.output])
    if part:
        del part[rng.randrange(len(part))]


def _repeat(model: onnx.ModelProto, rng: random.Random) -> None:
    part = rng.choice([model.graph.node, model.graph.initializer, model.graph.input, model.graph.output])
    if part:
        part.append(rng.choice(list(part)))


def _integers(model: onnx.ModelProto, rng: random.Random) -> None:
    """Other shapes, axes and pads."""
    tensor = rng.choice([t for t in model.graph.initializer if t.data_type == TensorProto.INT64] or [TensorProto()])
    if tensor.name:
        array = numpy_helper.to_array(tensor).copy()
        if array.size and rng.random() < 0.8:
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice(NUMBERS)
        else:
            array = np.resize(array, rng.choice([(0,), (), (3,), (2, 2), (9,)]))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _declared(model: onnx.ModelProto, rng: random.Random) -> None:
    """A shape or a type that is not that of the data."""
    tensor = rng.choice(list(model.graph.initializer) or [TensorProto()])
    change = rng.randrange(3)
    if change == 0:
        tensor.dims.append(rng.choice(NUMBERS))
    elif change == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    else:
        tensor.data_type = rng.randrange(0, 26)


def _reals(model: onnx.ModelProto, rng: random.Random) -> None:
    """Weights of another shape, or with numbers that are none."""
    tensor = rng.choice([t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT] or [TensorProto()])
    if tensor.name:
        array = numpy_helper.to_array(tensor).copy()
        if rng.random() < 0.5 and array.size:
            array.reshape(-1)[0] = rng.choice([np.nan, np.inf, 1e38, -0.0])
        else:
            array = np.resize(array, [rng.randrange(0, 4) for _ in range(rng.randrange(0, 6))])
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))


def _external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(list(model.graph.initializer) or [TensorProto()])
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    where = rng.choice(["../secret", "/etc/passwd", "", "model.onnx", "absent.bin", "a\0b", ".", "x" * 5000])
    tensor.external_data.add(key="location", value=where)
    tensor.external_data.add(key="offset", value=rng.choice(["0", "-1", "1e3", str(2**63), "many"]))
    tensor.external_data.add(key="length", value=rng.choice(["0", "16", str(2**63)]))


def _head(model: onnx.ModelProto, rng: random.Random) -> None:
    change = rng.randrange(4)
    if change == 0:
        model.opset_import[0].version = rng.choice(NUMBERS)
    elif change == 1:
        model.opset_import[0].domain = rng.choice(["com.microsoft", "ai.onnx.ml"])
    elif change == 2:
        rng.choice(model.graph.node).domain = "com.microsoft"
    elif model.graph.input:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        if dims:
            rng.choice(dims).dim_value = rng.choice(NUMBERS)


def _names(model: onnx.ModelProto, rng: random.Random) -> None:
    made = rng.choice(model.graph.node)
    made.name = rng.choice(["", "\x1b[31m", "/a/b/../c/Conv", "/" * 500, "ü" * 300, "\n\n", "/x/Conv"])
    if made.output and rng.random() < 0.3:
        made.output[0] = rng.choice(["", "x", "w", "\0"])


GRAPH_MUTATIONS: tuple[Mutation, ...] = (
    _attribute, _attribute, _forget_attribute, _operator, _operator, _rewire, _rewire, _operands, _remove, _repeat,
    _integers, _integers, _declared, _reals, _external, _head, _names,
)  # fmt: skip


def damaged_graphs(seed: int, count: int) -> Iterator[bytes]:
    """``count`` files whose graph is changed in one to three places."""
    rng, original = random.Random(seed), seed_model()
    for _ in range(count):
        model = onnx.ModelProto()
        model.CopyFrom(original)
        for _ in range(rng.randrange(1, 4)):
            if model.graph.node:
                try:
                    rng.choice(GRAPH_MUTATIONS)(model, rng)
                except Exception:  # what was changed before leaves this change no hold
                    continue
        yield model.SerializeToString()


def damaged_bytes(seed: int, count: int) -> Iterator[bytes]:
    """``count`` files with bytes changed, cut off, put in or repeated."""
    rng, original = random.Random(seed), seed_model().SerializeToString()
    for _ in range(count):
        content = bytearray(original)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(content) or 1)
            kind = rng.randrange(5)
            if kind <= 1 and content:
                content[at] = rng.randrange(256)
            elif kind == 2 and rng.random() < 0.3:
                del content[at:]
            elif kind == 3:
                content[at:at] = rng.randbytes(rng.randrange(1, 9))
            else:
                content[at:at] = content[at : at + rng.randrange(64)]
        yield bytes(content)
