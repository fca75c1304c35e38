"""Capture: the layers of a network as the layer-wise paper counts them, and honest refusals."""

from __future__ import annotations

import pickle
import runpy

import pytest
import torch
from small_net import randomise_norms
from torch import nn
from torch.utils import _pytree as pytree

from quantopsy.core import QuantopsyError
from quantopsy.graph.capture import capture, load
from quantopsy.graph.execute import compile_network
from quantopsy.graph.outputs import output_tensors, squared_norms


def outputs(module: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The module's output and its captured network's."""
    network = capture(module, inputs)
    program = compile_network(network)
    with torch.no_grad():
        return module(*inputs), program.forward(program.place(inputs))[0]


def test_layers_come_in_order_with_their_activation_fused(small, images) -> None:
    network = capture(small, (images[:2],))
    assert [(layer.name, layer.op, layer.activation) for layer in network.layers] == [
        ("stem.0", "conv2d", "relu6"),
        ("depthwise.0", "conv2d", "silu"),
        ("left", "conv2d", None),
        ("right.0", "conv2d", None),
        ("add", "add", "relu"),
        ("concat", "concat", None),
        ("pool", "max_pool", None),
        ("mean", "mean", None),
        ("head", "linear", None),
    ]
    assert [layer.index for layer in network.layers] == list(range(9))


def test_an_unfused_activation_is_a_layer_behind(small, images) -> None:
    network = capture(small, (images[:2],), unfused=("silu", "relu"))
    names = [(layer.name, layer.op, layer.activation) for layer in network.layers]
    assert names[:3] == [("stem.0", "conv2d", "relu6"), ("depthwise.0", "conv2d", None), ("depthwise.2", "silu", None)]
    assert ("add", "add", None) in names
    assert [layer.op for layer in network.layers].count("relu") == 1
    assert network.layers[2].inputs == (network.layers[1].output,)
    program = compile_network(network)
    with torch.no_grad():
        found = program.forward(program.place((images,)))[0]
        torch.testing.assert_close(found, small(images), rtol=1e-5, atol=1e-6)
    with pytest.raises(QuantopsyError, match=r"'swish'.*nearest are hardswish"):
        capture(small, (images[:2],), unfused=("swish",))


def test_a_layer_knows_its_size_and_source(small, images) -> None:
    stem, depthwise, *_ = capture(small, (images[:2],)).layers
    assert stem.weight_shape == (8, 3, 3, 3)
    assert stem.output_shape == (8, 12, 12)
    assert stem.macs == 12 * 12 * 8 * 27
    assert stem.parameters == 8 * 27 + 8  # the folded batch norm leaves a bias
    assert depthwise.groups == 8
    assert depthwise.macs == 5 * 5 * 8 * 9
    assert stem.source is not None
    assert "small_net.py:" in stem.source


def test_an_image_may_have_several_rows_in_a_value() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 2), nn.Linear(36, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.head(self.second(torch.relu(self.first(x.flatten(0, 1)))).flatten(1))
            return y.unflatten(0, (x.shape[0], -1)).mean(1)

    network = capture(Windows().eval(), (torch.randn(2, 7, 3, 6, 6),))
    macs = {layer.name: layer.macs for layer in network.layers}
    assert (macs["first"], macs["second"], macs["head"]) == (7 * 16 * 4 * 27, 7 * 9 * 4 * 16, 7 * 36 * 5)
    assert network.coverage["macs_share"] == 1.0


def test_a_user_s_folder_may_be_called_as_this_package(tmp_path, images) -> None:
    file = tmp_path / "quantopsy" / "nets.py"
    file.parent.mkdir()
    file.write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.first = nn.Conv2d(3, 4, 3)\n\n    def forward(self, x):\n        return self.first(x)\n"
    )
    found = runpy.run_path(str(file))
    (layer,) = capture(found["Net"](), (images[:2],)).layers
    assert layer.source == "quantopsy/nets.py:10"


def test_folded_equals_float_at_any_batch_size(small, images) -> None:
    program = compile_network(capture(small, (images[:2],)))
    for count in (1, 2, 12):
        with torch.no_grad():
            torch.testing.assert_close(
                program.forward(program.place((images[:count],)))[0], small(images[:count]), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), nn.GELU()), (4, 9)),
        (lambda: nn.Sequential(nn.Conv3d(2, 4, 3, dilation=1), nn.BatchNorm3d(4), nn.ELU()), (2, 5, 5, 5)),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6)), (4, 5, 5)),
        (lambda: nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Hardswish()), (7,)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.PReLU(4)), (3, 6, 6)),
    ],
)
def test_batch_norms_fold_into_every_kind_of_layer(layer, shape) -> None:
    torch.manual_seed(0)
    module = randomise_norms(layer())
    x = torch.randn(3, *shape)
    raw, folded = outputs(module, x)
    torch.testing.assert_close(folded, raw, rtol=1e-5, atol=1e-6)
    network = capture(module, (x,))
    assert [layer.op for layer in network.layers].count("batch_norm") == 0
    assert len(network.layers) == 1


def test_a_batch_norm_with_nothing_to_fold_into_stays_as_an_affine_layer() -> None:
    torch.manual_seed(0)
    module = randomise_norms(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)))
    x = torch.randn(2, 3, 6, 6)
    raw, captured = outputs(module, x)
    torch.testing.assert_close(captured, raw, rtol=1e-5, atol=1e-6)
    assert [layer.op for layer in capture(module, (x,)).layers] == ["batch_norm", "conv2d"]


def test_a_shared_weight_is_folded_for_each_of_its_layers() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.conv(self.first(self.conv(x))))

    torch.manual_seed(0)
    raw, folded = outputs(randomise_norms(Shared()), torch.randn(2, 3, 6, 6))
    torch.testing.assert_close(folded, raw, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x * nn.functional.relu6(x + 3) / 6, "hardswish"),
        (lambda x: x * (nn.functional.relu6(x + 3.0) * (1 / 6)), "hardswish"),
        (lambda x: nn.functional.hardtanh(x + 3, 0, 6) / 6, "hardsigmoid"),
        (lambda x: x * nn.functional.softplus(x).tanh(), "mish"),
        (lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), "gelu"),
        (lambda x: (torch.erf(x * 0.5**0.5) + 1) * x * 0.5, "gelu"),
        (lambda x: x.clamp(0, 6), "relu6"),
        (lambda x: x.clamp(min=0), "relu"),
        (lambda x: x * nn.functional.relu6(torch.add(x, 3, alpha=2)) / 6, None),
        (lambda x: x * 0.5 * torch.add(torch.erf(x / 2**0.5), 1, alpha=2), None),
    ],
)
def test_decomposed_activations_are_put_together_again(function, name) -> None:
    class Decomposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(self.conv(x))

    torch.manual_seed(0)
    module, x = Decomposed().eval(), 3 * torch.randn(2, 3, 8, 8)
    raw, captured = outputs(module, x)
    torch.testing.assert_close(captured, raw, rtol=1e-5, atol=1e-6)
    layer = capture(module, (x,)).layers[0]
    assert (layer.op, layer.activation) == ("conv2d", name)


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (lambda y, x: y.relu_(), True),
        (lambda y, x: y.relu_().add_(x).relu_(), True),
        (lambda y, x: nn.functional.dropout(y.relu_().mul_(2), 0.5, training=False, inplace=True), True),
        (lambda y, x: y.flatten(1).clamp(0, 1), True),
        (lambda y, x: y.relu_() + y, True),  # y is what relu_ made of it
        (lambda y, x: (y + 1, y.relu_())[0] + y, False),
        (lambda y, x: y[:, :2].relu_() + y[:, 2:], False),  # a part of y that the other part does not see
        (lambda y, x: (y[:, :2].neg_(), y)[1], False),  # a part of y that y sees
        (lambda y, x: x.add_(1) + y, False),  # the images themselves
        (lambda y, x: (y.view(y.shape[0], -1).mul_(2), y.sigmoid())[1], False),
        (lambda y, x: y.chunk(2, 1)[1], False),
        (lambda y, x: torch.cumsum(y, 1), False),
    ],
)
def test_writing_in_place_computes_the_same_whether_a_decomposition_is_spared_or_not(
    function, plain, monkeypatch
) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1.5
            return function(self.norm(self.conv(x)), x)

    torch.manual_seed(0)
    module, decomposed = randomise_norms(Writes()), []
    run = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda self, table: decomposed.append(1) or run(self, table)
    )
    raw, captured = outputs(module, torch.randn(3, 3, 6, 6))
    torch.testing.assert_close(captured, raw, rtol=1e-5, atol=1e-6)
    assert bool(decomposed) is not plain


def test_what_is_written_in_place_keeps_its_type() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 1)
            self.register_buffer("wide", torch.full((3, 1, 1), 0.3, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).relu_().mul_(self.wide))

    torch.manual_seed(0)
    raw, captured = outputs(Scales().eval(), torch.randn(2, 3, 6, 6))
    torch.testing.assert_close(captured, raw, rtol=1e-5, atol=1e-6)


def test_several_inputs_by_name_and_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": self.a(left) + self.b(right), "product": self.a(left) * self.b(right)}

    torch.manual_seed(0)
    module = Two().eval()
    batch = {"right": torch.randn(4, 5), "left": torch.randn(4, 4)}
    network = capture(module, batch)
    program = compile_network(network)
    with torch.no_grad():
        found, expected = network.unflatten(program.forward(program.place(batch))), module(**batch)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


class Ends(nn.Module):
    """Returns what ``end`` makes of the scores and the features in front of them."""

    def __init__(self, end) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.register_buffer("anchors", torch.randn(5, 2))
        self.end = end

    def forward(self, x: torch.Tensor):
        y = torch.relu(self.first(x)).mean((2, 3))
        return self.end(self, self.head(y), y)


@pytest.mark.parametrize(
    "end",
    [
        lambda net, scores, y: scores[:, 0],
        lambda net, scores, y: (scores, None),
        lambda net, scores, y: {"scale": 2.0, "out": scores},
        lambda net, scores, y: (scores, net.anchors, [scores.argmax(1), y]),
        lambda net, scores, y: (scores, torch.arange(6.0).reshape(3, 2) * 2),
        lambda net, scores, y: (scores, scores.square().mean()),
        lambda net, scores, y: (scores, scores),
    ],
)
def test_outputs_of_any_form_come_back_in_it(end) -> None:
    torch.manual_seed(0)
    module, images = Ends(end).eval(), torch.randn(5, 3, 6, 6)
    network = capture(module, (images[:2],))
    for captured in (network, pickle.loads(pickle.dumps(network))):
        program = compile_network(captured)
        with torch.no_grad():
            flat, expected = program.forward(program.place((images,))), module(images)
            found = captured.unflatten(flat)
        assert pytree.tree_structure(found) == pytree.tree_structure(expected)
        for mine, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert [id(value) for value in captured.flatten(found)] == [id(value) for value in flat]
        # Noise is of what images have a part in, each its own.
        assert {len(tensor) for tensor in output_tensors(flat)} == {5}
        assert squared_norms(flat).shape == (5,)


def test_a_number_for_all_images_has_no_grid() -> None:
    network = capture(Ends(lambda net, scores, y: (scores, scores.mean())).eval(), (torch.randn(2, 3, 6, 6),))
    assert [layer.name for layer in network.layers] == ["first", "mean", "head"]
    assert [item.operator for item in network.unquantized] == ["aten.mean.default"]


@pytest.mark.parametrize("factor", [1.3, 2.2, 1.04])
def test_resampling_to_the_nearest_keeps_images_apart(factor) -> None:
    """Also where torch has kernels that take different neighbours."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=factor, mode="nearest"))
    for size in (3, 4, 7):
        capture(module.eval(), (torch.randn(2, 3, size, size),))


@pytest.mark.parametrize(
    "end",
    [
        lambda net, scores, y: scores - scores.mean(0),
        lambda net, scores, y: scores.cumsum(0),
        lambda net, scores, y: scores / scores.std(0),
        lambda net, scores, y: (scores, y / y.norm()),
    ],
)
def test_a_model_that_does_not_keep_images_apart_is_refused(end) -> None:
    torch.manual_seed(0)
    with pytest.raises(QuantopsyError, match=r"^model: an image alone gives other outputs than in a batch .* apart"):
        capture(Ends(end).eval(), (torch.randn(2, 3, 6, 6),))


@pytest.mark.parametrize(
    "end",
    [
        lambda net, scores, y: scores[None].expand(7, -1, -1),
        lambda net, scores, y: scores.T,
        lambda net, scores, y: scores @ scores.T,
        lambda net, scores, y: scores.reshape(-1, 1),
        lambda net, scores, y: (scores.square().mean(), scores),
        lambda net, scores, y: (net.anchors, scores),
        lambda net, scores, y: (scores, scores.mean(0)),
    ],
)
def test_outputs_without_images_first_are_refused(end) -> None:
    with pytest.raises(QuantopsyError, match=r"^model: an output of it is \(.*; outputs must have images first"):
        capture(Ends(end).eval(), (torch.randn(2, 3, 6, 6),))


def test_with_one_image_alone_there_is_nothing_to_compare() -> None:
    module = Ends(lambda net, scores, y: scores - scores.mean(0)).eval()
    image = torch.randn(1, 3, 6, 6)
    assert capture(module, (image.expand(2, -1, -1, -1),)).layers


def test_a_mask_is_no_operand_that_needs_a_grid() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return y * (y > 0) + (y < 0) * 2.0

    network = capture(Masked().eval(), (torch.randn(2, 3, 6, 6),))
    first, product, addition = network.layers
    assert product.inputs == (first.output,)
    assert len(addition.inputs) == 2
    assert [item.operator for item in network.unquantized] == ["aten.gt.Scalar", "aten.lt.Scalar", "aten.mul.Tensor"]


def test_a_constant_in_front_of_a_product_stays_float_and_is_not_covered() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(5, 16)), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.w @ x).mean(2))

    network = capture(Left().eval(), (torch.randn(2, 16, 8),))
    assert [layer.name for layer in network.layers] == ["mean", "head"]
    assert [item.operator for item in network.unquantized] == ["aten.matmul.default"]
    assert network.coverage["macs_share"] == pytest.approx(20 / (20 + 5 * 16 * 8))


