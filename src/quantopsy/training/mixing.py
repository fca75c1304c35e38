"""What moves gates: the price of memory, and the loss where it is certain (DDQ section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from quantopsy.training.footprint import Limit
from quantopsy.training.quantizers.gates import START, Gates

CLOSED_BY = 0.3
"""Share of the training in which bits are to reach their limit, at the rate of :func:`gate_rate`; the rest is for the
levels that remain."""

HASTE = 1.05
"""Factor of that rate at every step beyond, until the limit is met."""

EVIDENCE = 4.0
"""Standard errors from zero beyond which the mean of the loss's gradient on a gate is heard."""

LEAST_STEPS = 16
"""Steps from which a standard error is believed."""

SMALLEST_LOSS = 1e-12
"""Magnitude that a loss is taken to have at least."""


class GateGradients:
    """Gives every gate the gradient that its optimizer is to take.

    Of equation (7), L (target / F)^alpha, the price's part is taken as it is. Of the loss's part what counts is the
    mean over all steps since the layer's bit-width last changed, and only where it is more than :data:`EVIDENCE`
    standard errors from zero. In one step it is nearly all chance, and far larger than the price, so that a training
    that is not as long as DDQ's on ImageNet would close gates at random.

    Both are in units of the loss's mean magnitude so far: a rate (:func:`gate_rate`) then takes as many steps whatever
    is minimised, and a loss that is negative does not turn the price around.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._all = limit.footprint.gates
        self._seen: dict[int, dict[str, Any]] = {}
        self._steps, self._losses = 0, 0.0

    @property
    def done(self) -> bool:
        """Whether the limit is met: gates stay then (:func:`set_gate_rate`)."""
        return self._limit.met

    @torch.no_grad()
    def apply(self, loss: float) -> None:
        """Replace the gradients of the ``loss`` by those to be taken."""
        self._steps, self._losses = self._steps + 1, self._losses + abs(loss)
        unit = max(self._losses / self._steps, SMALLEST_LOSS)
        with torch.enable_grad():
            price = self._limit.price()
            logits = [gates.logits for gates in self._all]
            pulls = torch.autograd.grad(price, logits) if price.requires_grad else [torch.zeros_like(x) for x in logits]
        for number, (gates, pull) in enumerate(zip(self._all, pulls, strict=True)):
            own = gates.logits.grad
            heard = 0.0 if own is None else self._heard(number, gates, own)
            gates.logits.grad = heard / unit + pull.to(gates.logits)

    def _heard(self, number: int, gates: Gates, gradient: torch.Tensor) -> torch.Tensor:
        seen = self._seen.get(number)
        if seen is None or seen["bits"] != gates.bits:
            none = torch.zeros_like(gradient, dtype=torch.float64)
            seen = self._seen[number] = {"bits": gates.bits, "steps": 0, "mean": none, "squares": none.clone()}
        seen["steps"] += 1
        steps, apart = seen["steps"], gradient.double() - seen["mean"]
        seen["mean"] += apart / steps
        seen["squares"] += apart * (gradient.double() - seen["mean"])
        if steps < LEAST_STEPS:
            return torch.zeros_like(gradient)
        error = (seen["squares"] / ((steps - 1) * steps)).sqrt()
        return torch.where(seen["mean"].abs() > EVIDENCE * error, seen["mean"], 0.0).to(gradient)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"seen": self._seen, "steps": self._steps, "losses": self._losses}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self._seen, self._steps, self._losses = dict(state["seen"]), state["steps"], state["losses"]


def gate_rate(limit: Limit, steps: int) -> float:
    """The rate of gates at which the price of equation (7) alone meets the limit in :data:`CLOSED_BY` of the ``steps``.

    A gate closes below 0. What closing it frees being f of a footprint F, the price's gradient on it is |alpha| f / F
    in units of the loss, so that one that starts at g takes g F / (|alpha| f rate) steps; gates of a layer close one
    after the other, and those that start at 0 at any rate but 0. DDQ's own rate, 1e-8 (section 4), is for ImageNet's
    hundreds of thousands of steps.
    """
    now = float(limit.footprint().detach())
    left, reached = now - limit.target, 0.0
    for time, freed in sorted(_closing(limit)):
        if left <= 0:
            break
        left, reached = left - freed, time
    return max(reached * now, START) / (abs(limit.alpha) * CLOSED_BY * steps)


def set_gate_rate(optimizer: torch.optim.Optimizer, limit: Limit, share: float) -> None:
    """0 from when the limit is met, faster where it is still exceeded after :data:`CLOSED_BY`."""
    for group in optimizer.param_groups:
        if limit.met:
            group["lr"] = 0.0
        elif share >= CLOSED_BY:
            group["lr"] *= HASTE


def _closing(limit: Limit) -> Iterator[tuple[float, float]]:
    """When each gate closes under a pull that is what it frees, and what that is."""
    for gates in limit.footprint.gates:
        freed, time = limit.footprint.freed(gates), 0.0
        for bits in gates.closable:
            time += float(gates.logits[bits - 1].detach()) / freed[bits]
            yield time, freed[bits]
