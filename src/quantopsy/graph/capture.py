"""From a user's model to a network: torch.export, batch norms folded, layers named and fused."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from quantopsy.core import QuantopsyError, names
from quantopsy.core.errors import first_line
from quantopsy.core.imports import called, is_module
from quantopsy.graph.fold import fold_batch_norms
from quantopsy.graph.network import Layer, Network, Unquantized, is_computed
from quantopsy.graph.onnx import OnnxModule, load_onnx
from quantopsy.graph.operators import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    COMPOSED,
    CONVOLUTIONS,
    IDENTITIES,
    LINEARS,
    MOVEMENTS,
    OPERATIONS,
    PURE,
    TRANSPOSED,
    Operation,
    activation_name,
    aten,
)
from quantopsy.graph.recompose import recompose

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor]

_BY_MODE = {aten.batch_norm.default: 5, aten.dropout.default: 2, aten.feature_dropout.default: 2}
"""Operators that do something else in training, and the argument that says so."""

SAME_ALONE = 1e-3
"""Distance, as a share of its length, that an image's output may have from what it is in a batch: rounding is below."""


def load(model: str | Path | nn.Module | torch.export.ExportedProgram) -> nn.Module:
    """The module behind a MODEL argument: ``.onnx`` or ``.pt2`` file, ``package.module:callable`` or a module."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, torch.export.ExportedProgram):
        return model.module(check_guards=False)
    if isinstance(model, type):
        raise QuantopsyError(
            f"model {model.__name__}", "this is a class", f"give an instance, such as {model.__name__}()"
        )
    text = str(model)
    if ":" in text and not Path(text).exists():
        return _call(text)
    path = Path(text)
    if not path.exists() and is_module(text):
        raise QuantopsyError(f"model {text!r}", "it is a module", f"add what makes the model: {text}:callable")
    if not path.exists():
        raise QuantopsyError(f"model {text!r}", "no such file", "give FILE.pt2, FILE.onnx or package.module:callable")
    if path.suffix == ".onnx":
        return load_onnx(path)
    if path.suffix != ".pt2":
        raise QuantopsyError(
            f"model {text!r}",
            f"a file of type {path.suffix or 'without suffix'} cannot be read",
            "save it with torch.export.save(torch.export.export(...), 'model.pt2')",
        )
    try:
        return torch.export.load(path).module(check_guards=False)
    except Exception as error:
        raise QuantopsyError(
            f"model {text!r}", f"does not load ({first_line(error)})", "save it again with torch.export.save"
        ) from error


def _call(text: str) -> nn.Module:
    model = called(text, "model", "a torch.nn.Module")
    if isinstance(model, torch.export.ExportedProgram):
        return model.module(check_guards=False)
    if not isinstance(model, nn.Module):
        raise QuantopsyError(
            f"model {text!r}", f"returned {type(model).__name__}", "return a torch.nn.Module, ready for inference"
        )
    return model


def save(program: torch.export.ExportedProgram, file: Path | IO[bytes]) -> None:
    """Write ``program`` as ``.pt2``; what is written can be :func:`load`-ed."""
    with warnings.catch_warnings():
        # Weights in channels-last memory are stored with their strides; torch warns of those, with a path of its own.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, file)


def capture(model: nn.Module, example: Inputs, *, unfused: Collection[str] = ()) -> Network:
    """The network that ``model`` computes, captured on ``example`` (a batch of two or more images).

    Batch size stays free. ``unfused`` are activation functions (``hardswish``, ``silu``, ...) that are layers of their
    own wherever they are, as in a runtime that does not compute them together with the layer in front. Raises
    :class:`QuantopsyError` naming the module and line where the export fails, tensors with NaN or infinite values, a
    network without a quantizable layer, and an activation function that there is not.
    """
    for name in unfused:
        if name not in ACTIVATION_NAMES:
            raise names.unknown(name, ACTIVATION_NAMES, "activation function")
    with warnings.catch_warnings():
        # torch.export deprecates parts of itself; nothing that a caller could act on.
        warnings.simplefilter("ignore")
        program = _export(model, example)
        # An empty table makes in-place operators pure and one form of several. It takes as long as the export.
        whole = program if all(map(_is_settled, program.graph.nodes)) else program.run_decompositions({})
        module = whole.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    graph = fx.Graph()  # a copy that no module owns: tensors are looked up in ``tensors``
    graph.output(graph.graph_copy(module.graph, {}))
    tensors = _collect_tensors(module)
    if isinstance(model, OnnxModule):
        model.label(graph, tensors)
    _normalise(graph)
    _fold_constants(graph, tensors)
    recompose(graph)
    fold_batch_norms(graph, tensors)
    graph.eliminate_dead_code()
    graph.lint()
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    tensors = {name: tensor for name, tensor in tensors.items() if name in used}
    _check_finite(tensors)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = [example[node.name] for node in placeholders] if isinstance(example, Mapping) else list(example)
    images = inputs[0].shape[0]
    with FlopCounterMode(display=False) as counter:
        values, together = _run(graph, tensors, inputs)
    # In the same mode: with it torch resamples by another kernel, which may take another neighbour.
    with FlopCounterMode(display=False):
        single, alone = _run_alone(graph, tensors, [x[-1:] for x in inputs])
    _fold_outputs(graph, tensors, together)
    _check_images_apart(graph, alone, together, images)
    layers, unquantized = _layers(graph, tensors, values, single, unfused)
    if not layers:
        found = sorted({str(node.target) for node in graph.nodes if node.op == "call_function"})
        raise QuantopsyError(
            "network",
            f"has no layer that can be quantized (operators: {', '.join(found[:6]) or 'none'})",
            "quantopsy knows convolutions, linear layers, products, pooling, additions, concatenations",
        )
    return Network(
        graph=graph,
        tensors=tensors,
        layers=layers,
        unquantized=unquantized,
        input_names=tuple(node.name for node in placeholders),
        input_shapes=tuple(tuple(x.shape[1:]) for x in inputs),
        output_tree=program.call_spec.out_spec,
        total_macs=max(counter.get_total_flops() // (2 * images), sum(layer.macs for layer in layers)),
        unfused=tuple(unfused),
    )


def _is_settled(node: fx.Node) -> bool:
    """Whether a decomposition would leave ``node`` as it is, or make of it what :func:`_normalise` does anyway."""
    if node.op != "call_function" or isinstance(node.meta.get("val"), torch.SymInt):
        return True
    target = PURE.get(node.target, node.target)
    if target in _BY_MODE:
        return node.args[_BY_MODE[target]] is False
    if target is not node.target and not (_is_read_once(node.args[0]) and _is_of_one_type(node)):
        return False
    return target in OPERATIONS or target in ACTIVATIONS or (target in MOVEMENTS and target not in COMPOSED)


def _is_read_once(value: Any) -> bool:
    """Whether ``value`` is in memory of its own and nothing but one operator looks at it: it may write there."""
    target = PURE.get(value.target, value.target)
    return value.op == "call_function" and len(value.users) == 1 and (target in OPERATIONS or target in ACTIVATIONS)


def _is_of_one_type(node: fx.Node) -> bool:
    """Whether all that ``node`` reads is of its own type: written in place, a wider operand widens nothing."""
    return all(_dtype(value) == _dtype(node) for value in node.all_input_nodes)


def _export(model: nn.Module, example: Inputs) -> torch.export.ExportedProgram:
    if isinstance(example, Mapping) and isinstance(model, OnnxModule):
        example = model.in_order(example)
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    shapes: Any = torch.export.ShapesCollection()  # by tensor: also where ``forward`` takes any number of them
    for x in (*args, *kwargs.values()):
        shapes[x] = {0: torch.export.Dim.AUTO}
    with evaluating(model):
        return _exported(model, args, kwargs, shapes)


def _exported(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], shapes: Any
) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            outputs = model(*args, **kwargs)
    except QuantopsyError:
        raise
    except Exception as error:
        _check_float32_on_cpu(model)
        where = _user_frame(error)
        raise QuantopsyError(
            "model", f"does not run on the data ({first_line(error)}{where})", _data_remedy(model, args, kwargs)
        ) from error
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(outputs)):
        raise QuantopsyError(
            "model", f"returns {type(outputs).__name__} without a tensor", "return the tensor the metric is taken from"
        )
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except QuantopsyError:
        raise
    except Exception as error:
        raise QuantopsyError(
            "model",
            f"torch.export fails ({first_line(error)}{_user_frame(error)})",
            "avoid control flow that depends on values, or export it yourself and give the .pt2 file",
        ) from error


def _check_float32_on_cpu(model: nn.Module) -> None:
    """Raise for weights that data, which come in float32 and on the CPU, cannot be put through."""
    for name, weight in model.named_parameters():
        found = []
        if weight.is_floating_point() and weight.dtype != torch.float32:
            found.append(str(weight.dtype).removeprefix("torch."))
        if weight.device.type != "cpu":
            found.append(f"on {weight.device}")
        if found:
            raise QuantopsyError(
                "model",
                f"its weights are {' '.join(found)} ({name!r})",
                "give it in float32 on the CPU; --device moves it",
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; behind it each of its modules is in its own mode again."""
    if not _can_evaluate(model):
        yield
        return
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _data_remedy(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> str:
    """What to do where ``model`` does not take these tensors."""
    takes = inspect.signature(model.forward).parameters
    if kwargs and not set(kwargs) <= set(takes):
        return (
            f"a dict gives forward's arguments by name ({', '.join(takes)}), not {', '.join(kwargs)}: "
            "name them so, or give (tensor, label)"
        )
    if any(x.dtype == torch.uint8 for x in (*args, *kwargs.values())):
        return "images are uint8: convert to float and normalise, as in training"
    return "check the shape and number of the data's tensors"


def _can_evaluate(model: nn.Module) -> bool:
    # The module of an exported program refuses eval(): it already has the form it was exported in.
    return "ExportedProgram" not in type(model).__name__ and not isinstance(model, fx.GraphModule)


def _collect_tensors(module: fx.GraphModule) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if isinstance(value, Tensor):
                tensors[str(node.target)] = value.detach()
    return tensors


def _normalise(graph: fx.Graph) -> None:
    """One form for what export writes in several: reshape for view, one batch norm, no identities, no assertions."""
    for node in list(graph.nodes):
        node.target = PURE.get(node.target, node.target)  # of those that :func:`_is_settled` lets by
        if node.op == "call_module" or (node.op == "get_attr" and "guard" in str(node.target)):
            graph.erase_node(node)
        elif node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # of the device and type at the export: neither the network's nor a simulation's
        elif node.target in (aten.view.default, aten._unsafe_view.default, aten.reshape.default):
            node.target = aten.reshape.default  # channels-last tensors have no contiguous view
            node.args = (node.args[0], _sizes(node))
        elif node.target in IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.copy.default and _dtype(node.args[0]) == _dtype(node.args[1]):
            # What assigning to a part, x[:, 0] = y, is made of: it has no derivative, and needs none.
            node.target, node.args, node.kwargs = aten.expand_as.default, (node.args[1], node.args[0]), {}
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            x, weight, bias, mean, variance, momentum, eps = node.args
            with graph.inserting_before(node):
                norm = graph.call_function(
                    aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
                )
            norm.meta = dict(node.meta)
            norm.meta["val"] = node.meta["val"][0]
            for item in list(node.users):
                item.replace_all_uses_with(norm)
                graph.erase_node(item)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _sizes(reshape: fx.Node) -> Any:
    """Its sizes, left open where only one differs by the number of images: that follows from what is reshaped, and not
    from a number that is carried along from the network's input."""
    value = reshape.meta.get("val")
    sizes = list(value.shape) if isinstance(value, Tensor) else []
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) + 1 != len(sizes) or not all(known):
        return reshape.args[1]
    return [size if isinstance(size, int) else -1 for size in sizes]


