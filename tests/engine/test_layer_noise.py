"""What quantizing a layer does right there, against the definition written down with hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantopsy.analysis.schemes import at_bits, full_plan, grids, single_layer
from quantopsy.calibrate import fixed, quantized_weight
from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.layer_noise import TAIL, Local, look
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.quant import fake_quantize


class Net(nn.Module):
    """A convolution with its activation, a pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def looked_at(module: nn.Module, images: Tensor, bits: int = 4, **sites: Spec) -> tuple[dict[str, Local], ExactEngine]:
    """Every layer of ``module`` at ``bits``, in two tiles."""
    program = compile_network(capture(module.eval(), (images[:2],)))
    full = at_bits(full_plan(program.network, grids("per-tensor", 8)), bits)
    plans = {layer.name: single_layer(full, layer) for layer in program.network.layers}
    for name, spec in sites.items():
        layer, _, role = name.partition("__")
        plans[layer] = plans[layer] | {Site(layer, role): spec}
    wanted = wanted_statistics(program.network, plans.values())
    engine = ExactEngine(program, calibrate(program, [(images,)], wanted))
    return look(engine, [(images[:5],), (images[5:],)], plans), engine


def test_noise_signal_and_shift_are_of_the_definition(images) -> None:
    torch.manual_seed(0)
    module = Net()
    found, engine = looked_at(module, images)
    conv = engine.program.network.layer("conv")
    qx, qy = (engine.calibration.qparams(value, Spec()) for value in (conv.inputs[0], conv.output))
    weight = quantized_weight(Spec(bits=4), module.conv.weight.detach())

    def layer(x: Tensor, w: Tensor) -> Tensor:
        return nn.functional.conv2d(x, w, module.conv.bias, padding=1).relu().detach()

    x, w = images, module.conv.weight.detach()
    y = layer(x, w)
    d = fake_quantize(layer(fake_quantize(x, qx), weight), qy) - y
    expected = {
        "input": layer(fake_quantize(x, qx), w) - y,
        "weight": layer(x, weight) - y,
        "output": fake_quantize(y, qy) - y,
    }
    local = found["conv"]
    assert local.images == len(images)
    assert local.signal == pytest.approx(float(y.flatten(1).square().sum(1).mean()), rel=1e-5)
    assert local.noise == pytest.approx(float(d.flatten(1).square().sum(1).mean()), rel=1e-3)
    for role, change in expected.items():
        assert local.by_role[role] == pytest.approx(float(change.flatten(1).square().sum(1).mean()), rel=1e-3), role
    np.testing.assert_allclose(local.shift, d.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(local.variance, y.var((0, 2, 3), correction=0), rtol=1e-4)
    np.testing.assert_allclose(local.high, y.amax((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(local.heard, x.square().mean((0, 2, 3)), rtol=1e-5)
    assert local.output.typical == pytest.approx(float(y.amax((0, 2, 3)).median()))
    assert local.inputs[0].typical == pytest.approx(float(x.abs().amax((0, 2, 3)).median()))
    share = float(d.mean((0, 2, 3), keepdim=True).expand_as(d).square().sum() / d.square().sum())
    assert local.shift_share == pytest.approx(share, rel=1e-3)
    assert local.sqnr_db == pytest.approx(10 * np.log10(local.signal / local.noise))


def test_values_beyond_a_range_are_counted(images) -> None:
    x = images.clamp(-2, 2)
    found, _ = looked_at(Net(), x, conv__input=Spec(range_estimator=fixed(-1.0, 1.0)))
    (edge,) = found["conv"].inputs
    step = 2.0 / 255
    assert edge.step == pytest.approx(step)
    assert edge.grid_low == pytest.approx(-1.0, abs=step)
    assert edge.grid_high == pytest.approx(1.0, abs=step)
    half = step / 2
    beyond = ((x < edge.grid_low - half) | (x > edge.grid_high + half)).double().mean()
    assert edge.beyond == pytest.approx(float(beyond), abs=1e-3)
    assert (edge.low, edge.high) == (-2.0, 2.0)
    assert edge.negative == pytest.approx(float((x < 0).double().mean()))
    assert edge.body == pytest.approx(float(x.abs().flatten().quantile(TAIL)), rel=0.02)
    assert found["head"].output.beyond == 0.0


def test_a_constant_error_is_all_shift(images) -> None:
    class Constant(nn.Module):
        """Its weight's error meets the same input everywhere."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1, bias=False)
            self.conv.weight.data = torch.tensor([1.0, 0.37]).reshape(2, 1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    x = torch.ones(12, 1, 6, 6)
    program = compile_network(capture(Constant().eval(), (x[:2],)))
    plan = Plan.of({Site("conv", "weight"): Spec(bits=2)})
    found = look(
        ExactEngine(program, calibrate(program, [(x,)], wanted_statistics(program.network, [plan]))),
        [(x,)],
        {"conv": plan},
    )
    assert found["conv"].shift_share == pytest.approx(1.0)
    assert set(found["conv"].by_role) == {"weight"}
    assert found["conv"].inputs == ()
    assert found["conv"].output is None


def test_a_number_for_each_image_is_one_channel(images) -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((1, 2, 3)) + 3.0

    torch.manual_seed(0)
    module = Regression()
    found, _ = looked_at(module, images)
    with torch.no_grad():
        y = module(images)
    local = found["add"]
    assert local.shift.shape == local.heard.shape == (1,)
    np.testing.assert_allclose(local.variance, y.var(correction=0)[None], rtol=1e-3)
    np.testing.assert_allclose([local.low, local.high], [y.min()[None], y.max()[None]], rtol=1e-5)
    assert local.output.typical == pytest.approx(float(y.abs().max()))
