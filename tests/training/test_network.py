"""A trainable network is the engine's quantized network before the first step and behind the last."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learning import pictures, started
from torch import Tensor
from torch.nn import functional as F

from quantopsy.analysis.recipes import Simulated, portable
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.training.network import Learning, TrainableNetwork
from quantopsy.training.norm import measured_moments
from quantopsy.training.quantizers import METHODS
from quantopsy.training.settings import TrainingSettings


def simulated(network, plan, calibration, x: Tensor) -> Tensor:
    return Simulated(network, plan, calibration)(x)


def trained_a_little(network: TrainableNetwork, steps: int = 3) -> None:
    """Any user's loop."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(pictures(step, 8)), torch.arange(8) % 5).backward()
        optimizer.step()
    network.eval()


@pytest.mark.parametrize("scheme", ["per-tensor", "per-channel"])
@pytest.mark.parametrize("norms", ["folded", "kept"])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_simulation_before_and_after(method, norms, scheme) -> None:
    settings = TrainingSettings(method=method)
    start, program = started(method=method, scheme=scheme)
    x = pictures(7, 8)
    moments = measured_moments(program, [(x,)]) if norms == "kept" else None
    network = TrainableNetwork(program, start.plan, start.calibration, settings.learning, moments).eval()
    with torch.no_grad():
        before = network(x)
    exact = simulated(start.network, start.plan, start.calibration, x)
    # DoReFa begins at the inverse of its tanh, equal but for rounding, which may move a value across a border.
    tolerance = 0.05 * float(exact.abs().max()) if method in ("dorefa", "pact") else 0.0
    torch.testing.assert_close(before, exact, rtol=0, atol=tolerance)
    trained_a_little(network)
    with torch.no_grad():
        after = network(x)
    assert not torch.equal(after, before)
    assert torch.equal(simulated(*network.trained(), x), after)


def test_a_network_leaves_the_calibration_that_it_is_given_as_it_was() -> None:
    start, program = started()
    before = dict(start.calibration.encodings)
    TrainableNetwork(program, start.plan, start.calibration)
    assert start.calibration.encodings == before


def test_what_is_read_twice_has_one_quantizer() -> None:
    start, program = started()
    network = TrainableNetwork(program, start.plan, start.calibration)
    # `left` and `right` read what `depthwise` gives.
    (left,), (right,) = network.sites[Site("left", "input")], network.sites[Site("right.0", "input")]
    assert left is right
    assert len(network.quantizers) == len({id(q) for found in network.sites.values() for q in found})


def test_everything_learns_and_nothing_else() -> None:
    start, program = started(method="lsq")
    network = TrainableNetwork(program, start.plan, start.calibration, Learning("lsq", "lsq"))
    F.cross_entropy(network(pictures(0, 8)), torch.arange(8) % 5).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    weights = {name for layer in start.network.layers for name in (layer.weight, layer.bias) if name}
    assert sum(p.numel() for p in network.parameters()) == sum(
        start.network.tensors[name].numel() for name in weights
    ) + len(network.quantizers)


def test_the_gradient_without_grids_is_the_float_network_s() -> None:
    start, program = started()
    network = TrainableNetwork(program, Plan(), Calibration())
    x = pictures(0, 8)
    F.cross_entropy(network(x), torch.arange(8) % 5).backward()
    module = start.network.module()
    tensors = {name: t.clone().requires_grad_() for name, t in start.network.tensors.items() if t.is_floating_point()}
    F.cross_entropy(torch.func.functional_call(_stateful(module, tensors), {}, (x,)), torch.arange(8) % 5).backward()
    for layer in network.quantized_layers:
        if layer.weight is not None:
            wanted = tensors[str(layer.layer.weight)].grad
            assert wanted is not None
            torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-4, atol=1e-5)


def _stateful(module: torch.fx.GraphModule, tensors: dict[str, Tensor]) -> torch.nn.Module:
    """``module`` reading ``tensors``, which carry gradients."""

    class Reading(torch.fx.Interpreter):
        def fetch_attr(self, target: str) -> object:
            return tensors.get(target, super().fetch_attr(target))

    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor) -> object:
            found = Reading(module).run(x)
            return found[0] if isinstance(found, tuple | list) else found

    return Wrapped()


