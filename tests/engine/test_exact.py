"""The exact engine against Algorithm 1 written down naively, and against itself."""

from __future__ import annotations

import naive
import numpy as np
import pytest
import torch
from folded_nets import FOLDED, folded
from random_net import pictures, random_net
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from quantopsy.analysis.schemes import at_bits, full_plan, grids, single_layer
from quantopsy.analysis.screening import Scores
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.data import Batch
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import Program, compile_network
from quantopsy.graph.outputs import squared_norms


def engine_for(module: nn.Module, calibration: torch.Tensor, plans: list[Plan] | None = None) -> ExactEngine:
    """An engine calibrated on ``calibration`` for the per-tensor scheme (or ``plans``)."""
    program = compile_network(capture(module, (calibration[:2],)))
    plans = plans or [full_plan(program.network, grids("per-tensor", 8))]
    return ExactEngine(program, calibrate(program, [(calibration,)], wanted_statistics(program.network, plans)))


def run(engine: ExactEngine, plans: list[Plan], images: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """(noise per image, first output) by position in ``plans``; -1 is the float network."""
    found = {}
    reference: tuple[torch.Tensor, ...] = ()
    for measured in engine.run_tile((images,), [engine.prepare(plan) for plan in plans]):
        if measured.run < 0:
            reference = measured.outputs
        found[measured.run] = squared_norms(measured.outputs, reference), measured.outputs[0]
    return found


@pytest.mark.parametrize(
    ("name", "activation"), [("stem.0", "stem.2"), ("depthwise.0", "depthwise.2"), ("left", None), ("head", None)]
)
@pytest.mark.parametrize("bits", [3, 8])
def test_a_cell_is_algorithm_1(small, images, name, activation, bits) -> None:
    engine = engine_for(small, images)
    full = at_bits(full_plan(engine.program.network, grids("per-tensor", 8)), bits)
    plan = single_layer(full, engine.program.network.layer(name))
    expected, _ = naive.noise(naive.fuse(small), name, activation, bits, images, images)
    found, _ = run(engine, [plan], images)[0]
    # Folding by another route moves a value across a rounding tie now and then; no more than that.
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-6)


def test_every_plan_equals_running_it_alone_from_the_start(small, images) -> None:
    engine = engine_for(small, images)
    network = engine.program.network
    full = full_plan(network, grids("per-tensor", 8))
    plans = [single_layer(at_bits(full, bits), layer) for layer in network.layers for bits in (3, 8)]
    plans += [at_bits(full, bits) for bits in (3, 8)]
    together = run(engine, plans, images)
    for position, plan in enumerate(plans):
        alone = run(engine_for(small, images), [plan], images)[0]
        assert torch.equal(together[position][1], alone[1])


def test_other_readers_of_a_quantized_input_get_float(small, images) -> None:
    engine = engine_for(small, images)
    # ``left``, ``right`` and ``concat`` read the same value; only left's input is on a coarse grid.
    plan = Plan.of({Site("left", "input"): Spec(bits=2)})
    value = engine.program.network.layer("left").inputs[0]
    seen: dict[str, torch.Tensor] = {}

    def observe(step, values) -> None:
        if step.writes == value:
            seen["x"] = values[value].clone()

    engine.calibration = calibrate(engine.program, [(images,)], wanted_statistics(engine.program.network, [plan]))
    engine.program.forward(engine.program.place((images,)), observe)
    x = seen["x"]
    fused = naive.fuse(small)
    with torch.no_grad():
        y = torch.relu(fused.left(naive.quantized_tensor(x, 2)) + fused.right(x))
        expected = fused.head(fused.pool(torch.cat([y, x], 1)).mean((2, 3)))
    torch.testing.assert_close(run(engine, [plan], images)[0][1], expected, rtol=1e-4, atol=1e-5)


def test_batch_size_does_not_change_the_numbers(small, images) -> None:
    engine = engine_for(small, images)
    plans = [single_layer(at_bits(full_plan(engine.program.network, grids("per-tensor", 8)), 4), layer)
             for layer in engine.program.network.layers]  # fmt: skip
    whole = run(engine, plans, images)
    halves = [run(engine, plans, part) for part in images.split(5)]
    for position in range(len(plans)):
        parts = torch.cat([half[position][0] for half in halves])
        torch.testing.assert_close(whole[position][0], parts, rtol=1e-3, atol=1e-7)


def test_an_unread_prefix_is_never_run_again(small, images) -> None:
    engine = engine_for(small, images)
    network = engine.program.network
    plan = single_layer(full_plan(network, grids("per-tensor", 8)), network.layer("head"))
    prepared = engine.prepare(plan)
    assert [engine.program.steps[index].layer.name for index in prepared.schedule] == ["head"]