def test_what_is_not_understood_stays_float_and_is_listed() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.norm(self.first(x)), -1)

    network = capture(Norm().eval(), (torch.randn(2, 4),))
    assert [layer.name for layer in network.layers] == ["first"]
    assert {item.operator for item in network.unquantized} == {"aten.layer_norm.default", "aten.softmax.int"}
    assert all(item.source and "test_capture.py:" in item.source for item in network.unquantized)


@pytest.mark.parametrize(
    ("elements", "operator"),
    [(lambda x: x.max(2)[0], "aten.max.dim"), (lambda x: x.topk(3, dim=2)[0].mean(2), "aten.topk.default")],
)
def test_an_element_of_what_an_operator_computes_is_a_value_of_its_own(elements, operator) -> None:
    class Points(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv1d(3, 8, 1), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(elements(torch.relu(self.first(x))))

    torch.manual_seed(0)
    network = capture(Points().eval(), (torch.randn(2, 3, 16),))
    assert [item.operator for item in network.unquantized] == [operator]
    for layer in network.layers:
        for value in layer.inputs:
            assert network.origin(value) not in ("max_1", "topk")  # the tuple


def test_the_elements_of_a_divided_value_keep_its_grid() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.first(x).chunk(2, 1)
            return self.head(left) + right

    network = capture(Halves().eval(), (torch.randn(2, 3, 4, 4),))
    (read,) = network.layer("head").inputs
    assert network.origin(read) == network.layer("first").output
    assert not network.unquantized


def test_the_module_is_left_as_it_was(small, images) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    capture(small, (images[:2],))
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())


