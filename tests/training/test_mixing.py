"""What moves gates: the price of memory, and of the loss what is certain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from quantopsy.training.footprint import Footprint, Limit, Part
from quantopsy.training.mixing import CLOSED_BY, EVIDENCE, GateGradients, gate_rate, set_gate_rate
from quantopsy.training.quantizers.gates import Gates


def limited(alpha: float = -0.02) -> tuple[Gates, Gates, Limit]:
    first, second = Gates(5), Gates(5)
    return first, second, Limit(Footprint((Part(100, first), Part(300, second))), 4.0, alpha)


def price_alone(limit: Limit, gates: Gates) -> torch.Tensor:
    (pull,) = torch.autograd.grad(limit.price(), [gates.logits])
    return pull


def test_chance_is_not_heard_and_what_is_certain_is() -> None:
    first, second, limit = limited()
    gradients = GateGradients(limit)
    draws = np.random.default_rng(0).normal(size=(100, 2))
    draws[:, 1] += 1.0  # certain: ten standard errors behind a hundred steps
    for step, (chance, certain) in enumerate(draws, 1):
        first.logits.grad = torch.tensor([0, 0, 0, 0, float(chance)])
        second.logits.grad = torch.tensor([0, 0, 0, 0, float(certain)])
        gradients.apply(2.0)
        torch.testing.assert_close(first.logits.grad, price_alone(limit, first).float())
        heard = 2 * (second.logits.grad - price_alone(limit, second))[-1].item()
        mean, error = draws[:step, 1].mean(), stats.sem(draws[:step, 1]) if step > 1 else np.inf
        assert heard == pytest.approx(mean if step >= 16 and mean > EVIDENCE * error else 0.0, abs=1e-5)
    assert heard > 0.5


def test_what_was_heard_is_of_the_bits_as_they_are() -> None:
    first, second, limit = limited()
    gradients = GateGradients(limit)
    for step in range(40):
        if step == 20:
            with torch.no_grad():
                first.logits[-1] = -1.0
        for gates in (first, second):
            gates.logits.grad = torch.tensor([0, 0, 0, 0, 1.0]) + 0.01 * torch.randn(5)
        gradients.apply(1.0)
        (of_first,) = (first.logits.grad - price_alone(limit, first))[-1:].tolist()
        assert (abs(of_first) > 0.5) == (15 <= step < 20 or step >= 35)


def test_a_checkpoint_goes_on_where_it_was() -> None:
    first, second, limit = limited()
    whole, before = GateGradients(limit), GateGradients(limit)
    for step in range(30):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(step)) + 1
        if step == 17:
            again = GateGradients(limit)
            again.restore(before.state())
            before = again
        found = []
        for gradients in (whole, before):
            first.logits.grad, second.logits.grad = gradient.clone(), gradient.clone()
            gradients.apply(1.0)
            found.append(first.logits.grad)
        assert torch.equal(*found)


@pytest.mark.parametrize("loss", [lambda step: 1.0, lambda step: 0.01 / step, lambda step: -3.0])
def test_the_price_meets_the_limit_in_a_third_of_the_steps_whatever_the_loss(loss) -> None:
    first, second, limit = limited()
    steps, taken = 300, 0
    optimizer = torch.optim.SGD([first.logits, second.logits], lr=gate_rate(limit, steps))
    gradients = GateGradients(limit)
    while not limit.met and taken < steps:
        set_gate_rate(optimizer, limit, taken / steps)
        optimizer.zero_grad()
        gradients.apply(loss(taken + 1))
        optimizer.step()
        taken += 1
    assert 0.7 * CLOSED_BY * steps <= taken <= CLOSED_BY * steps + 2  # the pull grows as the footprint shrinks


def test_gates_that_cost_nothing_close_too() -> None:
    first, second, limit = limited()
    with torch.no_grad():
        second.logits[-1] = 0.0
    limit = Limit(limit.footprint, 4.5)
    optimizer = torch.optim.SGD([first.logits, second.logits], lr=gate_rate(limit, 100))
    set_gate_rate(optimizer, limit, 0.0)
    GateGradients(limit).apply(1.0)
    optimizer.step()
    assert limit.met
    assert (first.bits, second.bits) == (5, 4)


def test_a_limit_that_is_met_leaves_gates_alone() -> None:
    first, _, limit = limited()
    with torch.no_grad():
        first.logits[2:] = -1.0
    assert not limit.met
    optimizer = torch.optim.SGD([first.logits], lr=gate_rate(limit, 100))
    set_gate_rate(optimizer, limit, 0.0)
    rate = optimizer.param_groups[0]["lr"]
    assert rate > 0
    set_gate_rate(optimizer, limit, 0.9)
    assert optimizer.param_groups[0]["lr"] > rate
    met = Limit(limit.footprint, 5.0)
    set_gate_rate(optimizer, met, 0.0)
    assert optimizer.param_groups[0]["lr"] == 0.0
    GateGradients(met).apply(1.0)
    assert first.logits.grad is None or not first.logits.grad.any()
