"""From an ONNX file to plain values. Nothing in it is trusted: sizes are checked before anything is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

from quantopsy.core import QuantopsyError
from quantopsy.graph.onnx.graph import Input, Node, OnnxGraph
from quantopsy.graph.onnx.operators import READERS

OLDEST_OPSET = 13
NEWEST_OPSET = onnx.defs.onnx_opset_version()

# All real types are computed in float32.
_TYPES: dict[int, type] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float32,
    TensorProto.BFLOAT16: np.float32,
    TensorProto.DOUBLE: np.float32,
    TensorProto.INT8: np.int8,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.UINT8: np.uint8,
    TensorProto.BOOL: np.bool_,
}
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
}  # fmt: skip
_TYPED_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
}  # all others: int32_data
_SAVE_AGAIN = "save or export it again"
_FLOAT_FILE = "give the float file that it was made from"


def read(path: str | Path) -> OnnxGraph:
    """The graph in the file ``path``, external data from its own folder only.

    Raises :class:`QuantopsyError` for a file that cannot be read, that is quantized already, or whose operators or
    opset are none of those that are understood.
    """
    path = Path(path)
    thing = f"model {str(path)!r}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QuantopsyError(thing, f"cannot be read ({error.strerror})", "check the path") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, RuntimeError) as error:
        raise QuantopsyError(thing, f"is no ONNX file, or cut off ({error})", "export or download it again") from error
    if not model.HasField("graph") or not model.graph.node:
        raise QuantopsyError(thing, "it holds no graph with nodes", "export or download it again")
    opset = _opset(thing, model)
    if model.functions:
        raise QuantopsyError(
            thing, f"it has functions of its own ({_shown(model.functions[0].name)!r})",
            "save onnx.inliner.inline_local_functions(model)",
        )  # fmt: skip
    _check_operators(thing, model.graph.node, opset)
    if model.graph.sparse_initializer:
        raise QuantopsyError(thing, "it has sparse weights", "save them dense")
    constants: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        name = _text(tensor.name)
        if not name or name in constants:
            raise QuantopsyError(thing, f"two weights are called {_shown(name)!r}, or one nothing", _SAVE_AGAIN)
        constants[name] = _array(thing, tensor, path.parent)
    nodes = [_node(node, opset, path.parent) for node in model.graph.node]
    inputs = tuple(_input(thing, value) for value in model.graph.input if _text(value.name) not in constants)
    if len({value.name for value in inputs}) < len(inputs):
        raise QuantopsyError(thing, "two inputs have one name", _SAVE_AGAIN)
    if not inputs:
        raise QuantopsyError(thing, "it has no input", _SAVE_AGAIN)
    outputs = tuple(_text(value.name) for value in model.graph.output)
    if not outputs:
        raise QuantopsyError(thing, "it has no output", _SAVE_AGAIN)
    order = _sorted(thing, nodes, [*constants, *(value.name for value in inputs)], outputs)
    return OnnxGraph(
        file=str(path),
        producer=_shown(model.producer_name),
        inputs=inputs,
        outputs=outputs,
        nodes=order,
        constants=constants,
    )


def _text(value: str | bytes) -> str:
    """A string of the file; one that is no UTF-8 comes as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _shown(value: str | bytes) -> str:
    """A name that can be printed."""
    return "".join(c if c.isprintable() else "?" for c in _text(value))[:200]


