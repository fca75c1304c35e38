"""The screen against a Jacobian that is formed in full, and against exact noise where that is linear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from folded_nets import FOLDED, Mixed, folded
from jacobian import Perturbed, first_perturbed
from random_net import CLASSES, pictures, random_net
from scipy.stats import spearmanr
from torch import Tensor, nn

from quantopsy.analysis.schemes import at_bits, full_plan, grids, single_layer
from quantopsy.analysis.screening import Scores
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.engine import screen as screen_module
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.probes import decision_probe
from quantopsy.engine.screen import Candidates, Screened, ScreenEngine, columns
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import Program, compile_network
from quantopsy.graph.outputs import squared_norms

MANY = (2, 3, 4, 5, 6, 7, 8)


@dataclass
class Case:
    """A network with ranges and images."""

    program: Program
    ranges: Calibration
    images: Tensor

    @property
    def full(self) -> Plan:
        """Every site at 8 bits."""
        return full_plan(self.program.network, grids("per-tensor", 8))

    def candidates(self, bits: Sequence[int] = (4,)) -> Candidates:
        """Weights at ``bits``, activations at 8."""
        return {
            site: [spec.with_bits(b) for b in bits] if site.role == "weight" else [spec]
            for site, spec in self.full.sites
        }

    def screened(
        self,
        candidates: Candidates | None = None,
        images: Iterable[int] | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Screened:
        """One tile of ``images`` (all)."""
        rows = np.arange(len(self.images)) if images is None else np.array(list(images))
        engine = ScreenEngine(self.program, self.ranges, **options)
        kept = None if labels is None else labels[rows]
        return engine.run_tile(
            (self.images[rows],), rows, self.candidates() if candidates is None else candidates, kept
        )


def case_of(module: nn.Module, images: Tensor, plans: Sequence[Plan] | None = None) -> Case:
    """``module`` with ranges of ``images``."""
    program = compile_network(capture(module, (images[:2],)))
    plans = plans or [full_plan(program.network, grids("per-tensor", 8))]
    return Case(program, calibrate(program, [(images,)], wanted_statistics(program.network, plans)), images)


def scores_of(found: Screened, probes: int = 1) -> Scores:
    """What the analysis makes of one tile."""
    return Scores(
        found.columns,
        np.arange(found.e.shape[1]),
        found.e[:, :, :probes],
        found.e[:, :, probes] if found.kind != "none" else np.full(found.e.shape[:2], np.nan),
        found.margins,
        found.kind,
        found.hidden,
    )


def by_site(found: Screened) -> dict[tuple[Site, Spec, Spec | None], np.ndarray]:
    """(B, P) by site, spec and the inputs' spec that it is given, the values of a site added."""
    sums: dict[tuple[Site, Spec, Spec | None], np.ndarray] = {}
    for column, e in zip(found.columns, found.e, strict=True):
        key = column.site, column.spec, column.given
        sums[key] = sums.get(key, 0.0) + e.astype(np.float64)
    return sums


def before(site: Site, given: Spec | None) -> dict[Site, Spec]:
    """The site in front of an output that is scored ``given`` it."""
    return {} if given is None else {Site(site.layer, "input"): given}


def along(probes: Sequence[Tensor | None], moved: Sequence[Tensor]) -> np.ndarray:
    """<v, J d> per image, over all outputs."""
    total = torch.zeros(len(moved[0]), dtype=torch.float64)
    for probe, tensor in zip(probes, moved, strict=True):
        if probe is not None:
            total += (probe.double() * tensor).flatten(1).sum(1)
    return total.numpy()


def assert_near(found: np.ndarray, expected: np.ndarray, scale: float) -> None:
    """Equal up to float32 rounding of a sum of terms of size ``scale``."""
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5 * scale + 1e-7)


@pytest.fixture
def drawn(monkeypatch) -> list[Tensor]:
    """Every random probe that an engine sends back, in order."""
    kept: list[Tensor] = []
    original = screen_module.random_signs

    def spy(*arguments: Any) -> Tensor:
        kept.append(original(*arguments))
        return kept[-1]

    monkeypatch.setattr(screen_module, "random_signs", spy)
    return kept