def test_each_module_stays_in_its_mode(small, images) -> None:
    small.train()
    small.stem.eval()
    before = {name: module.training for name, module in small.named_modules()}
    network = capture(small, (images[:2],))
    assert {name: module.training for name, module in small.named_modules()} == before
    assert network.fingerprint == capture(small.eval(), (images[:2],)).fingerprint
    small.train()
    with pytest.raises(QuantopsyError):
        capture(small, (images[:2, :1],))
    assert small.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net: net.double(), "float64"),
        (lambda net: net.to(torch.bfloat16), "bfloat16"),
        (lambda net: net.to("meta"), "on meta"),
        (lambda net: net.half().to("meta"), "float16 on meta"),
    ],
)
def test_weights_that_data_cannot_meet_are_the_reason(change, words, small, images) -> None:
    with pytest.raises(
        QuantopsyError, match=rf"^model: its weights are {words} \('.*'\); give it in float32 on the CPU"
    ):
        capture(change(small), (images[:2],))


def test_refusals_name_thing_reason_and_remedy(tmp_path, images) -> None:
    with pytest.raises(QuantopsyError, match=r"no such file; give FILE.pt2"):
        load(str(tmp_path / "absent.pt2"))
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"PK nonsense")
    with pytest.raises(QuantopsyError, match="does not load"):
        load(broken)
    with pytest.raises(QuantopsyError, match=r"nearest are .*Linear"):
        load("torch.nn:Linaer")
    with pytest.raises(QuantopsyError, match="has no layer that can be quantized"):
        capture(nn.Softmax(dim=1), (images[:2].flatten(1),))
    with pytest.raises(QuantopsyError, match="does not run on the data"):
        capture(nn.Linear(5, 2), (images[:2],))