def _dtype(node: Any) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def _run_alone(
    graph: fx.Graph, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> tuple[dict[str, Tensor], list[Any]]:
    """:func:`_run` on one image, which must pass where a batch did."""
    try:
        return _run(graph, tensors, inputs)
    except Exception as error:
        raise QuantopsyError(
            "model",
            f"its batch size is fixed in the graph ({first_line(error)})",
            "write shapes with -1 or x.shape[0], or export with a dynamic first dimension",
        ) from error


def _fold_outputs(graph: fx.Graph, tensors: MutableMapping[str, Tensor], outputs: Sequence[Any]) -> None:
    """Outputs that no image has a part in, such as anchors, become constants: nobody measures noise on them."""
    last = next(iter(reversed(graph.nodes)))
    seen: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not seen.isdisjoint(node.all_input_nodes):
            seen.add(node)
    for leaf, value in zip(pytree.tree_leaves(last.args[0]), outputs, strict=True):
        if is_computed(leaf) and leaf not in seen and isinstance(value, Tensor):
            name = f"constant.{leaf.name}"
            tensors[name] = value
            with graph.inserting_before(last):
                last.replace_input_with(leaf, graph.get_attr(name))
    graph.eliminate_dead_code()


def _check_images_apart(graph: fx.Graph, alone: Sequence[Any], together: Sequence[Any], images: int) -> None:
    """The last of ``images`` must give ``alone`` what it gave ``together`` with the others, in outputs (B, ...).

    One number for all images, such as a loss, may be returned beside the output that the metric is taken from.
    """
    leaves = pytree.tree_leaves(next(iter(reversed(graph.nodes))).args[0])
    tensors = [row for row in zip(leaves, alone, together, strict=True) if isinstance(row[1], Tensor)]
    if not tensors:
        raise QuantopsyError("network", "returns no tensor", "return the tensor that the metric is computed from")
    for leaf, one, many in tensors:
        if leaf is not tensors[0][0] and (not is_computed(leaf) or many.dim() == 0):
            continue
        if not is_computed(leaf) or one.shape[:1] != (1,) or many.shape != (images, *one.shape[1:]):
            raise QuantopsyError(
                "model",
                f"an output of it is {tuple(many.shape)} for {images} images and {tuple(one.shape)} for one",
                "outputs must have images first, and the first be the one that the metric is computed from",
            )
        if not one.is_floating_point() or not torch.isfinite(many[-1:]).all():
            continue  # whoever runs the network names the image that is not finite
        distance, length = (float(x.float().norm()) for x in (one - many[-1:], one))
        if not distance <= SAME_ALONE * max(length, 1e-12):  # nor NaN, as from a deviation over one image
            raise QuantopsyError(
                "model",
                f"an image alone gives other outputs than in a batch (by {distance / max(length, 1e-12):.2g} of their "
                "length)",
                "keep images apart in every operator, and put the model into evaluation mode",
            )


def _fold_constants(graph: fx.Graph, tensors: MutableMapping[str, Tensor]) -> None:
    """Evaluate what depends on constants only, such as a normalised or re-arranged weight."""
    for node in list(graph.nodes):
        operands = node.all_input_nodes
        if node.op != "call_function" or not operands or any(a.op != "get_attr" for a in operands):
            continue
        value = node.target(
            *fx.map_arg(node.args, lambda a: tensors[str(a.target)]),
            **fx.map_arg(node.kwargs, lambda a: tensors[str(a.target)]),
        )
        if isinstance(value, Tensor):
            # Keeps the first operand's module path, so that the layer is still found under it.
            name = f"{str(operands[0].target).rpartition('.')[0] or 'constant'}.{node.name}"
            tensors[name] = value.detach()
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name))
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise QuantopsyError(
                f"weight {name!r}", f"{count} of its values are NaN or infinite", "repair the checkpoint"
            )


