"""Cross-layer equalization: the same function, ranges alike, the same network from JSON."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_net import pictures, random_net
from torch import Tensor, nn

from quantopsy.analysis.schemes import full_plan, grids, single_layer
from quantopsy.analysis.screening import Scores
from quantopsy.core import QuantopsyError
from quantopsy.data import Batch
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.layer_noise import look
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.graph.outputs import squared_norms
from quantopsy.transforms.equalization import Equalization, find_equalization
from quantopsy.transforms.registry import from_json
from quantopsy.transforms.scale_classes import scale_classes
from quantopsy.transforms.transform import apply_checked, check_function


class Motley(nn.Module):
    """Everything that scales pass, and some of what they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2, padding=1)
        self.prelu = nn.PReLU(12)
        self.norm = nn.BatchNorm2d(12)
        self.back = nn.Conv2d(12, 8, 1, bias=False)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2)
        self.shared = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 3 * 3, 10)
        self.last = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = x + self.project(F.relu6(self.depthwise(x)))
        y = self.prelu(self.grouped(F.pad(x, (0, 1, 0, 1))))
        y = F.leaky_relu(self.norm(F.max_pool2d(y, 2)))  # the norm has two readers before it: not folded
        z = torch.cat([self.back(y), F.avg_pool2d(x, 2)], 1)
        z = F.hardtanh(self.up(z), -1.0, 2.0)
        z = F.relu(self.shared(F.relu(self.shared(z)))) * 0.5
        return self.last(F.relu(self.head(F.adaptive_avg_pool2d(z, 3).flatten(1))))


@pytest.fixture
def motley() -> Network:
    """The network with every second channel of every layer small."""
    torch.manual_seed(3)
    module = Motley().eval()
    with torch.no_grad():
        module.norm.weight.uniform_(0.1, 3)
        module.norm.running_var.uniform_(0.1, 3)
        for part in (module.stem, module.depthwise, module.grouped, module.head):
            part.weight[::2] *= 0.2
            part.bias[::2] *= 0.2
    return capture(module, (pictures(2, 12),))


IMAGES = (pictures(6, 12),)


def output(network: Network, images: Tensor = IMAGES[0]) -> Tensor:
    """The network's output."""
    program = compile_network(network)
    with torch.no_grad():
        return program.forward(program.place((images,)))[0]


def chain(*layers: nn.Module, size: int = 8) -> Network:
    """A captured sequence of layers."""
    return capture(nn.Sequential(*layers).eval(), (pictures(2, size),))


@pytest.mark.parametrize("normalised", [True, False])
def test_the_function_stays_through_everything_that_scales_pass(motley, normalised) -> None:
    before = motley.fingerprint
    found = find_equalization(motley, normalised=normalised)
    after, moved = apply_checked(found, motley, [IMAGES])
    assert moved < 1e-5
    torch.testing.assert_close(output(after), output(motley), rtol=1e-4, atol=1e-5)
    assert motley.fingerprint == before
    # All but the last layer, whose output is the network's.
    assert set(found.scales) == {"stem", "depthwise", "project", "grouped", "norm", "back", "up", "shared",
                                 "shared_1", "head"}  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_function_of_random_networks_stays(seed) -> None:
    images = pictures(4)
    network = capture(random_net(seed), (images[:2],))
    try:
        after, _ = apply_checked(find_equalization(network, sweeps=5), network, [(images,)])
    except QuantopsyError as error:
        pytest.fail(str(error))
    np.testing.assert_allclose(output(after, images), output(network, images), rtol=1e-3, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_scales_that_are_powers_of_two_change_not_a_bit(seed) -> None:
    # Multiplying by a power of two does not round: whatever differs would be the algebra's mistake.
    images = pictures(3)
    network = capture(random_net(seed), (images[:2],))
    classes = scale_classes(network)
    powers = torch.randint(-3, 4, (classes.count,), generator=torch.Generator().manual_seed(seed))
    powers[list(classes.pinned)] = 0
    scales = {w.layer.name: torch.exp2(powers[w.out].float()) for w in classes.weighted}
    assert torch.equal(output(Equalization(scales).apply(network), images), output(network, images))


def test_a_plain_pair_gets_the_closed_form() -> None:
    torch.manual_seed(0)
    network = chain(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    first, second = (network.tensors[str(layer.weight)] for layer in network.layers)
    r1, r2 = first.abs().amax((1, 2, 3)), second.abs().amax((0, 2, 3))
    found = find_equalization(network, sweeps=None, normalised=False, largest=1e6)
    # DFQ, equation (11): s_i = sqrt(r1_i r2_i) / r2_i, after which both ranges are sqrt(r1_i r2_i).
    torch.testing.assert_close(found.scales["0"], (r1 * r2).sqrt() / r2)
    after = found.apply(network)
    first, second = (after.tensors[str(layer.weight)] for layer in after.layers)
    torch.testing.assert_close(first.abs().amax((1, 2, 3)), (r1 * r2).sqrt())
    torch.testing.assert_close(second.abs().amax((0, 2, 3)), (r1 * r2).sqrt())


def test_sweeps_through_a_depthwise_layer_end_where_all_three_ranges_are_equal() -> None:
    torch.manual_seed(0)
    network = chain(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(), nn.Conv2d(6, 2, 1))
    after = find_equalization(network, sweeps=None, normalised=False, largest=1e6).apply(network)
    first, middle, last = (after.tensors[str(layer.weight)].abs() for layer in after.layers)
    torch.testing.assert_close(first.amax((1, 2, 3)), middle.amax((1, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(middle.amax((1, 2, 3)), last.amax((0, 2, 3)), rtol=1e-4, atol=0)
    assert [layer.activation for layer in after.layers] == ["clamp", "clamp", None]


@pytest.mark.parametrize("normalised", [True, False])
def test_converged_scales_are_found_once(motley, normalised) -> None:
    after = find_equalization(motley, sweeps=None, normalised=normalised, largest=1e6).apply(motley)
    again = find_equalization(after, sweeps=None, normalised=normalised, largest=1e6)
    for name, scale in again.scales.items():
        torch.testing.assert_close(scale, torch.ones_like(scale), rtol=1e-4, atol=1e-4, msg=name)


def test_more_sweeps_bring_the_shares_of_a_chain_closer() -> None:
    torch.manual_seed(1)
    network = chain(*(layer for _ in range(5) for layer in (nn.LazyConv2d(6, 1), nn.ReLU())))

    def imbalance(sweeps: int) -> float:
        after = find_equalization(network, sweeps=sweeps, largest=1e6).apply(network)
        weights = [after.tensors[str(layer.weight)].abs() for layer in after.layers]
        return max(
            float((a.amax((1, 2, 3)) / a.max() / (b.amax((0, 2, 3)) / b.max())).log().abs().max())
            for a, b in pairwise(weights)
        )

    found = [imbalance(sweeps) for sweeps in (1, 3, 10, 40)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 1e-3 < found[0]


def test_an_activation_range_counts_with_the_weights_that_make_it() -> None:
    torch.manual_seed(0)
    network = chain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    first, second = (network.tensors[str(layer.weight)] for layer in network.layers)
    value = network.layers[0].output
    high = torch.tensor([1.0, 100.0, 2.0, 3.0])
    found = find_equalization(network, sweeps=1, activation_ranges={value: (torch.zeros(4), high)}, largest=1e6).scales[
        "0"
    ]
    r1, r2 = first.abs().amax((1, 2, 3)), second.abs().amax((0, 2, 3))
    share = (r1 / r1.max() * high / high.max()).sqrt()
    torch.testing.assert_close(found, (share / (r2 / r2.max())).sqrt())
    with pytest.raises(QuantopsyError, match="activation range of value 'nonsense'"):
        find_equalization(network, activation_ranges={"nonsense": (high, high)})


def test_channels_without_weights_stay_and_others_are_bounded() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        first.weight[0] = 0
        second.weight[:, 1] = 0
        first.weight[2] = 1e-30
    network = chain(first, nn.ReLU(), second)
    scale = find_equalization(network, largest=100.0).scales["0"]
    torch.testing.assert_close(scale[:3], torch.tensor([1.0, 1.0, 0.01]))
    assert 0.01 < scale[3] < 100


def test_from_json_comes_the_identical_network(motley) -> None:
    found = find_equalization(motley, sweeps=3)
    read = from_json(json.loads(json.dumps(found.to_json())))
    assert read.apply(motley).fingerprint == found.apply(motley).fingerprint
    by_hand = {"name": "equalization", "scales": {"head": [1.5] * 10}}
    assert torch.equal(from_json(by_hand).apply(motley).tensors["head.bias"], motley.tensors["head.bias"] / 1.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"name": "equalisation", "scales": {}},
            "transform 'equalisation': there is none of that name; nearest are eq",
        ),
        ({"name": "equalization"}, "it has no field 'scales'"),
        ([], "not an object with a 'name'"),
        ({"name": "equalization", "scales": {"head": "?"}}, "vector of 'head': it does not decode"),
    ],
)
def test_json_that_is_no_transform_is_refused(data, message) -> None:
    with pytest.raises(QuantopsyError, match=message):
        from_json(data)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"heat": torch.ones(10)}, "layer 'heat': there is none of that name; nearest are head"),
        ({"head": torch.ones(3)}, "layer 'head': 3 scales for 10 channels"),
        ({"head": -torch.ones(10)}, "layer 'head': a scale is not positive"),
        ({"last": 2 * torch.ones(5)}, "layer 'last': the network's output needs other scales"),
        ({"stem": 2 * torch.ones(8)}, "an operator behind it needs other scales"),  # project is added to it
        ({"max_pool": torch.ones(12)}, "it has no weight to scale"),
    ],
)
def test_scales_of_another_network_are_refused(motley, scales, message) -> None:
    with pytest.raises(QuantopsyError, match=message):
        Equalization(scales).apply(motley)


