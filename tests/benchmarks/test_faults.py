"""A planted fault leaves the float network as it was and makes its layer's grid fail."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from compensated import RefusedError, channels_seen, rescaled, shifted
from fault_search import layer_plans, measure, search, truth
from faults import INT32, KINDS, Fault, Planted, Subject, plant
from torch import Tensor, nn

from quantopsy.calibrate import fit
from quantopsy.core import Plan, Site
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.layer_noise import Local, look
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network


class Net(nn.Module):
    """Every way that a change of channels can take, with a dead channel and a linear bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3)
        self.pool = nn.MaxPool2d(2)
        self.project = nn.Conv2d(12, 4, 1)
        self.beside = nn.Conv2d(4, 4, 1)
        self.expand = nn.Conv2d(4, 10, 1)
        self.head = nn.Linear(10 * 4, 5)
        for module in (self.stem, self.depthwise, self.left, self.right, self.project, self.beside, self.expand):
            nn.init.kaiming_normal_(module.weight)
        with torch.no_grad():
            assert self.stem.bias is not None
            self.stem.bias[2] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.leaky_relu(self.depthwise(x))
        x = torch.cat([torch.relu(self.left(x[:, :, 1:-1, 1:-1])), torch.relu(self.right(x))], 1)
        x = self.project(self.pool(x))
        x = nn.functional.relu6(self.expand(x + self.beside(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def outputs(network: Network, images: Tensor) -> Tensor:
    program = compile_network(network)
    with torch.inference_mode():
        return program.forward(program.place((images,)))[0]


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A random network, its own decisions taken for right."""
    torch.manual_seed(0)
    images = pictures(96)
    module = Net().eval()
    with torch.no_grad():
        module.head.bias -= module(images).mean(0)
    network = capture(module, (images[:2],))
    return Subject("net", network, images, outputs(network, images).argmax(1), pictures(32))


def pictures(count: int) -> Tensor:
    """Images that differ in brightness and colour, none of it negative."""
    return torch.rand(count, 3, 12, 12) * torch.rand(count, 3, 1, 1)


def same(network: Network, other: Network, images: Tensor) -> bool:
    expected = outputs(network, images)
    return bool(((outputs(other, images) - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all())


def random_scales(network: Network, name: str, seed: int = 0) -> Tensor:
    count = network.layer(name).output_shape[0]
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 8 + 0.1


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("stem", ["depthwise"]),
        ("depthwise", ["left", "right"]),
        ("left", ["project"]),
        ("right", ["project"]),
    ],
)
def test_rescaled_channels_are_undone_by_their_readers(subject, name, readers) -> None:
    network = subject.network
    scale = random_scales(network, name)
    change = rescaled(network, network.layer(name), scale, subject.seen)
    assert [reader.name for reader in change.readers] == readers
    # Also of images that nobody has looked at.
    assert same(network, change.network, torch.randn(20, 3, 12, 12))
    before, after = (
        channels_seen(n, [subject.images])[network.layer(name).output].high for n in (network, change.network)
    )
    torch.testing.assert_close(after, before * scale, rtol=1e-4, atol=1e-4)


def test_a_linear_head_behind_a_flattened_map_undoes_a_relu6_that_stays_clear_of_its_bound(subject) -> None:
    network = subject.network
    layer = network.layer("expand")
    high = subject.seen[layer.output].high
    change = rescaled(network, layer, 5.0 / high.clamp(min=0.01), subject.seen)
    assert [reader.name for reader in change.readers] == ["head"]
    assert same(network, change.network, subject.images)
    with pytest.raises(RefusedError, match="relu6"):
        rescaled(network, layer, 6.5 / high.clamp(min=0.01), subject.seen)


@pytest.mark.parametrize(
    ("name", "reason"), [("project", "addition"), ("beside", "addition"), ("head", "output"), ("add", "no weight")]
)
def test_what_cannot_be_undone_is_refused(subject, name, reason) -> None:
    layer = subject.network.layer(name)
    with pytest.raises(RefusedError, match=reason):
        rescaled(subject.network, layer, torch.full((layer.output_shape[0],), 2.0), subject.seen)


@pytest.mark.parametrize(("name", "readers"), [("project", ["beside", "expand"]), ("beside", ["expand"])])
def test_a_shift_passes_an_addition_and_leaves_at_the_biases(subject, name, readers) -> None:
    network = subject.network
    shift = random_scales(network, name) - 4.0
    change = shifted(network, network.layer(name), shift, subject.seen)
    assert [reader.name for reader in change.readers] == readers
    assert same(network, change.network, torch.randn(20, 3, 12, 12))
    value = network.layer("add").inputs[1] if name == "beside" else network.layer("project").output
    before, after = (channels_seen(n, [subject.images])[value].mean for n in (network, change.network))
    if name == "beside":
        torch.testing.assert_close(after, before + shift, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["stem", "depthwise", "left", "expand", "head"])
def test_a_shift_before_an_activation_is_refused(subject, name) -> None:
    layer = subject.network.layer(name)
    with pytest.raises(RefusedError):
        shifted(subject.network, layer, torch.ones(layer.output_shape[0]), subject.seen)


def test_a_shift_before_zero_padding_is_refused() -> None:
    class Padded(nn.Sequential):
        """Two convolutions, the second with a border of zeros."""

    images = torch.rand(4, 3, 6, 6)
    network = capture(Padded(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3, padding=1)).eval(), (images,))
    with pytest.raises(RefusedError, match="pads"):
        shifted(network, network.layers[0], torch.ones(4), channels_seen(network, [images]))


def planted_fault(subject: Subject, kind: str) -> Planted:
    """The first place where a fault of the kind can be, of middling strength."""
    share = {"moved_calibration": 0.9, "one_sided_rounding": 1.0}.get(kind, 0.5)
    entry = KINDS[kind]
    for fault in entry.places(subject, Random(3)):
        try:
            return plant(subject, replace(fault, strength=entry.weakest ** (1 - share) * entry.strongest**share))
        except RefusedError:
            continue
    raise AssertionError(f"no place for {kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_float_function_stays_where_that_is_claimed(subject, kind) -> None:
    planted = planted_fault(subject, kind)
    assert planted.layers
    if planted.exact:
        assert same(subject.network, planted.subject.network, subject.images)
        assert same(subject.network, planted.subject.network, subject.calibration)
    changed = (planted.subject.network.fingerprint, planted.subject.plan) != (subject.network.fingerprint, subject.plan)
    assert changed or not torch.equal(planted.subject.calibration, subject.calibration)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"bias_overflow", "one_sided_rounding"}))
def test_the_faulty_layer_becomes_far_noisier_than_it_was(subject, kind) -> None:
    planted = planted_fault(subject, kind)
    before = measure(subject, layer_plans(subject, planted.layers)).noise
    after = measure(planted.subject, layer_plans(planted.subject, planted.layers)).noise
    least = 2.0 if kind == "double_rounding" else 10.0
    assert max(after[name] / before[name] for name in planted.layers) > least


def test_rounding_to_one_side_leaves_a_shift(subject) -> None:
    planted = plant(subject, Fault("one_sided_rounding", "depthwise", (1,), 1.0))
    before, after = (weight_alone(s, "depthwise") for s in (subject, planted.subject))
    assert after.shift_share > before.shift_share
    assert np.square(after.shift).sum() > 10.0 * np.square(before.shift).sum()


def weight_alone(subject: Subject, name: str) -> Local:
    plan = Plan.of({Site(name, "weight"): subject.full[Site(name, "weight")]})
    return look(ExactEngine(compile_network(subject.network), Calibration()), [(subject.images,)], {name: plan})[name]


def test_planting_is_a_function_of_its_arguments(subject) -> None:
    before = subject.network.fingerprint
    for kind in KINDS:
        first, second = planted_fault(subject, kind), planted_fault(subject, kind)
        assert first.fault == second.fault
        assert first.subject.network.fingerprint == second.subject.network.fingerprint
        assert torch.equal(first.subject.calibration, second.subject.calibration)
    assert subject.network.fingerprint == before


def test_a_bias_overflows_its_integer_by_the_strength(subject) -> None:
    planted = plant(subject, Fault("bias_overflow", "stem", (2,), strength=8.0))
    network, layer = planted.subject.network, planted.subject.network.layer("stem")
    spec = planted.subject.full[Site("stem", "weight")]
    step = fit(spec, network.tensors[layer.weight], axis=0).scale[2] * float(subject.seen["x"].high.max()) / 255
    assert float(network.tensors[layer.bias][2] / step) == pytest.approx(-8.0 * INT32, rel=1e-3)


def test_the_noisiest_site_comes_first_in_the_truth(subject) -> None:
    # One weight of a linear map grows: the weight's grid suffers. A range grows: only the output's.
    assert truth(plant(subject, Fault("wide_range", "left", (), 50.0))).layers == ("left",)
    planted = plant(subject, Fault("activation_outlier", "depthwise", (0,), 30.0))
    found = truth(planted)
    noise = {site: found.noise[f"{site.layer} {site.role}"] for site in planted.sites}
    noisiest = max(noise, key=lambda site: noise[site])
    assert found.layers[0] == noisiest.layer
    assert found.causes[0] == planted.sites[noisiest]
    assert set(found.causes) <= {"channel_imbalance", "activation_outlier"}


def test_the_search_finds_a_strength_that_costs_what_was_aimed_at(subject) -> None:
    sound = measure(subject, {})
    found = search(subject, sound, Fault("narrow_range", "project"), target=20.0)
    assert not isinstance(found, str)
    assert 10.0 <= found.lost.value <= 40.0
    assert found.float_change == 0.0


def test_a_faulty_network_captures_again_to_the_same_layers(subject) -> None:
    network = planted_fault(subject, "branch_imbalance").subject.network
    again = capture(network.module(), (subject.images[:2],))
    assert again.names == network.names
    assert torch.equal(outputs(again, subject.images), outputs(network, subject.images))