def _run(
    graph: fx.Graph, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> tuple[dict[str, Tensor], list[Any]]:
    """What every tensor is like, without its memory, where the graph runs on ``inputs``; and the flat outputs."""
    given = iter(inputs)
    env: dict[fx.Node, Any] = {}
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = next(given)
            elif node.op == "get_attr":
                env[node] = tensors[str(node.target)]
            elif node.op == "call_function":
                env[node] = node.target(
                    *fx.map_arg(node.args, env.__getitem__), **fx.map_arg(node.kwargs, env.__getitem__)
                )
            if isinstance(env.get(node), Tensor):
                values[node.name] = torch.empty_like(env[node], device="meta")
    leaves = pytree.tree_leaves(next(iter(reversed(graph.nodes))).args[0])
    return values, [env[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]


def _layers(
    graph: fx.Graph,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    single: Mapping[str, Tensor],
    unfused: Collection[str],
) -> tuple[tuple[Layer, ...], tuple[Unquantized, ...]]:
    layers: list[Layer] = []
    unquantized: list[Unquantized] = []
    taken: set[str] = set()
    fused: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or node in fused or node.target in MOVEMENTS:
            continue
        if node.name not in values and not isinstance(node.meta.get("val"), tuple | list):
            continue  # sizes and other plain numbers
        operation = OPERATIONS.get(node.target)
        if operation is None and node.target in ACTIVATIONS:
            operation = Operation(activation_name(node.target, node.args))
        if operation is None or not _quantizable(node, operation, values):
            path = _module_path(node)
            unquantized.append(Unquantized(path or node.name, str(node.target), _source(node)))
            continue
        activation = _fusable_activation(node) if node.target in OPERATIONS else None
        if activation is not None and activation_name(activation.target, activation.args) in unfused:
            activation = None
        if activation is not None:
            fused.add(activation)
        layers.append(_layer(len(layers), node, activation, operation, tensors, values, single, taken))
    return tuple(layers), tuple(unquantized)


def _on_grid(node: fx.Node, values: Mapping[str, Tensor]) -> bool:
    """Whether what the node gives can be quantized: floating, and not one number for all images."""
    value = values.get(node.name)
    return value is not None and value.is_floating_point() and value.dim() > 0


def _quantizable(node: fx.Node, operation: Operation, values: Mapping[str, Tensor]) -> bool:
    # A constant in front of a product, W @ x, has its channels elsewhere than every layer with a weight.
    constant_first = operation.weight is not None and not is_computed(node.args[0])
    return _on_grid(node, values) and bool(_inputs(node, operation, values)) and not constant_first


def _inputs(node: fx.Node, operation: Operation, values: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The activations that the operation reads; masks and other whole numbers need no grid."""
    operands = (
        operand
        for position in operation.activations
        if position < len(node.args)
        for operand in pytree.tree_leaves(node.args[position])
    )
    return tuple(dict.fromkeys(a.name for a in operands if is_computed(a) and _on_grid(a, values)))


def _fusable_activation(node: fx.Node) -> fx.Node | None:
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    # An activation of two tensors (a clamp by a tensor) has its operand first and constants behind.
    others = [operand for operand in user.all_input_nodes if operand is not node]
    if user.target in ACTIVATIONS and user.args[0] is node and all(a.op == "get_attr" for a in others):
        return user
    return None


def _layer(
    index: int,
    node: fx.Node,
    activation: fx.Node | None,
    operation: Operation,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    single: Mapping[str, Tensor],
    taken: set[str],
) -> Layer:
    def constant(position: int | None) -> str | None:
        if position is None or position >= len(node.args):
            return None
        argument = node.args[position]
        return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else None

    weight, bias = constant(operation.weight), constant(operation.bias)
    output = activation or node
    weight_shape = tuple(tensors[weight].shape) if weight else None
    axis = operation.axis % len(weight_shape) if weight_shape else 0
    constants = {str(a.target) for n in (node, activation) if n for a in n.all_input_nodes if a.op == "get_attr"}
    return Layer(
        index=index,
        name=_unique(_name(node, weight, operation), taken),
        op=operation.name,
        activation=activation_name(activation.target, activation.args) if activation else None,
        source=_source(node),
        onnx_node=node.meta.get("onnx_node"),
        node=node.name,
        output=output.name,
        inputs=_inputs(node, operation, values),
        weight=weight,
        bias=bias,
        weight_axis=axis,
        groups=_groups(node),
        weight_shape=weight_shape,
        output_shape=tuple(values[output.name].shape[1:]),
        macs=_macs(node, weight_shape, single),
        parameters=sum(tensors[name].numel() for name in constants),
    )


def _groups(node: fx.Node) -> int:
    position = 6 if node.target in CONVOLUTIONS or node.target in TRANSPOSED else None
    return int(node.args[position]) if position and len(node.args) > position else 1  # type: ignore[arg-type]


def _macs(node: fx.Node, weight: tuple[int, ...] | None, single: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of an image, whose values are ``single``: it may have several rows in them, say windows."""
    if node.target not in OPERATIONS or not isinstance(node.args[0], fx.Node):
        return 0
    out, into = single[node.name].shape, single[node.args[0].name].shape
    if node.target in CONVOLUTIONS and weight:
        return out[0] * prod(out[2:]) * prod(weight)
    if node.target in TRANSPOSED and weight:
        return into[0] * prod(into[2:]) * prod(weight)
    if node.target in LINEARS and weight:
        return prod(out[:-1]) * prod(weight)
    if OPERATIONS[node.target].name == "matmul":
        return prod(out) * into[-1]
    return 0


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _frames(text: str) -> list[tuple[str, str]]:
    """(file, line) of the frames that are the user's, innermost last."""
    others = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "torch/", "<")
    return [(file, line) for file, line in _FRAME.findall(text) if not file.startswith(others)]


def _source(node: fx.Node) -> str | None:
    """``file:line`` of the user's code that made the node, relative to the current folder if below it.

    Of a node from an ONNX file that does not tell, the node's name.
    """
    frames = _frames(node.meta.get("stack_trace") or "")
    if not frames:
        return node.meta.get("onnx_node")
    file, line = frames[-1]
    path = Path(file)
    if "site-packages" in path.parts:
        return f"{'/'.join(path.parts[path.parts.index('site-packages') + 1 :])}:{line}"
    if path.is_relative_to(Path.cwd()):
        return f"{path.relative_to(Path.cwd())}:{line}"
    return f"{'/'.join(path.parts[-2:])}:{line}"


def _user_frame(error: BaseException) -> str:
    """Where in the user's code ``error`` arose, as `` at file:line``, or nothing."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(f'File "{trace.tb_frame.f_code.co_filename}", line {trace.tb_lineno}')
        trace = trace.tb_next
    own = _frames("\n".join(frames))
    module = re.search(r"module stack.*?'([\w.]+)'", str(error), re.S)
    place = f"; module {module[1]}" if module else ""
    return f"{place} at {Path(own[-1][0]).name}:{own[-1][1]}" if own else place


def _module_path(node: fx.Node) -> str:
    for path, _ in reversed(list((node.meta.get("nn_module_stack") or {}).values())):
        if not path.startswith("_empty_nn_module_stack"):
            return str(path)
    return ""


def activation_module(network: Network, layer: Layer) -> str:
    """Path of the module that is the activation function of ``layer``.

    Empty where there is none, where it is a function, and in a network that has been pickled.
    """
    if layer.activation is None:
        return ""
    node = next(node for node in network.graph.nodes if node.name == layer.output)
    return _module_path(node) if _is_leaf_module(node) else ""


def _is_leaf_module(node: fx.Node) -> bool:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return False
    kind = stack[-1][1]
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
    return name.startswith("torch.nn.modules") and not name.endswith(("Sequential", "ModuleList", "ModuleDict"))


def _name(node: fx.Node, weight: str | None, operation: Operation) -> str:
    """The module path of a layer that is a module; else the enclosing module's with the operation."""
    path = _module_path(node)
    owner = weight.rpartition(".")[0] if weight else ""
    if path and (_is_leaf_module(node) or owner == path):
        return path
    if owner and not path:
        return owner
    return f"{path}.{operation.name}" if path else operation.name


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate
