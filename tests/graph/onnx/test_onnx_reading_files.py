"""What is wrong with a file is said in one line that names the place; nothing outside its folder is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import by_runtime, integers, model_of, node, opened, read_as, values

from quantopsy.core import QuantopsyError
from quantopsy.graph.capture import capture, load
from quantopsy.graph.onnx import file


def sound(opset: int = 21) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"])]
    return model_of(nodes, ("n", 3, 8, 8), {"w": values(4, 3, 3, 3)}, opset=opset)


def _missing(model: onnx.ModelProto) -> None:
    del model.graph.initializer[:]


def _circle(model: onnx.ModelProto) -> None:
    model.graph.node.extend([node("Add", ["y", "b"], ["a"]), node("Relu", ["a"], ["b"])])
    model.graph.output[0].name = "b"


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Relu", ["c"], ["y"]))


def _unknown(model: onnx.ModelProto) -> None:
    model.graph.node.extend(
        [node("NonZero", ["y"], ["i"]), node("Hardmax", ["y"], ["h"]), node("Nothing", ["y"], ["z"])]
    )
    model.graph.node[-1].domain = "com.example"


def _quantized(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, node("QuantizeLinear", ["x", "s"], ["q"]))


def _huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**50


def _int4(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.INT4


def _attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("stride", [2, 2]))


def _kind(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("strides", 2.0))


def _operands(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.extend(["w", "w"])


def _shapes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values(4, 5, 3, 3), "w"))


def _no_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nothing"


def _size(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(node("Shape", ["c"]))


def _mask(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(node("MaxPool", ["c"], ["y", "indices"], kernel_shape=[2, 2]))


def _training(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "on"))
    model.graph.node[1].CopyFrom(node("Dropout", ["c", "", "on"]))


def _grown(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(integers(1, 1, 2**15, 2**15), "much"))
    model.graph.node[1].CopyFrom(node("Tile", ["c", "much"]))


def _grown_constant(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(integers(2**20, 2**20), "much"))
    model.graph.node.extend([node("ConstantOfShape", ["much"], ["full"]), node("Add", ["y", "full"], ["z"])])
    model.graph.output[0].name = "z"


def _ranged(model: onnx.ModelProto) -> None:
    for name, value in (("zero", 0), ("end", 2**60), ("one", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    model.graph.node.extend([node("Range", ["zero", "end", "one"], ["long"]), node("Gather", ["y", "long"], ["z"])])
    model.graph.output[0].name = "z"


def _scalar(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[:]


def _words(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def _old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


def _new(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = file.NEWEST_OPSET + 1


def _function(model: onnx.ModelProto) -> None:
    model.functions.add(name="Block", domain="here")


MISTAKES: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "a weight is missing": (_missing, r"node 'the Conv' \(Conv-11, opset 21\): its operand 'w' is neither written"),
    "a circle": (_circle, r"node 'the Add' .* the graph has a circle"),
    "two writers": (_twice, r"node 'the Relu' .* writes 'y', which has a value already"),
    "operators that are not read": (
        _unknown,
        r"not read at opset 21: NonZero-13 at node 'the NonZero', Hardmax-13 at .*, com.example.Nothing at",
    ),
    "quantized already": (_quantized, r"is quantized already \(QuantizeLinear at node .*; give the float file"),
    "a declared shape without data": (_huge, r"weight 'w': it declares \d+ bytes .* and has 432"),
    "4-bit weights": (_int4, r"weight 'w': it is of type INT4, no plain number; give the float file"),
    "an unknown attribute": (_attribute, r"the Conv' .* has no attribute 'stride'"),
    "an attribute of another type": (_kind, r"the Conv' .* attribute 'strides' is of another type"),
    "operands": (_operands, r"the Conv' .* it has 4 inputs, not 2 to 3"),
    "shapes that do not fit": (_shapes, r"the Conv' .* it does not run \(.*\); check the shapes"),
    "an output that nothing gives": (_no_output, r"nothing gives its output 'nothing'"),
    "an output that is a shape": (_size, r"its output 'y' is no tensor"),
    "indices of a pooling": (_mask, r"the MaxPool' \(MaxPool-12, opset 21\): not read: its second result"),
    "dropout in training": (_training, r"the Dropout' .* training_mode"),
    "a result of terabytes": (_grown, r"the Tile' .* its result has shape \['images', 4, 262144, 262144\]"),
    "a constant of terabytes": (_grown_constant, r"ConstantOfShape' .* makes too large a constant"),
    "an endless range": (_ranged, r"the Range' .* not read: the range"),
    "an input without images": (_scalar, r"input 'x' has no dimension for the images"),
    "an input of words": (_words, r"input 'x' is no tensor of numbers"),
    "an old opset": (_old, r"it is of opset 11; 13 to \d+ are read; save onnx.version_converter"),
    "an opset of the future": (_new, r"it is of opset \d+; 13 to \d+ are read"),
    "functions": (_function, r"functions of its own \('Block'\); save onnx.inliner.inline_local_functions"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_line_that_names_the_place(name: str, tmp_path) -> None:
    change, pattern = MISTAKES[name]
    model = sound()
    opened(model, tmp_path)
    change(model)
    with pytest.raises(QuantopsyError, match=pattern):
        opened(model, tmp_path)


def test_a_file_that_is_cut_off_or_something_else(tmp_path) -> None:
    content = sound().SerializeToString()
    path = tmp_path / "model.onnx"
    for part in (content[:200], b"", b"PK\x03\x04 a zip", content[:-1]):
        path.write_bytes(part)
        with pytest.raises(QuantopsyError, match=r"model.onnx"):
            load(path)
    with pytest.raises(QuantopsyError, match="cannot be read"):
        load(tmp_path) if tmp_path.suffix == ".onnx" else load(_folder(tmp_path))


def _folder(tmp_path: Path) -> Path:
    found = tmp_path / "folder.onnx"
    found.mkdir()
    return found


def external(folder: Path, location: str, offset: int = 0, length: int | None = None) -> Path:
    """A model whose weight lies in ``location``."""
    model = sound()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length or 432))):
        weight.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_come_from_the_models_own_folder(tmp_path) -> None:
    folder = tmp_path / "model"
    (folder / "weights").mkdir(parents=True)
    content = values(4, 3, 3, 3).tobytes()
    (folder / "weights" / "w.bin").write_bytes(b"????" + content)
    (tmp_path / "secret").write_bytes(content)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "out").symlink_to(tmp_path)
    x = torch.from_numpy(values(2, 3, 8, 8))
    found = load(external(folder, "weights/w.bin", 4))(x)
    torch.testing.assert_close(found, opened(sound(), tmp_path)(x))
    for outside in ("../secret", str(tmp_path / "secret"), "link", "out/secret", "weights/../../secret", ""):
        with pytest.raises(QuantopsyError, match="outside the model's folder"):
            load(external(folder, outside))
    with pytest.raises(QuantopsyError, match="which is not there"):
        load(external(folder, "weights/absent.bin"))
    for offset, length in ((8, None), (-4, None), (4, 400)):
        with pytest.raises(QuantopsyError, match=r"it needs 432 bytes of 'weights/w.bin'"):
            load(external(folder, "weights/w.bin", offset, length))


def test_half_and_double_precision_are_computed_in_single(tmp_path) -> None:
    for kind in (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16):
        weight = numpy_helper.to_array(sound().graph.initializer[0])
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        model = sound()
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.astype(dtype), "w"))
        model.graph.input[0].type.tensor_type.elem_type = kind
        (tmp_path / "as_it_is.onnx").write_bytes(model.SerializeToString())
        x = torch.from_numpy(values(2, 3, 8, 8))
        wanted = torch.conv2d(x, torch.from_numpy(weight.astype(dtype).astype(np.float32)), padding=1).relu()
        torch.testing.assert_close(load(tmp_path / "as_it_is.onnx")(x), wanted)


def test_data_that_do_not_fit_the_inputs_are_a_line(tmp_path) -> None:
    module = opened(sound(), tmp_path)
    with pytest.raises(
        QuantopsyError, match=r"input 'x': images of shape \(3, 9, 8\) where the file takes \(3, 8, 8\)"
    ):
        capture(module, (torch.zeros(2, 3, 9, 8),))
    with pytest.raises(QuantopsyError, match=r"input 'x': the data are float64, the file takes float32"):
        capture(module, (torch.zeros(2, 3, 8, 8, dtype=torch.float64),))
    with pytest.raises(QuantopsyError, match=r"it takes 1 inputs \(x\), the data give 2"):
        capture(module, (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1)))


def test_inputs_come_by_name_too_and_several_outputs_in_order(tmp_path) -> None:
    nodes = [node("Add", ["a.1", "b"], ["c"]), node("Conv", ["c", "w"], ["y"]), node("ReduceMax", ["y", "axes"], ["z"])]
    model = model_of(nodes, ("n", 3, 8, 8), {"w": values(4, 3, 3, 3), "axes": integers(2, 3)}, ("z", "y"))
    model.graph.input[0].name = "a.1"
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 3, 8, "width"]))
    x, other = values(2, 3, 8, 8), values(2, 3, 8, 8, seed=1)
    module = opened(model, tmp_path)
    wanted = by_runtime(model, x, other)
    for found in (
        module(torch.from_numpy(x), torch.from_numpy(other)),
        module(b=torch.from_numpy(other), a_1=torch.from_numpy(x)),
    ):
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    by_order = capture(module, (torch.from_numpy(x), torch.from_numpy(other)))
    by_name = capture(module, {"a_1": torch.from_numpy(x), "b": torch.from_numpy(other)})
    assert by_order.input_names == by_name.input_names == ("a_1", "b")


def test_nodes_may_stand_in_any_order(tmp_path) -> None:
    model = sound()
    x = values(2, 3, 8, 8)
    wanted = read_as(model, tmp_path, x)
    model.graph.node.append(model.graph.node[0])
    del model.graph.node[0]
    np.testing.assert_array_equal(read_as(model, tmp_path, x)[0], wanted[0])


def test_names_that_are_no_text_are_shown_as_such(tmp_path) -> None:
    model = sound()
    model.graph.node[0].name = "\x1b[31mred\n"
    layer = capture(opened(model, tmp_path), (torch.zeros(2, 3, 8, 8),)).layers[0]
    assert (layer.name, layer.onnx_node, layer.source) == ("?[31mred?",) * 3