def _opset(thing: str, model: onnx.ModelProto) -> int:
    versions = {_text(entry.domain): entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx"))
    if opset is None:
        raise QuantopsyError(thing, "it names no opset of ONNX's own operators", _SAVE_AGAIN)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise QuantopsyError(
            thing,
            f"it is of opset {opset}; {OLDEST_OPSET} to {NEWEST_OPSET} are read",
            "save onnx.version_converter.convert_version(model, 20), or export it again",
        )
    return int(opset)


def _check_operators(thing: str, nodes: Iterable[onnx.NodeProto], opset: int) -> None:
    """Raise one line that names every operator that is not read, with a node of each."""
    missing: dict[str, str] = {}
    for node in nodes:
        domain, op_type = _text(node.domain), _text(node.op_type)
        own = domain in ("", "ai.onnx")
        called = _shown(node.name or next(iter(node.output), ""))
        if op_type in _QUANTIZED:
            raise QuantopsyError(thing, f"it is quantized already ({op_type} at node {called!r})", _FLOAT_FILE)
        schema = _schema(op_type, opset) if own else None
        if schema is None or op_type not in READERS:
            operator = op_type if own else f"{domain}.{op_type}"
            missing.setdefault(_shown(operator if schema is None else f"{operator}-{schema.since_version}"), called)
    if missing:
        named = ", ".join(f"{operator} at node {called!r}" for operator, called in list(missing.items())[:8])
        raise QuantopsyError(
            thing,
            f"operators that are not read at opset {opset}: {named}",
            "replace them in the model, or give the PyTorch network",
        )


def _schema(op_type: str, opset: int) -> Any:
    """ONNX's own description of an operator at ``opset``; None where there is none."""
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _node(node: onnx.NodeProto, opset: int, folder: Path) -> Node:
    schema = _schema(node.op_type, opset)
    notes = {_text(entry.key).removeprefix("pkg.torch.onnx."): _text(entry.value) for entry in node.metadata_props}
    found = Node(
        name=_shown(node.name),
        op_type=node.op_type,
        version=schema.since_version,
        opset=opset,
        attributes={},
        inputs=tuple(map(_text, node.input)),
        outputs=tuple(map(_text, node.output)),
        scopes=_listed(notes.get("name_scopes", "")),
        classes=_listed(notes.get("class_hierarchy", "")),
        trace=notes.get("stack_trace", ""),
    )
    attributes: dict[str, Any] = {}
    for name, described in schema.attributes.items():
        default = described.default_value
        attributes[name] = onnx.helper.get_attribute_value(default) if default.type else None
    for attribute in node.attribute:
        name = _text(attribute.name)
        described = schema.attributes.get(name)
        if described is None:
            raise found.error(f"it has no attribute {_shown(name)!r}", _SAVE_AGAIN)
        if int(attribute.type) != int(described.type.value) or attribute.ref_attr_name:
            raise found.error(f"its attribute {name!r} is of another type", _SAVE_AGAIN)
        if attribute.type == AttributeProto.TENSOR:
            attributes[name] = _array(found.label, attribute.t, folder)
        else:
            attributes[name] = onnx.helper.get_attribute_value(attribute)
    for name, described in schema.attributes.items():
        if described.required and attributes[name] is None:
            raise found.error(f"it lacks its attribute {name!r}", _SAVE_AGAIN)
    for words, count, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            raise found.error(f"it has {count} {words}, not {least} to {most}", _SAVE_AGAIN)
    texts = {name: _plain(value) for name, value in attributes.items()}
    return Node(**{**vars(found), "attributes": texts})


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | str) or not isinstance(value, Sequence):
        return value
    return [_plain(item) for item in value]


def _listed(text: str) -> tuple[str, ...]:
    """The strings of a Python list, as torch's exporter writes one into metadata."""
    return tuple(_shown(item) for item in re.findall(r"'([^']*)'", text))


def _input(thing: str, value: onnx.ValueInfoProto) -> Input:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in _TYPES:
        raise QuantopsyError(
            thing, f"its input {_shown(value.name)!r} is no tensor of numbers", "give a network of images"
        )
    shape = None
    if kind.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)
        if not shape:
            raise QuantopsyError(
                thing,
                f"its input {_shown(value.name)!r} has no dimension for the images",
                "export it with batches of images",
            )
    return Input(_text(value.name), np.dtype(_TYPES[kind.elem_type]).name, shape)


def _array(thing: str, tensor: TensorProto, folder: Path) -> np.ndarray:
    """A tensor of the file; its declared size must be that of its data."""
    thing = f"{thing}, weight {_shown(tensor.name)!r}" if tensor.name else thing
    dtype = _TYPES.get(tensor.data_type)
    if dtype is None:
        names = {number: name for name, number in TensorProto.DataType.items()}
        kind = names.get(tensor.data_type, str(tensor.data_type))
        raise QuantopsyError(thing, f"it is of type {kind}, no plain number", _FLOAT_FILE)
    dims = tuple(tensor.dims)
    if any(dim < 0 for dim in dims) or len(dims) > 16:
        raise QuantopsyError(thing, f"its shape {list(dims)[:17]} is none", _SAVE_AGAIN)
    count = math.prod(dims)
    stored = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if tensor.data_location == TensorProto.EXTERNAL:
        raw: bytes | None = _external(thing, tensor, folder, count * stored.itemsize)
    else:
        raw = tensor.raw_data if tensor.HasField("raw_data") else None
    if raw is None:
        values = getattr(tensor, _TYPED_FIELDS.get(tensor.data_type, "int32_data"))
        have, want = len(values), count
    else:
        have, want = len(raw), count * stored.itemsize
    if have != want:
        unit = "values" if raw is None else "bytes"
        raise QuantopsyError(thing, f"it declares {want} {unit} (shape {list(dims)}) and has {have}", _SAVE_AGAIN)
    if raw is not None:
        array = np.frombuffer(raw, stored.newbyteorder("<") if stored.kind in "iuf" else stored).reshape(dims)
    else:
        array = onnx.numpy_helper.to_array(tensor)
    return np.array(array, dtype, order="C")