def test_biases_are_on_grids_where_asked_for() -> None:
    start, program = started()
    network = TrainableNetwork(program, start.plan, start.calibration, Learning("lsq", "lsq", bias_bits=4))
    trained_a_little(network)
    float_network, plan, calibration = network.trained()
    for layer in float_network.layers:
        if layer.bias is not None:
            assert len(float_network.tensors[layer.bias].unique()) <= 16
    x = pictures(5, 4)
    with torch.no_grad():
        assert torch.equal(simulated(float_network, plan, calibration, x), network(x))


def test_kinds_that_no_method_trains_pass_gradients_straight_through() -> None:
    start, program = started(plan={"layers": {"left": {"weight": {"kind": "piecewise", "bits": 3}}}})
    network = TrainableNetwork(program, start.plan, start.calibration)
    trained_a_little(network)
    float_network, plan, calibration = network.trained()
    assert plan[Site("left", "weight")].kind == "piecewise"
    x = pictures(5, 4)
    with torch.no_grad():
        assert torch.equal(simulated(float_network, plan, calibration, x), network(x))


@pytest.mark.parametrize("spec", [Spec(bits=4, tensors=2), Spec(bits=4, correction="mean_variance")])
def test_what_is_on_no_grid_of_its_own_is_refused_with_its_layer(spec, small, images) -> None:
    network = capture(small, (images[:2],))
    assert compile_network(network)
    with pytest.raises(QuantopsyError, match="left"):
        Learning().start(Plan.of({Site("left", "weight"): spec}))


@pytest.mark.parametrize("found", [True, False])
def test_what_a_corrected_bias_took_away_stays_where_bits_have_changed(found) -> None:
    start, program = started(method="lsq", edge_bits=0)
    specs = {
        site: replace(spec, correction="bias") if site.role == "weight" else spec for site, spec in start.plan.sites
    }
    x, plan = pictures(5, 16), Plan.of(specs)
    calibration = calibrate(program, [[x]], wanted_statistics(start.network, [start.plan, plan]))
    plan = portable(start.network, plan, calibration) if found else plan
    network = TrainableNetwork(program, plan, calibration, Learning("lsq", "lsq", mixed=True))
    for quantizer in network.quantizers:
        if quantizer.gates is not None:
            quantizer.gates.logits.data[-1] = -1.0
    assert set(network.weight_bits().values()) == {3}
    network.eval()
    with torch.no_grad():
        assert torch.equal(simulated(*network.trained(), x), network(x))


class Two(torch.nn.Module):
    """Two layers that read one value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = (torch.nn.Conv2d(count, 4, 3, padding=1) for count in (3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.left(x) + self.right(x)


def test_two_grids_of_a_value_stay_two_where_they_end_with_as_many_bits() -> None:
    x = pictures(0, 8)
    program = compile_network(capture(Two().eval(), (x[:2],)))
    weight = Spec(bits=8, symmetric=True, signed=True)
    sites = {Site(name, "weight"): weight for name in ("left", "right")}
    sites |= {Site(name, "input"): Spec(bits=bits) for name, bits in (("left", 8), ("right", 4), ("add", 8))}
    sites |= {Site("stem", "output"): Spec(bits=8)}
    plan = Plan.of(sites)
    calibration = calibrate(program, [[x]], wanted_statistics(program.network, [plan]))
    network = TrainableNetwork(program, plan, calibration, Learning("lsq", "lsq", mixed=True, mixed_inputs=True)).eval()
    for name in ("left", "right"):
        (quantizer,) = network.sites[Site(name, "input")]
        assert quantizer.gates is not None
        quantizer.gates.logits.data[3:] = -1.0
    float_network, plan, calibration = network.trained()
    specs = dict(plan.sites)
    left, right = specs[Site("left", "input")], specs[Site("right", "input")]
    assert left.bits == right.bits == 3
    assert left != right
    assert specs[Site("stem", "output")] == left  # the value leaves on this very grid
    with torch.no_grad():
        assert torch.equal(simulated(float_network, plan, calibration, x), network(x))
