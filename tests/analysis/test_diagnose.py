"""Planted faults in a small network: the cause is named, and what was run says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import quantopsy as qp
from quantopsy.analysis import significance
from quantopsy.analysis.causes import ORDER, Scene, Suspect, left_by_error
from quantopsy.analysis.diagnose import AS_GOOD, Trial, confirmed, diagnose, together
from quantopsy.analysis.results import Results
from quantopsy.calibrate import quantized_weight
from quantopsy.core import Finding, Plan, QuantopsyError, Removed, Site, Spec
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.layer_noise import look
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network

COUNT = 48


class Net(nn.Module):
    """Two branches that meet in a concat, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.third = nn.Conv2d(12, 16, 1)
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        return self.head(self.third(x).relu().mean((2, 3)))


def net(plant: Callable[[Net], None] | None = None) -> Net:
    """Always the same weights, then the fault."""
    torch.manual_seed(4)
    module = Net().eval()
    if plant is not None:
        with torch.no_grad():
            plant(module)
    return module


def pictures(scale: float = 1.0, seed: int = 5) -> TensorDataset:
    """Smooth random images."""
    x = torch.randn(COUNT, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(scale * nn.functional.avg_pool2d(x, 3, 1, 1) * 3)


def examined(tmp: Path, layer: str, plant: Callable[[Net], None] | None = None, **options: object) -> Results:
    """The layer's findings at 6 bits."""
    module, data = net(plant), options.pop("data", None) or pictures()
    given = {"calibration": options.pop("calibration", pictures(seed=6))}
    qp.analyze(module, data, out=tmp, bits=(6,), mode="exact", **given, **options)
    return diagnose(tmp, layers=[layer], model=module, data=data, **given)


def primary(results: Results) -> Finding:
    """The first finding, which there must be."""
    found = [finding for finding in results.findings if finding.primary]
    assert len(found) == 1
    return found[0]


def wide_channel(module: Net) -> None:
    module.first.weight[2] *= 40
    module.first.bias[2] *= 40
    module.second.weight[:, 2] /= 40


def outlier(module: Net) -> None:
    module.second.weight[3, 2, 1, 1] = 3.0


def dead(module: Net) -> None:
    module.second.weight[5] = -module.second.weight[5].abs() * 30
    module.second.bias[5] = -1.0


def wide_branch(module: Net) -> None:
    module.left.weight *= 30
    module.left.bias *= 30
    module.third.weight[:, :6] /= 30


def loud(module: Net) -> None:
    # A constant channel far above the others, which nobody reads.
    module.first.weight[1], module.first.bias[1] = 0.0, 300.0
    module.second.weight[:, 1] = 0.0


def one_sided(module: Net) -> None:
    # Every weight just below the middle between two levels, behind a ReLU: all are rounded down. One channel reaches
    # twice as far as the others, which would be a finer grid's merit per channel.
    weight = module.second.weight
    weight.clamp_(-0.1, 0.1)
    weight[0, 0, 0, 0], weight[0, 0, 0, 1] = 0.31, -0.32
    step = 0.63 / 63
    fine = (weight / step).floor() * step + 0.45 * step
    fine[0, 0, 0, :2] = weight[0, 0, 0, :2]
    weight.copy_(fine)


def raised_mean(module: Net) -> None:
    # What reaches ``third`` has a mean far above its spread, taken out again by its bias.
    for branch in (module.left, module.right):
        branch.bias += 40.0
    module.third.bias -= 40.0 * module.third.weight.sum((1, 2, 3))


@pytest.mark.parametrize(
    ("layer", "plant", "cause"),
    [
        ("first", wide_channel, "channel_imbalance"),
        ("second", outlier, "weight_outlier"),
        ("second", dead, "dead_channel"),
        ("concat", wide_branch, "branch_imbalance"),
        ("third", raised_mean, "bias_shift"),
        ("second", one_sided, "bias_shift"),
        ("first", loud, "activation_outlier"),
        ("second", loud, "activation_outlier"),
    ],
)
def test_a_planted_fault_is_named(tmp_path, layer, plant, cause) -> None:
    results = examined(tmp_path, layer, plant)
    finding = primary(results)
    assert (finding.layer, finding.bits, finding.cause) == (layer, 6, cause)
    assert finding.removed.noise[0] > 0.5
    assert finding.removed.noise[1] <= finding.removed.noise[0] <= finding.removed.noise[2]
    assert finding.fixes
    assert sum(finding.shares.values()) == pytest.approx(1.0)


def test_a_heavy_tail_per_channel_is_named(tmp_path) -> None:
    def tailed(module: Net) -> None:
        module.second.weight[:, 0, 0, 0] = 1.5
        module.first.weight[0] /= 50  # what meets those weights is small
        module.first.bias[0] /= 50

    finding = primary(examined(tmp_path, "second", tailed, scheme="per-channel"))
    assert finding.cause == "weight_outlier"
    assert finding.change == "a grid of as many codes, dense inside"
    assert finding.evidence["tailed_grids"] == 8


def test_what_a_test_removed_is_what_the_changed_network_lacks(tmp_path) -> None:
    finding = primary(examined(tmp_path / "a", "first", wide_channel))
    assert finding.change == "scales per channel"
    plain = qp.analyze(
        net(wide_channel), pictures(), out=tmp_path / "b", bits=(6,), mode="exact", calibration=pictures(seed=6)
    )
    plan = {"layers": {"first": {"weight": {"bits": 6, "granularity": "per_channel"}}}}
    changed = qp.analyze(
        net(wide_channel),
        pictures(),
        out=tmp_path / "c",
        bits=(6,),
        mode="exact",
        calibration=pictures(seed=6),
        plan=plan,
    )
    noise = [study.frame().set_index("name").loc["first", "noise"] for study in (plain, changed)]
    assert finding.removed.noise[0] == pytest.approx(1 - noise[1] / noise[0], rel=1e-4)


def test_ranges_of_darker_images_are_named(tmp_path) -> None:
    results = examined(tmp_path, "first", calibration=pictures(0.3, seed=6))
    finding = primary(results)
    assert finding.cause == "calibration_range"
    assert finding.evidence["beyond_share"] > 0.01
    local = results.locals[6]["first"]
    assert local.output.high > local.output.grid_high


def test_a_symmetric_grid_behind_a_relu_is_named(tmp_path) -> None:
    plan = {
        "layers": {"first": {"weight": None, "input": None, "output": {"bits": 4, "symmetric": True, "signed": True}}}
    }
    finding = primary(examined(tmp_path, "first", plan=plan))
    assert finding.cause == "wasted_range"
    assert finding.evidence["wasted_share"] == pytest.approx(0.5, abs=0.05)
    assert finding.shares == {"output": 1.0}


@pytest.mark.parametrize("estimator", ["mse", "percentile:99.9"])
def test_ranges_may_have_been_estimated_in_any_way(tmp_path, estimator) -> None:
    # Tests fix ranges that they find themselves, and need extremes for that, which such a plan does not collect.
    changes = {role: {"range_estimator": estimator} for role in ("input", "output")}
    images = pictures()
    qp.analyze(net(), images, out=tmp_path, bits=(3,), mode="exact", changes=changes)
    found = diagnose(tmp_path, model=net(), data=images, layers=("*",), samples=COUNT)
    assert found.findings


def test_a_sound_layer_has_no_single_cause(tmp_path) -> None:
    finding = primary(examined(tmp_path, "head", scheme="per-channel"))
    assert finding.cause in ("no_single_cause", "amplification")
    assert finding.severity == "mild"
    assert finding.change.startswith("16 bits at its")


def test_findings_stay_in_the_study_and_are_replaced_by_newer_ones_of_the_same_layers(tmp_path) -> None:
    first = examined(tmp_path, "first", wide_channel)
    again = qp.open_study(tmp_path).results
    assert again.findings == first.findings
    assert again.locals[6].keys() == first.locals[6].keys()
    np.testing.assert_allclose(again.locals[6]["first"].shift, first.locals[6]["first"].shift)
    both = diagnose(tmp_path, layers=["second"], model=net(wide_channel), data=pictures(), calibration=pictures(seed=6))
    assert {finding.layer for finding in both.findings} == {"first", "second"}
    assert [finding for finding in both.findings if finding.layer == "first"] == list(first.findings)
    json.dumps([finding.to_json() for finding in both.findings], allow_nan=False)


def test_independent_errors_leave_what_is_said_of_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 12, 8, 8) * torch.logspace(-1, 1, 12).reshape(-1, 1, 1)
    module = nn.Conv2d(12, 24, 3, groups=2)
    module.weight.data *= torch.logspace(-0.5, 0.5, 24).reshape(-1, 1, 1, 1)
    program = compile_network(capture(module.eval(), (x[:2],)))
    (layer,) = program.network.layers
    spec = Spec(bits=6, symmetric=True, signed=True)
    weight = Site(layer.name, "weight")
    plans = [Plan.of({weight: spec}), Plan.of({weight: replace(spec, granularity="per_channel")})]
    plans += [Plan.of({weight: replace(spec, correction="bias")}), Plan.of({})]
    engine = ExactEngine(program, calibrate(program, [(x,)], wanted_statistics(program.network, plans)))
    local = look(engine, [(x,)], {layer.name: plans[0]})[layer.name]
    scene = Scene(layer, plans[0], program.network.weight(layer), module.bias, local)
    for same in plans[2:]:  # its weights are on the same grid; on none
        assert left_by_error(scene, same) == 0.0

    def relative(plan: Plan) -> float:
        found = quantized_weight(plan[weight], module.weight.detach())
        noise = (nn.functional.conv2d(x, found - module.weight, groups=2)).square().mean((0, 2, 3))
        return float((noise / module(x).var((0, 2, 3))).sum().detach())

    assert left_by_error(scene, plans[1]) == pytest.approx(relative(plans[1]) / relative(plans[0]), rel=0.2)