def test_only_named_layers_are_scaled_and_one_in_front_of_a_silu_is_refused() -> None:
    torch.manual_seed(0)
    network = chain(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert set(find_equalization(network, layers=["2"]).scales) == {"2"}
    assert set(find_equalization(network).scales) == {"2"}
    with pytest.raises(QuantopsyError, match="equalization of layer '0': silu is not scale-equivariant"):
        find_equalization(network, layers=["0"])
    with pytest.raises(QuantopsyError, match="equalization of layer '4': the network's output is not"):
        find_equalization(network, layers=["4"])
    with pytest.raises(QuantopsyError, match="layer 'nine': there is none of that name"):
        find_equalization(network, layers=["nine"])


class Joined(nn.Module):
    """One convolution's result joined by ``join`` with another's."""

    def __init__(self, join) -> None:
        super().__init__()
        self.left, self.right, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.join(self.left(x), self.right(x)))


@pytest.mark.parametrize(
    ("join", "scaled"),
    [
        (lambda a, b: a + b, {"left", "right"}),
        (lambda a, b: a * torch.sigmoid(b), {"left"}),
        (lambda a, b: a * b, set()),
        (lambda a, b: a + torch.ones(4, 1, 1) * 3 + 0 * b, set()),
        (lambda a, b: F.pad(a, (1, 1, 1, 1), value=1.0) + F.pad(b, (1, 1, 1, 1)), set()),
        (lambda a, b: F.pad(a, (1, 1, 1, 1)) - F.pad(b, (1, 1, 1, 1)), {"left", "right"}),
        (lambda a, b: F.softmax(a, 1) + F.relu(b), set()),
        (lambda a, b: torch.where(a > 0, a, b), set()),
        (lambda a, b: torch.where(a > 1, 1.0, 0.0) * b, {"right"}),
        (lambda a, b: a / 3 + F.interpolate(F.avg_pool2d(b, 2), scale_factor=2), {"left", "right"}),
        (lambda a, b: F.layer_norm(a, (8,)) + b, set()),
        (lambda a, b: a.topk(4, dim=1)[0] + a.gather(1, a.topk(4, dim=1)[1]) + b, set()),
    ],
)  # fmt: skip
def test_what_joins_two_values_decides_what_may_be_scaled(join, scaled) -> None:
    torch.manual_seed(0)
    network = capture(Joined(join).eval(), (pictures(2, 8),))
    found = find_equalization(network)
    assert set(found.scales) == scaled
    apply_checked(found, network, [(pictures(3, 8),)])