def test_a_plan_is_prepared_once(small, images) -> None:
    engine = engine_for(small, images)
    plan = single_layer(full_plan(engine.program.network, grids("per-tensor", 8)), engine.program.network.layer("left"))
    assert engine.prepare(Plan.of(dict(plan.sites))) is engine.prepare(plan)
    with pytest.raises(ValueError, match="an empty plan is the float network"):
        engine.prepare(Plan())


def test_parallel_branches_are_not_run_again(small, images) -> None:
    engine = engine_for(small, images)
    network = engine.program.network
    prepared = engine.prepare(single_layer(full_plan(network, grids("per-tensor", 8)), network.layer("left")))
    names = {step.layer.name for index in prepared.schedule if (step := engine.program.steps[index]).layer}
    assert "right.0" not in names
    assert "add" in names


def test_weights_of_module_and_network_are_untouched(small, images) -> None:
    engine = engine_for(small, images)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    network = engine.program.network
    tensors = {name: value.clone() for name, value in network.tensors.items()}
    full = at_bits(full_plan(network, grids("per-channel", 8)), 3)
    engine.calibration = calibrate(engine.program, [(images,)], wanted_statistics(network, [full]))
    run(engine, [single_layer(full, layer) for layer in network.layers] + [full], images)
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert all(torch.equal(tensors[name], value) for name, value in network.tensors.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())


def test_values_are_released_behind_their_last_reader(small, images) -> None:
    program: Program = compile_network(capture(small, (images[:2],)))
    values = program.place((images,))
    program.forward(values)
    assert set(values) == set(program.outputs)


class Reshaped(nn.Module):
    """Sizes as numbers, a value split in parts, and an output that is no image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(12 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).relu().chunk(2, 1)
        a, _, c = second.split([1, 2, 1], 1)
        y = torch.cat([self.mix(first), second, a, c, a, c], 1)
        return self.head(y.view(x.shape[0], -1))


class Scaled(nn.Module):
    """Parameters that are computed with before they meet an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.linspace(-1, 1, channels)[:, None, None])
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.conv(x) * torch.sigmoid(self.scale))
        return self.head(y.mean((2, 3)))


class Turned(nn.Module):
    """Images are not outermost for a while."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, channels, 3), nn.Linear(64, 4)
        self.head = nn.Linear(4 * channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        by_channel = self.conv(x).flatten(2).transpose(0, 1)
        return self.head(self.last(by_channel).relu().transpose(0, 1).contiguous().view(x.shape[0], -1))


def check_rows(module: nn.Module, images: Tensor) -> None:
    """Every cell and the whole network on some rows of a tile, each on its own, against the whole tile."""
    engine = engine_for(module, images)
    network = engine.program.network
    full = at_bits(full_plan(network, grids("per-tensor", 8)), 4)
    plans = [single_layer(full, layer) for layer in network.layers] + [full]
    prepared = [engine.prepare(plan) for plan in plans]
    whole = {measured.run: measured.outputs for measured in engine.run_tile((images,), prepared)}
    choices: list[np.ndarray | None] = [np.array([1, 2]), np.array([0]), None, np.array([0, 2, len(images) - 1])]
    rows = [choices[position % len(choices)] for position in range(len(plans))]
    seen = set()
    for measured in engine.run_tile((images,), prepared, rows):
        kept = None if measured.run < 0 else rows[measured.run]
        for output, expected in zip(measured.outputs, whole[measured.run], strict=True):
            expected = expected if kept is None else expected[torch.from_numpy(kept)]
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)
        seen.add(measured.run)
    assert seen == {-1, *range(len(plans))}


@pytest.mark.parametrize("seed", range(5))
def test_some_rows_of_a_tile_give_what_the_whole_tile_gives_there(seed) -> None:
    check_rows(random_net(seed), pictures(19))


def test_sizes_and_parts_are_those_of_the_rows() -> None:
    torch.manual_seed(0)
    check_rows(Reshaped().eval(), pictures(19))


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("kind", [Scaled, Turned])
def test_some_rows_of_a_tile_where_the_outermost_dimension_is_of_channels(kind, channels) -> None:
    """Also where there are by chance as many channels as images in the tile."""
    torch.manual_seed(0)
    check_rows(kind(channels).eval(), pictures(5))


@pytest.mark.parametrize("kind", FOLDED)
def test_some_rows_of_a_tile_where_an_image_has_several_rows(kind) -> None:
    check_rows(folded(kind), pictures(19))


def test_runs_on_some_images_are_of_few_sizes(monkeypatch) -> None:
    """A library keeps kernels for every size that it meets."""
    engine = engine_for(random_net(0), pictures(2))
    full = full_plan(engine.program.network, grids("per-tensor", 8))
    (name,) = engine.program.network.input_names
    sizes, original = set(), ExactEngine._run

    def spy(self, prepared, values, shared):
        sizes.add(len(values[name]))
        return original(self, prepared, values, shared)

    monkeypatch.setattr(ExactEngine, "_run", spy)
    rows = [np.arange(count) for count in range(1, 41)]
    found = list(engine.run_tile((pictures(40),), [engine.prepare(full)] * len(rows), rows))
    assert [len(measured.outputs[0]) for measured in found[1:]] == [len(kept) for kept in rows]
    assert len(sizes) == 8


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 as an ordinary module, its batch norms fused by torch."""
    module = pytest.importorskip("quantopsy.demo").network()
    pairs = [(module, "_conv_stem", "_bn0"), (module, "_conv_head", "_bn1")]
    for block in module._blocks:
        names = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        pairs += [(block, conv, norm) for conv, norm in names if hasattr(block, conv)]
    for parent, conv, norm in pairs:
        setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
        setattr(parent, norm, nn.Identity())
    return module


