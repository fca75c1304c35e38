"""What a pass over images tells of activations: the right channels' grids and means, whoever reads a value."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.probes import random_signs
from quantopsy.engine.screen import ScreenEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network

PER_CHANNEL = Spec(bits=8, granularity="per_channel", range_estimator="min_max")
LOUD = torch.tensor([1.0, 30.0, 0.1])


class Moved(nn.Module):
    """A convolution's result, re-arranged, read by another layer."""

    def __init__(self, move: Callable[[Tensor], Tensor], reader: nn.Module) -> None:
        super().__init__()
        self.first, self.reader, self.move = nn.Conv2d(3, 8, 1), reader, move

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.move(self.first(x))).flatten(1)


CASES = {
    "channels last": (lambda y: y.permute(0, 2, 3, 1), lambda: nn.Linear(8, 4), -1, 8),
    "flattened": (lambda y: y.flatten(1), lambda: nn.Linear(8 * 64, 4), -1, 512),
    "a part of them": (lambda y: y[:, 2:6], lambda: nn.Conv2d(4, 4, 3), 1, 4),
    "split": (lambda y: y.chunk(2, 1)[1], lambda: nn.Conv2d(4, 4, 3), 1, 4),
    "padded": (lambda y: F.pad(y, (1, 1, 1, 1)), lambda: nn.Conv2d(8, 4, 3), 1, 8),
    "cropped": (lambda y: y[:, :, 1:-1], lambda: nn.Conv2d(8, 4, 3), 1, 8),
}


KEPT = ("padded", "cropped")


def seen(network: Network, plan: Plan, x: Tensor) -> tuple[ExactEngine, Calibration]:
    program = compile_network(network)
    calibration = calibrate(program, [(x,)], wanted_statistics(network, [plan]))
    return ExactEngine(program, calibration), calibration


def pictures() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * LOUD[:, None, None]


@pytest.mark.parametrize("name", CASES)
def test_grids_by_channel_are_of_the_channels_that_the_reader_sees(name: str) -> None:
    move, reader, axis, channels = CASES[name]
    torch.manual_seed(0)
    module = Moved(move, reader()).eval()
    with torch.no_grad():
        module.first.weight *= LOUD.repeat(3)[:8, None, None, None]
    x = pictures()
    network = capture(module, (x[:2],))
    plan = Plan.of({Site("reader", "input"): PER_CHANNEL})
    engine, calibration = seen(network, plan, x)
    (value,) = network.layer("reader").inputs
    grid = calibration.qparams(value, PER_CHANNEL)
    assert grid.axis == axis
    assert grid.scale.shape == (channels,)
    moved = move(module.first(x)).detach()
    source = module.first(x).detach() if name in KEPT else moved  # a part of it, on the grid of the whole
    by_channel = source.movedim(axis, 0).flatten(1)
    step = (by_channel.amax(1).clamp(min=0) - by_channel.amin(1).clamp(max=0)) / 255
    torch.testing.assert_close(grid.scale, step, rtol=1e-3, atol=1e-9)
    found = engine.whole_pass((x,), engine.prepare(plan))[0]
    torch.testing.assert_close(found, module.reader(grid.snap(moved)).flatten(1), rtol=1e-3, atol=1e-4)
    low, high = calibration.range(value)
    assert (low, high) == pytest.approx((source.min().item(), source.max().item()), rel=1e-5)


def test_what_keeps_channels_keeps_the_very_grid() -> None:
    for name, (move, reader, _, _) in CASES.items():
        network = capture(Moved(move, reader()).eval(), (pictures()[:2],))
        plan = Plan.of({Site("first", "output"): PER_CHANNEL, Site("reader", "input"): PER_CHANNEL})
        _, calibration = seen(network, plan, pictures())
        ends = network.layer("first").output, network.layer("reader").inputs[0]
        left, read = (calibration.qparams(value, PER_CHANNEL) for value in ends)
        assert (left is read) == (name in KEPT)
        whole = Spec(bits=8)
        assert network.grid_sources.of(ends[1], whole) == network.grid_sources.of(ends[0], whole)
        assert pickle.loads(pickle.dumps(network)).grid_sources == network.grid_sources


@pytest.mark.parametrize("name", CASES)
def test_the_screen_scores_a_moved_value_on_its_own_grid(name: str) -> None:
    move, reader, _, _ = CASES[name]
    torch.manual_seed(0)
    x = pictures()
    network = capture(Moved(move, reader()).eval(), (x[:2],))
    sites = Site("first", "output"), Site("reader", "input")
    plans = [Plan.of({site: PER_CHANNEL}) for site in sites]
    engine, calibration = seen(network, Plan.of(dict.fromkeys(sites, PER_CHANNEL)), x)
    screen = ScreenEngine(engine.program, calibration, decision=False)
    found = screen.run_tile((x,), np.arange(5), {site: [PER_CHANNEL] for site in sites})
    exact = engine.float_pass((x,))[0][0]
    probe = random_signs(exact, np.arange(5), 0)
    for plan in plans:
        change = engine.whole_pass((x,), engine.prepare(plan))[0] - exact  # linear: the Jacobian is the network
        (row,) = [row for row, column in enumerate(found.columns) if column.site == plan.sites[0][0]]
        e, expected = torch.from_numpy(found.e[row, :, 0]), (change * probe).sum(1)
        torch.testing.assert_close(e, expected, rtol=1e-2, atol=1e-4 * change.abs().max().item())


class TwoReaders(nn.Module):
    """One value, read with its channels along two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.across, self.along = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 5, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.across(x).mean(2) + self.along(x).mean(1)


def test_a_corrected_bias_keeps_every_channels_mean_whichever_axis_it_is_along() -> None:
    torch.manual_seed(0)
    module = TwoReaders().eval()
    x = torch.randn(6, 3, 8)
    network = capture(module, (x[:2],))
    spec = Spec(bits=3, symmetric=True, signed=True, correction="bias")
    plan = Plan.of({Site(name, "weight"): spec for name in ("across", "along")})
    engine, _ = seen(network, plan, x)
    assert network.layer("across").inputs == network.layer("along").inputs
    for site, _ in plan.sites:
        change = engine.whole_pass((x,), engine.prepare(Plan.of({site: spec})))[0] - module(x)
        assert change.abs().max() > 1e-3
        torch.testing.assert_close(change.mean(0), torch.zeros(5), rtol=0, atol=1e-5)


def test_grids_by_channel_where_images_lie_are_refused() -> None:
    class PositionsFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).permute(2, 0, 1)
            return (x + x.relu()).mean(0)

    x = pictures()
    network = capture(PositionsFirst(), (x[:2],))
    plan = Plan.of({Site("add", "output"): PER_CHANNEL})
    program, wanted = compile_network(network), wanted_statistics(network, [plan])
    with pytest.raises(QuantopsyError, match=r"grids by channel of 'add.*has its images where.*per tensor"):
        calibrate(program, [(x[:3],), (x[3:],)], wanted)
