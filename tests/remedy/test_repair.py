"""A planted fault is repaired, proven on images held out, and carried away in a recipe."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import quantopsy as qp
from quantopsy.analysis.progress import Silent
from quantopsy.analysis.recipes import realised
from quantopsy.analysis.results import Results
from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.analysis.significance import Interval
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.core.allocation import Decisions
from quantopsy.core.recipe import Recipe
from quantopsy.engine.adaround import Effort
from quantopsy.graph.capture import capture
from quantopsy.remedy.applied import apply
from quantopsy.remedy.fixes import proposals
from quantopsy.remedy.proof import Parts
from quantopsy.remedy.repair import Session, amount, judged, repair
from quantopsy.remedy.target import target
from quantopsy.remedy.variants import Difference, Variant, Variants
from quantopsy.report.repaired import repair_section, repair_statements
from quantopsy.report.wording import MINUS, with_interval

EFFORT = Effort(steps=20)


class Net(nn.Module):
    """Two convolutions whose channels have ranges that one grid does not fit, and a head."""

    def __init__(self, imbalance: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.head = nn.Linear(12, 6)
        with torch.no_grad():
            scale = torch.logspace(0, np.log10(imbalance), 8)
            self.first.weight *= scale.reshape(-1, 1, 1, 1)
            self.first.bias *= scale
            self.second.weight /= scale.reshape(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def pictures(count: int = 240) -> Tensor:
    """Smooth random images of different brightness."""
    generator = torch.Generator().manual_seed(5)
    x = nn.functional.avg_pool2d(torch.randn(count, 3, 12, 12, generator=generator), 3, 1, 1)
    return 3 * x + torch.randn(count, 3, 1, 1, generator=generator)


def net(imbalance: float = 300.0) -> Net:
    """Always the same function but for rounding, its classes about as frequent."""
    torch.manual_seed(4)
    module = Net(imbalance).eval()
    with torch.no_grad():
        y = module(pictures())
        module.head.weight /= y.std(0).reshape(-1, 1)
        module.head.bias.copy_((module.head.bias - y.mean(0)) / y.std(0))
    return module


def data(count: int = 240) -> TensorDataset:
    """Images labelled by the float network."""
    with torch.no_grad():
        return TensorDataset(pictures(count), net()(pictures(count)).argmax(1))


def repaired(folder: Path, module: nn.Module, **options) -> Results:
    images = options.pop("images", None) or data()
    bits = options.pop("bits", 5)
    qp.analyze(module, images, out=folder, bits=(bits,), mode="exact")
    return repair(folder, effort=EFFORT, model=module, data=images, **options)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("study")
    return folder, repaired(folder, net(), target="any", max_drop=0.5)


def test_what_the_budget_left_no_time_for_is_said(tmp_path, outcome) -> None:
    done = repaired(tmp_path, net(), target="any", max_drop=0.0, budget="0.001s")
    assert not done.repaired.steps
    assert done.repaired.untried[0] == "dead channels"
    assert done.repaired.untried[-1] == "layers in float"
    words = " ".join(repair_section(done).statements)
    assert "Time was up before: dead channels, " in words
    assert "Nothing was tried" not in words
    _, unhurried = outcome
    assert unhurried.repaired.untried == ()
    assert "Time was up" not in " ".join(repair_section(unhurried).statements)


def test_what_was_lost_comes_back_for_nothing_at_run_time(outcome) -> None:
    _, results = outcome
    done = results.repaired
    assert done is not None
    assert done.expected.lost_before[0] > 10
    assert done.expected.gained[1] > 0  # for certain
    assert done.expected.lost[0] < 0.3 * done.expected.lost_before[0]
    kept = [step for step in done.steps if step.kept]
    assert kept
    assert any("equalization" in step.words for step in kept)


def test_every_layer_is_shown_before_and_after(outcome) -> None:
    _, results = outcome
    layers = {layer.name: layer for layer in results.repaired.layers}
    assert set(layers) == set(results.cells["name"])
    # What was planted: the first weight's channels are 300 times as wide as one another.
    before, after = layers["first"].spread
    assert before == pytest.approx(300**0.5, rel=0.7)
    assert after < 0.5 * before
    assert sum(layer.noise[1] for layer in layers.values()) < sum(layer.noise[0] for layer in layers.values())
    charts = [chart.title for chart in repair_section(results).charts]
    assert charts[1:] == [
        "Noise of every layer, before and after",
        "Range of every weight over its median channel's, before and after",
    ]


def test_decisions_and_proof_look_at_different_images(outcome) -> None:
    _, results = outcome
    order = np.random.default_rng(0).permutation(100)
    parts = Parts.of(order)
    together = np.concatenate([parts.search, parts.confirm, parts.report])
    assert sorted(together) == list(range(100))
    assert results.repaired.expected.samples == len(Parts.of(np.arange(240)).report)


def test_the_recipe_reads_back_to_the_identical_network(outcome) -> None:
    folder, results = outcome
    recipe = Recipe.load(folder / "recipe.json")
    images = data()
    module = net()
    again = [
        apply(recipe, module, images).module(images.tensors[0]),
        apply(Recipe.from_json(json.loads(json.dumps(recipe.to_json()))), module, images).module(images.tensors[0]),
    ]
    assert torch.equal(*again)
    # As it was measured in the study, image by image, on those of the proof.
    found = apply(recipe, module, images)
    parts = Parts.of(np.asarray([int(i) for i in _order(folder)]))
    hits = (again[0].argmax(1) == images.tensors[1]).double().numpy()
    assert 100 * hits[parts.report].mean() == pytest.approx(results.repaired.expected.after[0])
    assert found.same_model
    assert found.lost[0] < results.repaired.expected.lost_before[0]


def test_the_recipe_applies_to_the_same_model_as_a_file(outcome, tmp_path) -> None:
    folder, _ = outcome
    images, module = data(), net()
    size = {0: torch.export.Dim("images", min=1, max=512)}
    torch.export.save(
        torch.export.export(module, (images.tensors[0][:2],), dynamic_shapes=(size,)), tmp_path / "net.pt2"
    )
    x = images.tensors[0][:16]
    found = [qp.apply(folder, model, images) for model in (module, str(tmp_path / "net.pt2"))]
    assert [each.same_model for each in found] == [True, True]
    assert torch.equal(*(each.module(x) for each in found))


def _order(folder: Path) -> list[int]:
    from quantopsy.study import open_existing

    with open_existing(folder) as store:
        return store.noted("order")


def test_a_sound_network_is_left_alone(tmp_path) -> None:
    results = repaired(tmp_path, net(1.0), bits=8, max_drop=5.0)
    done = results.repaired
    assert done.met
    assert not [step for step in done.steps if step.kept]
    assert done.expected.before == done.expected.after


def test_a_target_that_is_met_already_is_said_without_asking_why(tmp_path, monkeypatch) -> None:
    def refuse(*_, **__) -> None:
        raise AssertionError("diagnosed for nothing")

    monkeypatch.setattr("quantopsy.remedy.repair.diagnosed", refuse)
    results = repaired(tmp_path, net(1.0), bits=8, max_drop=20.0)
    assert results.repaired.steps == ()
    assert repair_statements(results)[0].startswith("Nothing was changed: at 8 bits the network loses")
    assert not any("Nothing was tried" in sentence for sentence in repair_statements(results))
    by_others = replace(results, repaired=replace(results.repaired, met=False))
    assert any("Nothing was tried: the images that decide" in sentence for sentence in repair_statements(by_others))


class Branches(nn.Module):
    """Two convolutions that are added: one grid for both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.left(x).relu() + self.right(x).relu()).relu())


def test_what_was_changed_together_is_undone_together() -> None:
    network = capture(Branches().eval(), (pictures(2),))
    plan = full_plan(network, grids("per-tensor", 8))
    session = Session.__new__(Session)
    (fixed, *_) = (
        p for p in proposals(network, plan, network.layer("left"), "free", target("any")) if len(p.sites) > 1
    )
    session.before, session.now = Variant(plan), Variant(fixed.plan)
    tried = []
    session._network = lambda: network
    session._try = lambda variant, *_: tried.append(variant.plan)
    session._undo()
    assert tried
    for found in (dict(plan.sites) for plan in tried):
        assert found["left", "input"] == found["right", "input"]
        assert found["left", "output"] == found["right", "output"] == found["add", "input"]


def test_more_may_be_asked_for_than_float_has() -> None:
    nothing = Difference(Interval(0.0, -1.0, 1.0, 0.95), Interval(1.0, 0.9, 1.1, 0.95))
    found = judged(nothing, None, images=40, max_drop=-1.0, unit="points")
    assert found == (False, "noise +0 %, +0.0 points: no gain that is certain")


@pytest.mark.parametrize(("lost", "tried"), [(0.4, 0), (0.6, 2)])
def test_layers_are_tried_one_by_one_as_long_as_the_target_is_missed(lost, tried) -> None:
    proposal = SimpleNamespace(plan=Plan(), fix=SimpleNamespace(words="clipped"))

    class Watched(Session):
        def __init__(self) -> None:
            self.variants = SimpleNamespace(degradation=lambda *_: Interval(lost, -1.0, 2.0), over=False)
            self.parts, self.level, self.max_drop, self.now = Parts.of(np.arange(200)), 0.95, 0.5, Variant(Plan())
            self.tried: list[str] = []

        def _best(self, name, cost):
            return [proposal]

        def _try(self, variant, words, layers, cost):
            self.tried.append(words)
            return False

    session = Watched()
    session._local("free", lambda: ["a", "b"])
    assert session.tried == ["a: clipped", "b: clipped"][:tried]
    session._round("adaround", "rounded")
    assert len(session.tried) == (3 if tried else 0)


@pytest.mark.parametrize(("cost", "kept"), [("free", True), ("float", False)])
def test_no_layer_is_left_float_for_nothing(cost, kept) -> None:
    """Alone the fix takes all noise away, together none."""
    nothing = Interval(0.0, -1.0, 1.0, 0.95)

    class Measured:
        def difference(self, before, after, images, level) -> Difference:
            alone = not before.plan.layers - {"a"}
            return Difference(nothing, Interval(0.0, 0.0, 0.0, 0.95) if alone else Interval(1.0, 0.99, 1.01, 0.95))

        def degradation(self, *_) -> Interval:
            return nothing

        def decisions(self, *_) -> None:
            return None

    session = Session.__new__(Session)
    session.variants, session.progress, session.results = Measured(), Silent(), SimpleNamespace(unit="points")
    session.parts, session.level, session.max_drop, session.steps = Parts.of(np.arange(200)), 0.95, 0.5, []
    plan = Plan.of({Site("a", "weight"): Spec(bits=4), Site("b", "weight"): Spec(bits=4)})
    session.now = Variant(plan)
    assert session._try(Variant(Plan.of({Site("b", "weight"): Spec(bits=4)})), "a: fixed", ("a",), cost) == kept


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (-0.0, "points", "+0.0 points"),
        (-0.04, "points", "+0.0 points"),
        (-3.0, "points", "-3.0 points"),
        (0.00312, "", "+0.0031"),
        (-0.0, "", "+0"),
    ],
)
def test_a_change_is_said_in_the_metrics_own_size(value, unit, words) -> None:
    assert amount(value, unit, sign="+") == words


def test_offsets_of_channels_go_to_the_layers_behind(tmp_path) -> None:
    module = net()
    with torch.no_grad():
        lifted = 40 * module.first.weight.abs().amax((1, 2, 3))
        module.first.bias += lifted
        module.second.bias -= module.second.weight.sum((2, 3)) @ lifted
    done = repaired(tmp_path, module, bits=6, max_drop=0.5, target="any").repaired
    (step,) = [step for step in done.steps if "absorbed" in step.words]
    assert step.kept
    assert step.noise[0] < 0.8
    assert [t["name"] for t in Recipe.load(tmp_path / "recipe.json").transforms][-1] == "bias_absorption"


@pytest.fixture
def compared(monkeypatch) -> list[tuple[np.ndarray, float]]:
    """The images of every comparison that a repair decides by, and what it said."""
    calls = []
    difference = Variants.difference

    def recorded(variants, before, after, images, level):
        found = difference(variants, before, after, images, level)
        calls.append((images, found.change.value))
        return found

    monkeypatch.setattr(Variants, "difference", recorded)
    return calls


def test_nothing_is_made_worse_where_nothing_can_be_done(tmp_path, compared) -> None:
    expected = repaired(tmp_path, net(1.0), bits=2, max_drop=0.0, target="any", budget="20s").repaired.expected
    deciding = len(data()) - expected.samples
    (whole,) = [change for images, change in compared if len(images) == deciding] or [0.0]
    assert whole <= 0 or expected.before == expected.after


def again(outcome, tmp_path) -> Results:
    """The same repair once more, of a copy."""
    folder, images = shutil.copytree(outcome[0], tmp_path / "study"), data()
    return repair(folder, effort=EFFORT, target="any", max_drop=0.5, model=net(), data=images)


def test_no_decision_looks_at_the_images_of_the_proof(outcome, compared, tmp_path) -> None:
    results = again(outcome, tmp_path)
    parts = Parts.of(np.asarray(_order(outcome[0])))
    assert results.repaired.expected.samples == len(parts.report)
    assert any(len(images) == len(parts.search) + len(parts.confirm) for images, _ in compared)
    assert not any(np.isin(images, parts.report).any() for images, _ in compared)


@pytest.mark.parametrize(
    ("change", "noise", "more_as_in_float", "kept", "why"),
    [
        ((3.0, 1.0, 5.0), (0.2, 0.1, 0.3), 0.0, False, "certainly worse by 3.0 points"),
        ((-3.0, -5.0, -1.0), (1.0, 0.9, 1.1), -2.0, True, "3.0 points regained"),
        ((0.2, -4.0, 4.4), (0.8, 0.7, 0.9), -2.0, True, "noise -20 %, -0.2 points"),
        ((2.6, -6.0, 13.0), (0.2, 0.1, 0.3), 0.0, True, "decided as in float no less often"),
        ((2.6, -6.0, 13.0), (0.2, 0.1, 0.3), -2.6, False, "no gain that is certain"),
        ((2.6, -6.0, 13.0), (0.2, 0.1, 0.3), None, False, "no gain that is certain"),
        ((2.6, -6.0, 13.0), (0.9, 0.7, 1.1), 2.6, False, "no gain that is certain"),
        ((2.6, -6.0, 13.0), (0.97, 0.96, 0.98), 2.6, False, "no gain that is certain"),
        ((-3.0, -8.0, 2.0), (0.9, 0.7, 1.1), 2.0, False, "3.0 points better, but 40 images cannot tell: about 112"),
    ],
)
def test_a_step_is_kept_by_the_metric_or_by_noise_that_costs_nothing(
    change, noise, more_as_in_float, kept, why
) -> None:
    difference = Difference(Interval(*change), Interval(*noise))
    gained = None if more_as_in_float is None else (more_as_in_float, -9.0, 9.0)
    decisions = None if gained is None else Decisions(90.0, 90.0 + gained[0], gained)
    found = judged(difference, decisions, images=40, max_drop=0.5, unit="points")
    assert found[0] is kept
    assert why in found[1].replace(MINUS, "-")


def test_what_the_deciding_images_call_worse_is_undone(outcome, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(Session, "_worse_at_last", lambda self: self.now != self.before)
    done = again(outcome, tmp_path).repaired
    assert done.steps[-1].words == "all of it undone"
    assert done.expected.after == done.expected.before


def test_a_loss_that_only_the_proof_shows_is_said(outcome) -> None:
    _, results = outcome
    assert not any("Caution" in line for line in repair_statements(results))
    worse = replace(results.repaired, expected=replace(results.repaired.expected, gained=(-2.0, -4.0, 0.5)))
    (line,) = [line for line in repair_statements(replace(results, repaired=worse)) if "Caution" in line]
    assert f"worse by {with_interval(2.0, -0.5, 4.0, 1)}" in line
    assert "by chance, perhaps" in line


def test_the_same_command_again_measures_nothing_and_ends_the_same(outcome, monkeypatch) -> None:
    folder, results = outcome
    images, module = data(), net()
    from quantopsy.engine.exact import ExactEngine

    def refuse(*_) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(ExactEngine, "whole_pass", refuse)
    again = repair(folder, effort=EFFORT, target="any", max_drop=0.5, model=module, data=images).repaired
    assert [(s.words, s.kept, s.change) for s in again.steps] == [
        (s.words, s.kept, s.change) for s in results.repaired.steps
    ]
    assert again.expected == results.repaired.expected


def test_a_recipe_of_another_network_names_the_layer(outcome) -> None:
    folder, _ = outcome
    recipe = Recipe.load(folder / "recipe.json")
    x = data().tensors[0][:2]

    class Wider(Net):
        def __init__(self) -> None:
            super().__init__(2.0)
            self.second = nn.Conv2d(8, 14, 3)
            self.head = nn.Linear(14, 6)

    with pytest.raises(QuantopsyError, match=r"'head'.*shape"):
        realised(recipe, capture(Wider().eval(), (x,)))
    with pytest.raises(QuantopsyError, match=r"'first'.*nearest"):
        realised(recipe, capture(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), (x,)))


def test_a_transformed_networks_float_function_is_unchanged(outcome) -> None:
    folder, _ = outcome
    recipe = Recipe.load(folder / "recipe.json")
    assert recipe.transforms
    x, module = data().tensors[0], net()
    network, calibration = realised(recipe, capture(module, (x[:2],)))
    assert calibration.encodings
    assert Site("first", "weight") in recipe.plan
    from quantopsy.graph.execute import compile_network

    program = compile_network(network)
    with torch.inference_mode():
        torch.testing.assert_close(program.forward(program.place((x,)))[0], module(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": 9}, "the study has 5"),
        ({"max_drop": float("nan")}, "is no loss to end at"),
        ({"target": "tensorrt"}, "only symmetric grids|no 5 bits"),
        ({"budget": "30p"}, "limited by time"),
    ],
)
def test_a_mistake_is_one_line(outcome, options, reason) -> None:
    folder, _ = outcome
    with pytest.raises(QuantopsyError, match=reason):
        repair(folder, model=net(), data=data(), **options)


def test_too_few_images_to_decide_on_are_refused(tmp_path) -> None:
    with pytest.raises(QuantopsyError, match="too few to decide"):
        repaired(tmp_path, net(), images=data(60))