def test_nan_weights_are_named(small, images) -> None:
    with torch.no_grad():
        small.left.weight[0, 0] = float("nan")
    with pytest.raises(QuantopsyError, match=r"weight 'left.weight': 1 of its values"):
        capture(small, (images[:2],))


def test_control_flow_on_values_names_the_line() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if x.sum() > 0 else -self.linear(x)

    with pytest.raises(QuantopsyError, match=r"torch.export fails .*test_capture.py:\d+"):
        capture(Branching().eval(), (torch.randn(2, 4),))


def test_a_fixed_batch_size_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.reshape(2, 4))

    with pytest.raises(QuantopsyError, match="batch size is fixed in the graph"):
        capture(Fixed().eval(), (torch.randn(2, 4),))


def test_channels_shuffled_by_a_flatten_of_a_transposed_value_are_captured() -> None:
    """Export writes that flatten as a copy and a view of it."""

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)

    module, images = Shuffled().eval(), torch.randn(2, 3, 8, 8)
    expected, found = outputs(module, images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_value_reshaped_by_the_number_of_images_keeps_its_grid() -> None:
    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.head(y.view(x.shape[0], -1))

    network = capture(Flattened(), (torch.randn(2, 3, 6, 6),))
    (read,) = network.layer("head").inputs
    assert network.origin(read) == network.layer("conv").output


def test_a_conversion_of_types_asserts_none_and_takes_zeros_of_its_own() -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.float() / 255)

    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    network = capture(Normalising(), (pixels,))
    # An export asserts the device and the type that it saw, which another device is not.
    assert not [node for node in network.graph.nodes if "assert" in str(node.target)]
    assert [zeros.dtype for zeros in network.zeros(1)] == [torch.uint8]


def test_images_in_bytes_are_named(small) -> None:
    images = torch.randint(0, 255, (2, 3, 12, 12), dtype=torch.uint8)
    with pytest.raises(QuantopsyError, match="; images are uint8: convert to float and normalise, as in training"):
        capture(small, (images,))


def test_tensors_under_names_that_forward_lacks_are_named(small, images) -> None:
    with pytest.raises(QuantopsyError, match=r"by name \(x\), not image: name them so, or give \(tensor, label\)"):
        capture(small, {"image": images[:2]})
    assert capture(small, {"x": images[:2]}).names == capture(small, (images[:2],)).names