def _external(thing: str, tensor: TensorProto, folder: Path, size: int) -> bytes:
    """``size`` bytes of a file beside the model."""
    entries = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
    location = entries.get("location", "")
    root = folder.resolve()
    file = Path(location)
    outside = QuantopsyError(
        thing, f"its data lie in {_shown(location)!r}, outside the model's folder", "move them beside the model"
    )
    if not location or "\0" in location or file.is_absolute() or ".." in file.parts:
        raise outside
    try:
        target = (root / file).resolve()
        if not target.is_relative_to(root):  # through a link
            raise outside
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or size)
        if not target.is_file():
            raise QuantopsyError(
                thing, f"its data are in {_shown(location)!r}, which is not there", "put it beside the model"
            )
        if offset < 0 or length != size or offset + size > target.stat().st_size:
            raise QuantopsyError(
                thing,
                f"it needs {size} bytes of {_shown(location)!r} from {offset} on; it declares {length}, "
                f"the file has {target.stat().st_size}",
                "copy the files again",
            )
        with target.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its offset or length is no number"
        raise QuantopsyError(
            thing, f"its data in {_shown(location)!r} cannot be read ({reason})", "copy the files again"
        ) from error


def _sorted(thing: str, nodes: Sequence[Node], given: Iterable[str], outputs: Sequence[str]) -> tuple[Node, ...]:
    """``nodes`` in topological order, those left out that no output needs.

    Raises :class:`QuantopsyError` for a value that nobody writes, that two write, and for a circle.
    """
    producers: dict[str, int] = {}
    known = set(given)
    for index, node in enumerate(nodes):
        for name in filter(None, node.outputs):
            if name in producers or name in known:
                raise node.error(f"it writes {_shown(name)!r}, which has a value already", _SAVE_AGAIN)
            producers[name] = index
    for name in outputs:
        if name not in producers and name not in known:
            raise QuantopsyError(thing, f"nothing gives its output {_shown(name)!r}", _SAVE_AGAIN)
    for node in nodes:
        for name in filter(None, node.inputs):
            if name not in producers and name not in known:
                raise node.error(f"its operand {_shown(name)!r} is neither written nor a weight", _SAVE_AGAIN)
    needed = _needed(nodes, producers, outputs)
    waiting = {index: {producers[name] for name in nodes[index].inputs if name in producers} for index in needed}
    readers: dict[int, list[int]] = {}
    for index, before in waiting.items():
        for producer in before:
            readers.setdefault(producer, []).append(index)
    ready = sorted((index for index, before in waiting.items() if not before), reverse=True)
    order: list[int] = []
    while ready:
        index = ready.pop()
        order.append(index)
        for reader in sorted(readers.get(index, ()), reverse=True):
            waiting[reader].discard(index)
            if not waiting[reader]:
                ready.append(reader)
    if len(order) < len(needed):
        stuck = next(index for index in sorted(needed) if waiting[index])
        raise nodes[stuck].error("it depends on its own result: the graph has a circle", _SAVE_AGAIN)
    # The file's own order where it is one, so that layers come as they were written.
    place = {index: position for position, index in enumerate(sorted(needed))}
    in_order = all(
        place[producer] < place[index] for index in needed for producer in _producers(nodes[index], producers)
    )
    return tuple(nodes[index] for index in (sorted(needed) if in_order else order))


def _producers(node: Node, producers: Mapping[str, int]) -> list[int]:
    return [producers[name] for name in node.inputs if name in producers]


def _needed(nodes: Sequence[Node], producers: Mapping[str, int], outputs: Sequence[str]) -> set[int]:
    found: set[int] = set()
    stack = [producers[name] for name in outputs if name in producers]
    while stack:
        index = stack.pop()
        if index not in found:
            found.add(index)
            stack += _producers(nodes[index], producers)
    return found