@pytest.mark.parametrize("made", [*range(10), *FOLDED])
def test_e_of_every_site_is_the_probe_times_the_jacobian(made, drawn) -> None:
    case = case_of(random_net(made) if isinstance(made, int) else folded(made), pictures(4))
    found = case.screened(case.candidates((3, 8)))
    decision = decision_probe(found.outputs, np.arange(4), 0).gradients
    reference = Perturbed(case.program, case.ranges, case.images)
    assert found.kind == "margin"
    assert not found.hidden
    for (site, spec, given), e in by_site(found).items():
        moved = reference.moved((site, spec), given=before(site, given))
        scale = float(torch.stack([tensor.abs().max() for tensor in moved]).max())
        assert_near(e[:, 0], along(drawn[:1], moved), scale)
        assert_near(e[:, 1], along(decision, moved), scale)


@pytest.mark.parametrize("seed", range(6))
def test_the_layers_of_a_plan_add_up_and_a_value_on_its_grid_is_not_moved_again(seed, drawn) -> None:
    case = case_of(random_net(seed), pictures(4))
    network = case.program.network
    scores = scores_of(case.screened())
    reference = Perturbed(case.program, case.ranges, case.images)
    full = at_bits(case.full, 4)
    rng = np.random.default_rng(seed)
    some = [layer for layer in network.layers if rng.random() < 0.6]
    for plan in (full, Plan.of({site: spec for layer in some for site, spec in single_layer(full, layer).sites})):
        try:
            moved = reference.moved(*first_perturbed(network, plan), given=plan)
        except AssertionError:  # of a random choice of layers: only one of two inputs lies on its grid
            continue
        scale = float(moved[0].abs().max())
        assert_near(scores.e(plan)[:, 0], along(drawn[:1], moved), scale)
        assert len(set(scores.rows(plan))) == len(scores.rows(plan))


def test_an_input_on_another_grid_than_its_producers_output_is_moved_again(drawn) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
    sites = {Site("0", "output"): Spec(bits=5), Site("2", "input"): Spec(bits=3), Site("4", "input"): Spec(bits=3)}
    plan = Plan.of(sites)
    case = case_of(module, pictures(3), [plan])
    scores = scores_of(case.screened({site: [spec] for site, spec in sites.items()}))
    moved = Perturbed(case.program, case.ranges, case.images).moved(*plan.sites)
    assert_near(scores.e(plan)[:, 0], along(drawn[:1], moved), float(moved[0].abs().max()))
    assert len(scores.rows(plan)) == 3


@pytest.mark.parametrize("roles", [("output",), ("input",), ("weight",)])
def test_what_a_site_scores_does_not_depend_on_which_others_are_asked_for(roles) -> None:
    case = case_of(random_net(3), pictures(4))
    everything = by_site(case.screened(case.candidates((4, 6))))
    alone = {site: specs for site, specs in case.candidates((4, 6)).items() if site.role in roles}
    for key, e in by_site(case.screened(alone)).items():
        np.testing.assert_allclose(e, everything[key], rtol=1e-4, atol=1e-5 * np.abs(e).max() + 1e-8)


@pytest.mark.parametrize("made", [1, 4, *FOLDED])
def test_weights_by_gradient_and_by_forward_score_alike(made, monkeypatch) -> None:
    case = case_of(random_net(made) if isinstance(made, int) else folded(made), pictures(4))
    few, many = by_site(case.screened(case.candidates((4,)))), by_site(case.screened(case.candidates(MANY)))
    monkeypatch.setattr(screen_module, "supported", lambda *_: False)
    forward = by_site(case.screened(case.candidates(MANY)))
    monkeypatch.setattr(screen_module, "supported", lambda *_: True)
    monkeypatch.setattr(screen_module, "CANDIDATE_FORWARDS", 1e9)
    gradient = by_site(case.screened(case.candidates(MANY)))
    for key, e in forward.items():
        for other in (gradient, many, few):
            if key in other:
                np.testing.assert_allclose(other[key], e, rtol=1e-3, atol=1e-5 * np.abs(e).max() + 1e-8)


