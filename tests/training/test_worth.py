"""Gates start at what closing them costs, so that the price of memory closes the cheapest first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import started, training

from quantopsy.core import Plan
from quantopsy.data import open_data
from quantopsy.engine.exact import ExactEngine
from quantopsy.training.footprint import Footprint, Limit, Part
from quantopsy.training.mixing import CLOSED_BY, gate_rate
from quantopsy.training.network import TrainableNetwork
from quantopsy.training.quantizers.gates import START, Gates
from quantopsy.training.settings import TrainingSettings
from quantopsy.training.worth import noises, start_gates

LAYERS = st.lists(st.tuples(st.integers(1, 10**5), st.floats(1e-6, 1e3)), min_size=1, max_size=5)


def of_layers(layers: list[tuple[int, float]], form: str = "bits") -> tuple[Footprint, dict[Gates, dict[int, float]]]:
    """Gates of 6 bits at most, and noises that grow fourfold with every bit less."""
    made = [Gates(6) for _ in layers]
    footprint = Footprint(tuple(Part(n, gates) for (n, _), gates in zip(layers, made, strict=True)), form)
    noise = {gates: {s: scale * 4.0**-s for s in range(2, 7)} for (_, scale), gates in zip(layers, made, strict=True)}
    return footprint, noise


def closed_by_price(limit: Limit, rate: float, most: int) -> int:
    """Steps until the limit is met by gates that hear of nothing but the price."""
    gates = [part.width for part in limit.footprint.parts]
    optimizer = torch.optim.SGD([g.logits for g in gates], lr=rate)
    for step in range(most):
        if limit.met:
            return step
        optimizer.zero_grad()
        limit.price().backward()
        optimizer.step()
    return most


def greedy(layers: list[tuple[int, float]], target: float) -> list[int]:
    """Bits behind closing one gate after the other, the least noise for a bit of memory first."""
    bits = [6] * len(layers)
    while sum(n * b for (n, _), b in zip(layers, bits, strict=True)) > target:
        costs = [
            scale * (4.0 ** (1 - b) - 4.0**-b) / n if b > 2 else np.inf
            for (n, scale), b in zip(layers, bits, strict=True)
        ]
        bits[int(np.argmin(costs))] -= 1
    return bits


@settings(deadline=None, max_examples=30)
@given(LAYERS, st.sampled_from([3.0, 4.0, 5.5]))
def test_price_alone_closes_gates_as_a_greedy_allocation_would(layers: list[tuple[int, float]], average: float) -> None:
    footprint, noise = of_layers(layers)
    limit = Limit(footprint, average)
    start_gates(limit, noise)
    steps = 600
    taken = closed_by_price(limit, gate_rate(limit, steps), steps)
    assert limit.met
    assert taken <= CLOSED_BY * steps + 2
    found = sum(noise[part.width][part.width.bits] for part in footprint.parts)
    # The same memory: gates that are worth nearly the same may close in one step.
    best = greedy(layers, footprint.total)
    assert found <= 1.2 * sum(scale * 4.0**-b for (_, scale), b in zip(layers, best, strict=True))


@pytest.mark.parametrize("form", ["bits", "levels"])
def test_a_layer_whose_noise_is_larger_keeps_more_bits(form: str) -> None:
    footprint, noise = of_layers([(1000, 1.0), (1000, 100.0), (10, 1.0)], form)
    limit = Limit(footprint, 4.0)
    start_gates(limit, noise)
    closed_by_price(limit, gate_rate(limit, 200), 200)
    quiet, loud, small = (part.width.bits for part in footprint.parts)
    assert quiet < loud
    assert quiet < small


def test_starts_are_of_the_usual_size_and_unknown_noise_is_taken_as_usual() -> None:
    footprint, noise = of_layers([(100, 1.0), (300, 1.0)])
    hidden, known = noise
    start_gates(Limit(footprint, 4.0), {hidden: dict.fromkeys(range(2, 7), float("nan")), known: noise[known]})
    starts = torch.cat([gates.logits[2:] for gates in noise]).detach()
    assert starts.mean().item() == pytest.approx(START, rel=1e-5)
    assert bool((starts > 0).all())
    assert hidden.bits == known.bits == 6


@pytest.mark.parametrize("edges", ["all", "inputs"])
def test_noise_is_that_of_what_is_behind_the_gates_at_so_many_bits(edges: str) -> None:
    chosen = {"bits": 5, "activation_bits": 6, "bitops": "4bits", "edges": edges}
    start, program = started(**chosen, calibration_samples=64)
    network = TrainableNetwork(program, start.plan, start.calibration, TrainingSettings(**chosen).learning)
    images = open_data(training())
    batches = [images.batch(range(first, first + 60)) for first in range(0, 240, 60)]
    found = noises(network, start.calibration, batches)
    engine = ExactEngine(program, start.calibration)
    ratios: dict[str, list[float]] = {"weight": [], "input": []}
    for gates, at in found.items():
        sites = [site for site, quantizers in network.sites.items() if any(q.gates is gates for q in quantizers)]
        assert list(at) == list(range(2, len(gates.logits) + 1))
        for bits in [bits for bits in at if bits >= 4]:  # below, the screen's straight line is too far from the curve
            plan = {site: replace(network.plan[site], kind="uniform", bits=bits) for site in sites}
            prepared = engine.prepare(Plan.of(plan))
            apart = []
            for batch in batches:
                (exact, _), (quantized,) = engine.float_pass(batch.inputs), engine.whole_pass(batch.inputs, prepared)
                apart.append(float((quantized - exact[0]).square().sum(1).mean()))
            kind = "weight" if sites[0].role == "weight" else "input"
            ratios[kind].append(at[bits] / np.mean(apart))
    for of_kind in ratios.values():
        assert len(of_kind) >= 8
        assert np.median(of_kind) == pytest.approx(1, abs=0.25)
        assert max(of_kind) < 2
        assert min(of_kind) > 0.5
