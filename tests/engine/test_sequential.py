"""Biases corrected layer by layer: means come back, and what was found travels with the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quantopsy.analysis.schemes import at_bits, full_plan, grids
from quantopsy.core import Plan, QuantopsyError, Site
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.sequential import bias_can_move, correct_biases
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.outputs import squared_norms


def engine_of(module, images: Tensor, bits: int = 4) -> tuple[ExactEngine, Plan]:
    program = compile_network(capture(module, (images[:2],)))
    plan = at_bits(full_plan(program.network, grids("per-tensor", 8)), bits)
    return ExactEngine(program, calibrate(program, [(images,)], wanted_statistics(program.network, [plan]))), plan


def layers_of(engine: ExactEngine) -> set[str]:
    return {layer.name for layer in engine.program.network.layers if bias_can_move(layer)}


def noise(engine: ExactEngine, plan: Plan, images: Tensor) -> float:
    reference, _ = engine.float_pass((images,))
    return float(squared_norms(engine.whole_pass((images,), engine.prepare(plan)), reference).mean())


def test_a_whole_pass_is_what_a_tile_gives(small, images) -> None:
    engine, plan = engine_of(small, images)
    *_, last = engine.run_tile((images,), [engine.prepare(plan)])
    assert torch.equal(engine.whole_pass((images,), engine.prepare(plan))[0], last.outputs[0])


def test_the_mean_of_every_channel_of_the_last_layer_comes_back(small, images) -> None:
    engine, plan = engine_of(small, images)
    # The last layer's own output grid would round the mean again.
    plan = Plan.of({site: spec for site, spec in plan.sites if site != Site("head", "output")})
    corrected = correct_biases(engine, plan, [(images[:5],), (images[5:],)], layers_of(engine))
    reference, _ = engine.float_pass((images,))
    before, after = (
        (engine.whole_pass((images,), engine.prepare(p))[0] - reference[0]).mean(0).abs() for p in (plan, corrected)
    )
    assert before.max() > 1e-3
    torch.testing.assert_close(after, torch.zeros_like(after), atol=1e-5, rtol=0)
    assert noise(engine, corrected, images) < noise(engine, plan, images)


def test_one_layer_is_corrected_by_its_mean_difference(small, images) -> None:
    engine, plan = engine_of(small, images, bits=3)
    corrected = correct_biases(engine, plan, [(images,)], {"left"})
    assert {site for site in plan if plan[site] != corrected[site]} == {Site("left", "weight")}
    layer = engine.program.network.layer("left")
    shift = engine.calibration.given[corrected[Site("left", "weight")].correction]
    # By hand: the layer in both networks, everything in front of it quantized.
    values: dict[str, Tensor] = {}
    alone = Plan.of(
        {s: v for s, v in plan.sites if s.layer in ("stem.0", "depthwise.0", "left") and s.role != "output"}
    )
    front = Plan.of({**dict(alone.sites), **{s: v for s, v in plan.sites if s.layer in ("stem.0", "depthwise.0")}})
    program = engine.program

    def observe(step, seen) -> None:
        if step.writes == layer.output:
            values["exact"] = seen[layer.output].clone()

    program.forward(program.place((images,)), observe)
    prepared = engine.prepare(front)
    live = program.place((images,))
    for step in program.steps:
        quantizers = prepared.quantizers.get(step.index)
        live[step.writes] = (
            step.compute(_Both(live, program.constants))
            if quantizers is None
            else engine.quantized(step, quantizers, live, {})
        )
        if step.writes == layer.output:
            break
    expected = (live[layer.output] - values["exact"]).mean((0, 2, 3))
    torch.testing.assert_close(shift, expected, atol=1e-5, rtol=1e-3)


def test_the_shift_is_of_the_weight_that_the_plan_then_has(small, images) -> None:
    """A site has one correction: that of the weight's mean and variance gives way to that of the bias."""
    engine, plan = engine_of(small, images)
    weights = {site: replace(spec, correction="mean_variance") for site, spec in plan.sites if site.role == "weight"}
    corrected = correct_biases(engine, Plan.of(weights), [(images,)], layers_of(engine))
    reference, _ = engine.float_pass((images,))
    after = (engine.whole_pass((images,), engine.prepare(corrected))[0] - reference[0]).mean(0)
    torch.testing.assert_close(after, torch.zeros_like(after), atol=1e-5, rtol=0)


class _Both:
    def __init__(self, *parts) -> None:
        self.parts = parts

    def __getitem__(self, name: str):
        return next(part[name] for part in self.parts if name in part)


def test_a_plan_whose_tensors_are_not_at_hand_is_refused(small, images) -> None:
    engine, plan = engine_of(small, images)
    corrected = correct_biases(engine, plan, [(images,)], layers_of(engine))
    other = ExactEngine(engine.program, Calibration(engine.calibration.observers, sources=engine.calibration.sources))
    with pytest.raises(QuantopsyError, match="not at hand"):
        other.prepare(corrected)