def test_noise_averaged_over_probes_is_the_squared_length_of_j_d() -> None:
    case = case_of(random_net(0), pictures(6))
    network = case.program.network
    scores = scores_of(case.screened(noise_probes=300, decision=False), 300)
    reference = Perturbed(case.program, case.ranges, case.images)
    plans = [single_layer(at_bits(case.full, 4), layer) for layer in network.layers]
    moved = [reference.moved(*first_perturbed(network, plan), given=plan)[0].flatten(1) for plan in plans]
    gram = scores.gram(plans)
    for a in range(len(plans)):
        predicted, stderr = scores.predicted(plans[a])
        assert gram[a, a] == pytest.approx(predicted)
        assert predicted == pytest.approx(float(moved[a].square().sum(1).mean()), rel=0.15)
        assert stderr > 0
        for b in range(a):
            length = float(moved[a].square().sum(1).mean() * moved[b].square().sum(1).mean()) ** 0.5
            assert gram[a, b] == pytest.approx(float((moved[a] * moved[b]).sum(1).mean()), abs=0.15 * length)


def test_the_sum_over_the_gram_matrix_is_the_noise_of_all_layers_together() -> None:
    case = case_of(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval(), pictures(4)
    )
    weights = [Plan.of({site: spec}) for site, spec in at_bits(case.full, 4).sites if site.role == "weight"]
    scores = scores_of(case.screened(noise_probes=20), 20)
    together = Plan.of({site: spec for plan in weights for site, spec in plan.sites})
    assert scores.gram(weights).sum() == pytest.approx(scores.predicted(together)[0])


def test_the_probes_of_one_seed_are_always_the_same_and_of_another_differ() -> None:
    case = case_of(random_net(2), pictures(3))
    first, again, other = (case.screened(seed=seed).e for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first[:, :, 0] != other[:, :, 0]).any()
    np.testing.assert_allclose(first[:, :, 1], other[:, :, 1])


