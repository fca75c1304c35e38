"""Fixes keep to the target, suit the cause, and leave no value to be rounded twice."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.core import Plan, Site
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.remedy.fixes import Cost, proposals
from quantopsy.remedy.target import target


@pytest.fixture
def network(small, images) -> Network:
    return capture(small, (images[:2],))


def plan_of(network: Network) -> Plan:
    return full_plan(network, grids("per-tensor", 8))


@pytest.mark.parametrize("name", ["per-tensor", "onnxruntime-cpu", "any"])
@pytest.mark.parametrize("cost", get_args(Cost))
def test_no_fix_is_proposed_that_the_target_cannot_run(network, name, cost) -> None:
    profile, plan = target(name), plan_of(network)
    for layer in network.layers:
        for proposal in proposals(network, plan, layer, cost, profile):
            assert proposal.plan != plan
            assert {site for site in plan if proposal.plan.get(site) != plan[site]} == set(proposal.sites)
            for site in proposal.sites:
                spec = proposal.plan.get(site)
                assert profile.refuses(site.role, network.layer(site.layer).op, spec) is None


def test_a_cause_narrows_the_fixes_to_those_that_suit_it(network) -> None:
    layer = network.layer("left")
    all_, some = (
        {p.fix.words for p in proposals(network, plan_of(network), layer, "free", target("any"), causes)}
        for causes in ((), ("activation_outlier",))
    )
    assert some < all_
    assert all("activations" in words for words in some)


def test_values_that_share_a_grid_change_together(network, images) -> None:
    plan, profile = plan_of(network), target("any")
    fix = next(
        p
        for p in proposals(network, plan, network.layer("left"), "bits", profile)
        if p.fix.words == "16-bit activations"
    )
    program = compile_network(network)
    engine = ExactEngine(program, calibrate(program, [(images,)], wanted_statistics(network, [plan, fix.plan])))

    def rounded_again(which: Plan) -> set[tuple[str, str]]:
        return {
            (program.steps[index].layer.name, value)
            for index, quantizers in engine.prepare(which).quantizers.items()
            for value, _ in quantizers.inputs
        }

    assert rounded_again(fix.plan) == rounded_again(plan)
    assert fix.plan[Site("left", "output")].bits == 16
    assert torch.isfinite(engine.whole_pass((images,), engine.prepare(fix.plan))[0]).all()


def test_fewer_bits_are_no_fix(network) -> None:
    plan = full_plan(network, grids("per-tensor", 16))
    words = {p.fix.words for p in proposals(network, plan, network.layer("left"), "bits", target("any"))}
    assert "16-bit activations" not in words