def test_a_residual_sum_has_one_scale_for_all_that_make_it() -> None:
    torch.manual_seed(0)
    network = capture(Joined(torch.add).eval(), (pictures(2, 8),))
    found = find_equalization(network).scales
    assert torch.equal(found["left"], found["right"])


def test_the_columns_of_a_linear_layer_behind_a_flattening_share_the_scale_of_their_channel() -> None:
    torch.manual_seed(0)
    network = chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    scale = find_equalization(network).scales["0"]
    ratio = find_equalization(network).apply(network).tensors["3.weight"] / network.tensors["3.weight"]
    torch.testing.assert_close(ratio, scale.repeat_interleave(36).expand(5, -1))


def test_a_clamp_that_was_scaled_is_scaled_again(motley) -> None:
    once = find_equalization(motley, sweeps=1).apply(motley)
    twice = find_equalization(once).apply(once)
    assert check_function(motley, twice, [IMAGES]) < 1e-5
    assert twice.layer("stem").activation == "clamp"
    assert twice.layer("stem").parameters == motley.layer("stem").parameters + 16


def test_a_scaled_network_is_measured_as_any_other(motley) -> None:
    network = pickle.loads(pickle.dumps(find_equalization(motley, sweeps=10).apply(motley)))
    images = (pictures(48, 12),)
    program = compile_network(network)
    plan = full_plan(network, grids("per-tensor", 8))
    engine = ExactEngine(program, calibrate(program, [images], wanted_statistics(network, [plan])))
    plans = {layer.name: single_layer(plan, layer) for layer in network.layers}
    runs = list(engine.run_tile(images, [engine.prepare(alone) for alone in plans.values()]))
    reference = next(measured.outputs for measured in runs if measured.run < 0)
    noise = {measured.run: float(squared_norms(measured.outputs, reference).mean()) for measured in runs}
    scores = Scores.of_batches(
        program,
        engine.calibration,
        [Batch(inputs=images, labels=None, indices=np.arange(48))],
        {site: [spec] for site, spec in plan.sites},
        noise_probes=30,
    )
    for run, (name, alone) in enumerate(plans.items()):
        assert scores.predicted(alone)[0] == pytest.approx(noise[run], rel=0.4, abs=0), name
    assert all(np.isfinite(local.noise) for local in look(engine, [images], plans).values())


@pytest.mark.parametrize(
    "name", ["resnet20", "mobilenet_v1_025", "mobilenet_v2_10", "squeezenet1_1", "efficientnet_lite0"]
)
def test_real_networks_keep_their_function(zoo, name) -> None:
    images = zoo.images(name, zoo.NETWORKS[name]["datasets"][0], 2)
    batch = torch.stack([images[i][0] for i in range(2)])
    network = capture(zoo.network(name), (batch,))
    found = find_equalization(network, sweeps=10)
    _, moved = apply_checked(found, network, [(batch,)])
    assert moved < 1e-4
    weighted = [layer for layer in network.layers if layer.weight is not None]
    assert len(found.scales) == len(weighted) - 1  # all but the classifier