def test_neither_tiles_nor_the_order_of_images_matter() -> None:
    case = case_of(random_net(5), pictures(7))
    whole = case.screened(noise_probes=2)
    order = [4, 1, 6, 0, 3, 5, 2]
    mixed = case.screened(images=order, noise_probes=2)
    parts = [case.screened(images=rows, noise_probes=2) for rows in ([0, 1, 2], [3, 4, 5], [6])]
    joined = np.concatenate([part.e for part in parts], 1)
    scale = np.abs(whole.e).max()
    np.testing.assert_allclose(joined, whole.e, rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(mixed.e, whole.e[:, order], rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(mixed.margins, whole.margins[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FOLDED)
def test_an_image_scores_alone_as_among_others_however_values_hold_images(kind) -> None:
    case = case_of(folded(kind), pictures(8))  # as many as channels
    candidates = case.candidates((4, 6))
    whole = case.screened(candidates)
    assert not whole.hidden
    assert whole.e.shape == (len(columns(case.program.network, candidates)), 8, 2)
    alone = np.concatenate([case.screened(candidates, [image]).e for image in range(8)], 1)
    for found, expected in zip(whole.e, alone, strict=True):
        close = np.isclose(found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max() + 1e-7)
        # A value on the border of two codes may take the other one: kernels differ by the number of images.
        assert close.mean() > 0.8
        assert np.linalg.norm(found - expected) <= 0.2 * np.linalg.norm(expected) + 1e-6


@pytest.mark.parametrize("kind", FOLDED)
def test_a_tile_scores_the_same_whatever_an_engine_scored_before(kind) -> None:
    case = case_of(folded(kind), pictures(6))
    candidates = case.candidates()
    engine = ScreenEngine(case.program, case.ranges)
    for rows in (np.array([5]), np.arange(5), np.array([5])):
        found = engine.run_tile((case.images[rows],), rows, candidates)
        np.testing.assert_array_equal(found.e, case.screened(candidates, rows).e)


@pytest.mark.parametrize("made", [*range(6), *FOLDED])
def test_in_bfloat16_scores_are_nearly_those_of_float32(made) -> None:
    case = case_of(random_net(made) if isinstance(made, int) else folded(made), pictures(6))
    candidates = case.candidates((3, 6))
    single, halved = (case.screened(candidates, half=half) for half in (False, True))
    assert halved.columns == single.columns
    assert halved.hidden == single.hidden
    assert halved.e.dtype == np.float32
    assert (halved.e != single.e).any()
    weights = np.array([column.site.role == "weight" for column in single.columns])
    norms, apart = np.linalg.norm(single.e, axis=(1, 2)), np.linalg.norm(halved.e - single.e, axis=(1, 2))
    assert (apart[weights] <= 0.1 * norms[weights] + 0.01 * norms[weights].max()).all()
    # An 8-bit grid is about as fine as bfloat16: how far a value is from it is another, but not how far on average.
    there = ~weights & (norms > 0.01 * norms.max())
    assert 0.6 < np.median(np.linalg.norm(halved.e[there], axis=(1, 2)) / norms[there]) < 1.6


def test_a_layer_whose_input_mixes_images_is_hidden() -> None:
    found = case_of(folded(Mixed), pictures(6)).screened()
    assert set(found.hidden) >= {"aside"}
    assert not {"stem", "head"} & set(found.hidden)
    for column, e in zip(found.columns, found.e, strict=True):
        assert np.isnan(e).all() == (column.site.layer in found.hidden)


def test_the_margin_is_of_the_two_largest_outputs(small, images) -> None:
    found = case_of(small, images).screened()
    top = found.outputs[0].topk(2, 1).values
    np.testing.assert_allclose(found.margins, (top[:, :1] - top[:, 1:]).double())
    assert found.outputs[0].shape == (12, 5)
    np.testing.assert_allclose(found.outputs[0], small(images).detach(), rtol=1e-4, atol=1e-5)


def test_columns_are_named_layer_by_layer_in_the_order_of_the_network(small, images) -> None:
    case = case_of(small, images)
    found = case.screened()
    assert found.columns == columns(case.program.network, case.candidates())
    names = list(dict.fromkeys(column.site.layer for column in found.columns))
    assert names == list(case.program.network.names)
    adds = [column for column in found.columns if column.site == Site("add", "input")]
    assert len({column.value for column in adds}) == 2


class Unused(nn.Module):
    """A layer whose result the output does not depend on, and one of whose result only the shape matters."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.silent, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.used(x)
        return self.head((y + 0.0 * self.silent(x)).mean((2, 3)))


def test_a_layer_that_the_output_does_not_depend_on_scores_zero() -> None:
    case = case_of(Unused().eval(), pictures(3))
    found = by_site(case.screened())
    for (site, _, given), e in found.items():
        assert np.isfinite(e).all()
        if given is None:
            assert (e == 0).all() == (site.layer in ("silent", "mul")), site


class Branches(nn.Module):
    """A concat of two branches, one of twice the range."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(600, 2, bias=False)
        self.head.weight.data = torch.rand(2, 600)

    def forward(self, x: Tensor) -> Tensor:
        narrow = (0.3 * x).clamp(0, 1) ** 3  # most of it within a few steps of zero
        return self.head(torch.cat([narrow, 2.04 * narrow], 1).flatten(1))


def test_what_a_layer_without_weights_rounds_again_is_scored_as_rounded_again() -> None:
    torch.manual_seed(0)
    case = case_of(Branches().eval(), pictures(8))
    plan = single_layer(case.full, next(layer for layer in case.program.network.layers if layer.op == "concat"))
    (site,) = [site for site in plan if site.role == "output"]
    scores = scores_of(case.screened(noise_probes=8), 8)
    exact = ExactEngine(case.program, case.ranges)
    reference, both = (measured.outputs for measured in exact.run_tile((case.images,), [exact.prepare(plan)]))
    noise = float(squared_norms(both, reference).mean())
    assert scores.predicted(plan)[0] == pytest.approx(noise, rel=0.5)
    # Half of the one branch's steps fall on the same side of the other's: far more than two roundings alone.
    alone = [scores.predicted(Plan.of({at: spec}))[0] for at, spec in plan.sites]
    assert noise > 3 * sum(alone)
    assert {column.given for column in scores.columns if column.site == site} == {None, plan[Site(site.layer, "input")]}


class Stepped(nn.Module):
    """A stepwise operator behind the first layer; the second one's way to the output is free."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.step == "round":
            y = torch.round(3 * y)
        elif self.step == "gt":
            y = (y > 0).float()
        elif self.step == "argmax":
            y = F.one_hot(y.argmax(1), 4).movedim(-1, 1).float()
        elif self.step == "beside":
            y = y + torch.floor(y)
        return self.head(self.second(y).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("step", "name"), [("round", "round"), ("gt", "gt"), ("argmax", "argmax"), ("beside", "floor")]
)
def test_a_layer_that_no_gradient_reaches_is_hidden_by_the_operators_name(step, name) -> None:
    case = case_of(Stepped(step).eval(), pictures(3))
    found = case.screened()
    # A layer that is itself made of the stepwise operator's result stays with it.
    assert found.hidden["first"] == name
    assert not {"second", "head"} & set(found.hidden)
    for column, e in zip(found.columns, found.e, strict=True):
        assert np.isnan(e).all() == (column.site.layer in found.hidden), column
    assert all(
        np.isfinite(e).all() for column, e in zip(found.columns, found.e, strict=True) if column.site.layer == "second"
    )


class ShapeOnly(nn.Module):
    """Reads a value's shape to make zeros that it adds as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(torch.cat([y, torch.zeros_like(y)], 1).mean((2, 3)))


def test_reading_only_a_values_shape_hides_nothing(drawn) -> None:
    case = case_of(ShapeOnly().eval(), pictures(3))
    found = case.screened()
    assert not found.hidden
    moved = Perturbed(case.program, case.ranges, case.images).moved((Site("first", "weight"), Spec(bits=4)))
    e = by_site(found)[Site("first", "weight"), Spec(bits=4), None]
    assert_near(e[:, 0], along(drawn[:1], moved), float(moved[0].abs().max()))


class Elements(nn.Module):
    """Reads elements of what an operator gives as a tuple, on both sides of the first layer's two halves."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.operator == "chunk":
            a, b = y.chunk(2, 1)
        elif self.operator == "max":
            a = b = y.unflatten(1, (2, 4)).max(1)[0]
        else:
            a, b = y.unflatten(1, (2, 4)).topk(2, dim=1)[0].unbind(1)
        return self.head((self.left(a) + self.right(b)).relu().mean((2, 3)))


@pytest.mark.parametrize("operator", ["chunk", "max", "topk"])
def test_the_gradient_passes_through_the_elements_of_a_tuple(operator, drawn) -> None:
    case = case_of(Elements(operator).eval(), pictures(3))
    found = case.screened()
    assert not found.hidden
    reference = Perturbed(case.program, case.ranges, case.images)
    for (site, spec, given), e in by_site(found).items():
        moved = reference.moved((site, spec), given=before(site, given))
        assert_near(e[:, 0], along(drawn[:1], moved), float(moved[0].abs().max()))
    assert np.abs(by_site(found)[Site("first", "weight"), Spec(bits=4), None]).min() > 0


def test_a_layer_behind_the_places_of_a_tuple_is_hidden_by_the_operators_name() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            values, places = self.first(x).flatten(1).topk(3)
            return self.head(values + places.float())

    assert case_of(Places().eval(), pictures(3)).screened().hidden == {"first": "topk"}


class Assigned(nn.Module):
    """Writes channels over others in place, as where they are shifted in time: a copy, without a derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = y.clone()
        z[:, :2] = 3 * y[:, 2:]
        z[:, 2] = y[:, 3].mean((1, 2), keepdim=True)
        return self.head(z.relu().mean((2, 3)))


def test_what_is_assigned_to_a_part_of_a_value_passes_its_gradient(drawn) -> None:
    case = case_of(Assigned().eval(), pictures(3))
    found = case.screened()
    assert not found.hidden
    reference = Perturbed(case.program, case.ranges, case.images)
    for (site, spec, given), e in by_site(found).items():
        moved = reference.moved((site, spec), given=before(site, given))
        assert_near(e[:, 0], along(drawn[:1], moved), float(moved[0].abs().max()))


def test_a_layer_behind_an_operator_that_was_given_no_derivative_is_hidden() -> None:
    @torch.library.custom_op("quantopsy_tests::sine", mutates_args=())
    def sine(x: Tensor) -> Tensor:
        return x.sin()

    sine.register_fake(torch.empty_like)

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = sine(self.first(x))
            return self.head(y.mean((2, 3)))

    assert case_of(Custom().eval(), pictures(3)).screened().hidden == {"first": "sine"}


def test_a_batch_of_one() -> None:
    case = case_of(random_net(1), pictures(5))
    whole, one = case.screened(), case.screened(images=[3])
    np.testing.assert_allclose(one.e[:, 0], whole.e[:, 3], rtol=1e-3, atol=1e-5 * np.abs(whole.e).max())


class Maps(nn.Module):
    """Scores of three classes in every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.last(self.first(x).relu()), scale_factor=2.0, mode="bilinear")


def test_of_maps_the_squared_decision_averages_to_the_mean_squared_change_of_pixel_margins() -> None:
    torch.manual_seed(0)
    case = case_of(Maps().eval(), pictures(4, size=6))
    site, spec = Site("first", "weight"), Spec(bits=3)
    moved = Perturbed(case.program, case.ranges, case.images).moved((site, spec))[0]
    found = [case.screened({site: [spec]}, seed=seed) for seed in range(400)]
    assert found[0].kind == "pixel margins"
    top = found[0].outputs[0].topk(2, 1).indices
    change = (moved.gather(1, top[:, :1]) - moved.gather(1, top[:, 1:])).flatten(1)
    squared = np.mean([part.e[0, :, 1].astype(np.float64) ** 2 for part in found], 0)
    np.testing.assert_allclose(squared, change.square().mean(1), rtol=0.3)
    assert squared.mean() == pytest.approx(float(change.square().mean()), rel=0.1)


def test_of_maps_the_margins_are_quantiles_over_pixels() -> None:
    case = case_of(Maps().eval(), pictures(2, size=6))
    found = case.screened()
    top = found.outputs[0].topk(2, 1).values
    distance = (top[:, 0] - top[:, 1]).flatten(1).numpy()
    at = (np.arange(found.margins.shape[1]) + 0.5) / found.margins.shape[1]
    np.testing.assert_allclose(found.margins, np.quantile(distance, at, axis=1).T, rtol=1e-4, atol=1e-6)


class Several(nn.Module):
    """Scores, a map, a vector that is used twice, and a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.first(x).relu()
        scores = self.head(y.mean((2, 3)))
        return {"scores": scores, "map": self.second(y), "again": (scores, scores.argmax(1))}


def test_every_output_that_is_floating_has_probes_of_its_own(drawn) -> None:
    case = case_of(Several().eval(), pictures(3))
    found = case.screened()
    assert len(found.outputs) == 4
    # Outputs: scores, map, scores again, argmax; each floating one is probed.
    assert [tuple(probe.shape) for probe in drawn] == [(3, 3), (3, 2, 6, 6), (3, 3)]
    assert not torch.equal(drawn[0], drawn[2])
    reference = Perturbed(case.program, case.ranges, case.images)
    top = found.outputs[0].topk(2, 1).indices
    for (site, spec, given), e in by_site(found).items():
        if site.layer in found.hidden:
            continue
        scores, a_map, again = reference.moved((site, spec), given=before(site, given))[:3]
        scale = float(max(scores.abs().max(), a_map.abs().max()))
        assert_near(e[:, 0], along(drawn, (scores, a_map, again)), scale)
        assert_near(e[:, 1], (scores.gather(1, top[:, :1]) - scores.gather(1, top[:, 1:]))[:, 0].numpy(), scale)


def test_an_argmax_among_the_outputs_hides_no_layer_that_also_has_scores() -> None:
    found = case_of(Several().eval(), pictures(3)).screened()
    assert not found.hidden
    assert np.isfinite(found.e).all()


def test_outputs_that_are_no_scores_have_no_decision() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(128, 1)).eval()
    found = case_of(module, pictures(3)).screened()
    assert found.kind == "none"
    assert found.margins.shape == (3, 0)
    assert found.e.shape[2] == 1


def cross_entropy(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """A user's loss."""
    return F.cross_entropy(outputs, labels, reduction="none")


def test_with_a_loss_e_is_its_directional_derivative() -> None:
    case = case_of(random_net(6), pictures(4))
    labels = torch.tensor([0, 3, 1, CLASSES - 1])
    found = case.screened(loss=cross_entropy, labels=labels)
    assert found.kind == "loss"
    scores = found.outputs[0].double().requires_grad_()
    losses = cross_entropy(scores, labels)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    np.testing.assert_allclose(found.margins[:, 0], losses.detach(), rtol=1e-5)
    reference = Perturbed(case.program, case.ranges, case.images)
    for (site, spec, given), e in by_site(found).items():
        moved = reference.moved((site, spec), given=before(site, given))
        assert_near(e[:, 1], along([gradient], moved), float(moved[0].abs().max()))


LOSSES: Mapping[str, tuple[Any, str]] = {
    "a mean": (lambda y, _: y.mean(), r"loss: it returns \(\), not one number for each image; return a tensor \(B,\)"),
    "a column": (lambda y, _: y[:, :1], r"it returns \(4, 1\), not one number"),
    "no tensor": (lambda y, _: 0.5, r"it returns float, not one number"),
    "no gradient": (lambda y, _: y.detach().sum(1), r"loss: it has no gradient; compute it from the outputs"),
    "a decision": (lambda y, _: y.argmax(1).float(), r"loss: it has no gradient"),
    "fails": (lambda y, labels: F.cross_entropy(y, labels), r"loss: it failed \(TypeError.*; try it on"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_cannot_be_used_is_one_line(name) -> None:
    loss, pattern = LOSSES[name]
    case = case_of(random_net(6), pictures(4))
    with pytest.raises(QuantopsyError, match=pattern):
        case.screened(loss=loss)


def test_the_share_of_a_weights_energy_that_is_moved_is_told() -> None:
    case = case_of(random_net(5), pictures(4))
    found = case.screened(case.candidates((3, 6)))
    for column, moved in zip(found.columns, found.moved, strict=True):
        expected = 0.0
        if column.site.role == "weight":
            layer, weight = case.program.network.layer(column.site.layer), case.program.network.tensors[column.value]
            on_grid = case.ranges.quantized_weight(layer, column.spec, weight)
            expected = float((on_grid - weight).norm() / weight.norm()) ** 2
        assert moved == pytest.approx(expected, rel=1e-4)


def test_nothing_of_the_network_is_changed(small, images) -> None:
    case = case_of(small, images)
    before = {name: tensor.clone() for name, tensor in case.program.network.tensors.items()}
    constants = {name: tensor.clone() for name, tensor in case.program.constants.items()}
    kept = images.clone()
    case.screened(case.candidates(MANY))
    assert all(torch.equal(before[name], tensor) for name, tensor in case.program.network.tensors.items())
    assert all(torch.equal(constants[name], tensor) for name, tensor in case.program.constants.items())
    assert torch.equal(images, kept)


@pytest.mark.parametrize("half", [False, True])
def test_a_real_network_is_ranked_as_by_exact_noise(half, zoo) -> None:
    dataset = zoo.images("resnet20", "cifar10_test", 96)
    case = case_of(zoo.network("resnet20"), torch.stack([dataset[i][0] for i in range(96)]))
    network = case.program.network
    scores = scores_of(case.screened(case.candidates((5, 8)), noise_probes=4, half=half), 4)
    exact = ExactEngine(case.program, case.ranges)
    for bits in (5, 8):
        plans = [single_layer(at_bits(case.full, bits), layer) for layer in network.layers]
        predicted = [scores.predicted(plan)[0] for plan in plans]
        found, reference = [0.0] * len(plans), ()
        for measured in exact.run_tile((case.images,), [exact.prepare(plan) for plan in plans]):
            if measured.run < 0:
                reference = measured.outputs
            else:
                found[measured.run] = float(squared_norms(measured.outputs, reference).mean())
        assert spearmanr(predicted, found).statistic > 0.95
        assert 0.8 < np.median(np.array(predicted) / np.array(found)) < 1.25