def test_a_bias_that_overflows_is_found_where_nothing_hurts(tmp_path) -> None:
    def tiny(module: Net) -> None:
        module.first.weight[3] = 1e-12
        module.first.bias[3] = -1.0

    module = net(tiny)
    qp.analyze(module, pictures(), out=tmp_path, bits=(8,), mode="exact", scheme="per-channel")
    (finding,) = diagnose(tmp_path, model=module, data=pictures()).findings
    assert (finding.layer, finding.cause, finding.primary, finding.severity) == ("first", "bias_overflow", True, "mild")
    assert finding.evidence["channels"] == 1
    step = float(pictures().tensors[0].amax() - pictures().tensors[0].amin()) / 255 * 1e-12 / 127
    assert finding.evidence["bias_codes"] == pytest.approx(1.0 / step, rel=0.05)


def test_where_nothing_hurts_nothing_is_examined(tmp_path) -> None:
    qp.analyze(net(), pictures(), out=tmp_path, bits=(8,), mode="exact")
    results = diagnose(tmp_path, model=net(), data=pictures())
    assert results.findings == ()
    assert results.diagnosed == (8,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, r"bit-width 3: the study has 8; run `quantopsy analyze` with --bits 3 first"),
        ({"layers": ["frist"]}, "layer 'frist'.*nearest.*first"),
    ],
)
def test_what_cannot_be_examined_is_said(tmp_path, options, message) -> None:
    qp.analyze(net(), pictures(), out=tmp_path, bits=(8,), mode="exact")
    with pytest.raises(QuantopsyError, match=message):
        diagnose(tmp_path, model=net(), data=pictures(), **options)


def removing(cause: str, noise: float, low: float = 0.1) -> Trial:
    """A test that removed so much."""
    return Trial(Suspect(cause, ("weight",), {}), "change", Removed((noise, low, 1.0), (0.0, 0.0, 0.0)))


def test_of_causes_that_explain_as_much_the_most_specific_is_primary() -> None:
    specific, general = removing("dead_channel", 0.85), removing("bias_shift", 0.95)
    assert confirmed([general, specific]) == [specific, general]
    weak = replace(specific, removed=Removed((AS_GOOD * 0.95 - 0.01, 0.1, 1.0), (0.0, 0.0, 0.0)))
    assert confirmed([weak, general]) == [general, weak]
    assert confirmed([removing("dead_channel", 0.4), removing("bias_shift", 0.9, low=-0.1)]) == []
    assert len(set(ORDER)) == len(ORDER)


def test_what_the_weights_error_does_not_account_for_is_not_credited_to_its_range() -> None:
    outlier, shift = removing("weight_outlier", 0.99), removing("bias_shift", 0.95)
    assert confirmed([outlier, shift])[0] is outlier
    lucky = replace(outlier, accounted=0.1)
    assert confirmed([lucky, shift]) == [shift, lucky]


def test_changes_of_different_sites_are_tried_together() -> None:
    weight, output = Site("a", "weight"), Site("a", "output")
    plan = Plan.of({weight: Spec(), output: Spec()})

    def trial(cause: str, noise: float, **changed: Spec) -> Trial:
        change = plan | {Site("a", role): spec for role, spec in changed.items()}
        return replace(removing(cause, noise), suspect=Suspect(cause, ("weight",), {}, {"change": change}))

    imbalance = trial("channel_imbalance", 0.3, weight=Spec(granularity="per_channel"))
    shift = trial("bias_shift", 0.2, weight=Spec(correction="bias"))
    outlier = trial("activation_outlier", 0.25, output=Spec(range_estimator="mse"))
    found, taken = together(plan, [shift, outlier, imbalance])
    assert taken == (imbalance, outlier)
    assert found == Plan.of({weight: Spec(granularity="per_channel"), output: Spec(range_estimator="mse")})
    assert together(plan, [shift, imbalance]) is None


def test_the_interval_of_a_ratio_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        bottom = rng.gamma(2.0, 1.0, 100)
        top = 0.3 * bottom + rng.gamma(2.0, 0.1, 100)
        found = significance.ratio_of_means(top, bottom, 0.95)
        hits += found.low <= 0.3 + 0.2 / 2.0 <= found.high
    assert stats.binomtest(hits, 400, 0.95).pvalue > 1e-3