@pytest.mark.parametrize("name", ["_blocks.0._project_conv", "_blocks.8._project_conv", "_fc"])
def test_a_cell_of_a_real_network_is_algorithm_1(zoo, name) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    dataset = zoo.images("efficientnet_lite0", "imagenet_val", 6)
    images = torch.stack([dataset[i][0] for i in range(6)])
    engine = engine_for(zoo.network("efficientnet_lite0"), images)
    network = engine.program.network
    plan = single_layer(at_bits(full_plan(network, grids("per-tensor", 8)), 6), network.layer(name))
    expected, _ = naive.noise(efficientnet(), name, None, 6, images, images)
    found, _ = run(engine, [plan], images)[0]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-5)


LINEAR_NETS = {
    "convolution": lambda: nn.Conv2d(3, 6, 3),
    "depthwise": lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 7)),
}


@pytest.mark.parametrize("name", LINEAR_NETS)
def test_with_the_bias_corrected_every_output_channel_keeps_its_mean(name, images) -> None:
    torch.manual_seed(3)
    x = images + torch.tensor([3.0, -1.0, 0.5])[:, None, None]
    network = compile_network(capture(LINEAR_NETS[name]().eval(), (x[:2],))).network
    site = Site(network.layers[0].name, "weight")
    plain, corrected = (Plan.of({site: Spec(bits=3, correction=how)}) for how in ("none", "bias"))
    program = compile_network(network)
    engine = ExactEngine(program, calibrate(program, [(x[:5],), (x[5:],)], wanted_statistics(network, [corrected])))
    reference, *found = (
        measured.outputs[0].double()
        for measured in engine.run_tile((x,), [engine.prepare(p) for p in (plain, corrected)])
    )
    shifts = [(outputs - reference).mean([0, *range(2, outputs.dim())]).abs().max() for outputs in found]
    assert shifts[1] < 0.02 * shifts[0]  # a kernel's corner does not see the whole of an image
    # What is left is the error about its mean.
    centred = found[0] - reference
    centred = centred - centred.mean([0, *range(2, centred.dim())], keepdim=True)
    torch.testing.assert_close(found[1] - reference, centred, rtol=0, atol=0.02 * float(shifts[0]))
    # A linear network is what the screen is exact for.
    probes = 64
    scores = Scores.of_batches(
        program, engine.calibration, [Batch((x,), None, np.arange(len(x)))], {site: [plain[site], corrected[site]]},
        noise_probes=probes, decision=False,
    )  # fmt: skip
    for plan, outputs in zip((plain, corrected), found, strict=True):
        noise = float((outputs - reference).flatten(1).square().sum(1).mean())
        assert scores.predicted(plan)[0] == pytest.approx(noise, rel=0.25)


def test_a_bias_that_cannot_be_corrected_is_named(images) -> None:
    module = nn.ConvTranspose2d(3, 4, 3).eval()
    program = compile_network(capture(module, (images[:2],)))
    plan = Plan.of({Site(program.network.layers[0].name, "weight"): Spec(correction="bias")})
    engine = ExactEngine(program, calibrate(program, [(images,)], wanted_statistics(program.network, [plan])))
    with pytest.raises(QuantopsyError, match="the correction of a bias does not know conv_transpose2d"):
        engine.prepare(plan)
