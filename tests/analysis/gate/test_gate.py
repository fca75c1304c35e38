"""The gate on planted studies, on real ones, and on recipes."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import sample_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import layer_table
from made_up_study import write_study
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import quantopsy as qp
from quantopsy.analysis.gate.judge import found_of
from quantopsy.analysis.significance import Interval
from quantopsy.core.recipe import RECIPE
from quantopsy.study import open_existing

LAYERS = layer_table(20)


def checks(gate: qp.api.Gate) -> dict[str, dict]:
    return {check["name"]: check for check in gate.document()["checks"]}


def statuses(gate: qp.api.Gate) -> dict[str, str]:
    return {name: check["status"] for name, check in checks(gate).items() if check["status"] != "skipped"}


@pytest.fixture
def study(tmp_path):
    """Write a planted study of twenty layers under a name."""

    def write(name: str, layers=LAYERS, **options):
        return write_study(tmp_path / name, layers, **options)

    return write


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Studies of a small network: as it is, per channel, with a layer left float, and repaired to a recipe."""
    folder = tmp_path_factory.mktemp("real")
    float_head = {"layers": {"head": {"input": None, "weight": None, "output": None}}}
    made = {"tensor": {"bits": (4, 8)}, "channel": {"scheme": "per-channel"}, "head": {"plan": float_head}}
    for name, changed in made.items():
        options = {"bits": (4,), "mode": "exact", **changed}
        qp.analyze(sample_models.network(), sample_models.many(), out=folder / name, **options)
    again = {"model": sample_models.network(), "data": sample_models.many()}
    for name in ("tensor", "channel"):
        qp.repair(folder / name, bits=4, max_drop=100.0, **again)
    return folder


# The metric


def test_a_planted_loss_fails_and_its_image_by_image_figure_is_that_of_the_database(study) -> None:
    old, new = study("old"), study("new", seed=1, whole_lost=0.3)
    gate = qp.gate(old, new, max_drop=5.0)
    check = checks(gate)["max_drop"]
    assert not gate.passed
    assert (check["status"], check["finding"], check["significant"], check["images"]) == ("failed", "beyond", True, 300)

    def scores(folder) -> np.ndarray:
        with sqlite3.connect(folder / "study.sqlite") as database:
            (whole,) = database.execute("SELECT value FROM note WHERE key = 'whole'").fetchone()
            (found,) = database.execute("SELECT statistics FROM tile WHERE run = ?", (json.loads(whole)[0]["run"],))
            return np.frombuffer(found[0])

    assert check["value"] == pytest.approx(100 * (scores(old).mean() - scores(new).mean()))
    assert check["interval"][0] > 5.0


def test_the_limit_inside_the_interval_is_undecided_and_a_rule_says_what_that_is(study) -> None:
    old, new = study("old"), study("new", seed=1)
    lenient, strict = (qp.gate(old, new, max_drop=0.5, undecided=word) for word in ("pass", "fail"))
    assert checks(lenient)["max_drop"]["finding"] == "undecided"
    assert (lenient.passed, strict.passed) == (True, False)
    assert "these images, about" in checks(strict)["max_drop"]["reason"]


def test_without_a_limit_that_of_the_old_study_holds_and_infinity_is_none(study) -> None:
    old, new = study("old"), study("new", seed=1, whole_lost=0.4)
    assert checks(qp.gate(old, new))["max_drop"]["limit"] == 1.0
    assert not qp.gate(old, new).passed
    assert qp.gate(old, new, max_drop=math.inf, max_size_growth=0.0).passed


def test_an_improvement_passes_where_none_is_allowed_to_be_lost(study) -> None:
    old, new = study("old", whole_lost=0.4), study("new", seed=1)
    assert statuses(qp.gate(old, new, max_drop=0.0)) == {"max_drop": "passed"}


def test_chance_alone_seldom_fails(study) -> None:
    """Nothing is lost between two quantizations alike: a significant drop is a false alarm, one in forty."""
    few = layer_table(4)
    pairs = ((study(f"{name}{seed}", few, seed=2 * seed + i) for i, name in enumerate("ab")) for seed in range(10))
    alarms = sum(not qp.gate(*pair, max_drop=0.0).passed for pair in pairs)
    assert alarms <= 2  # three or more of ten have a chance of 1 in 600 at one in forty


def test_other_images_are_not_paired_and_a_rule_can_insist(study) -> None:
    old, new = study("old"), study("new", seed=1, data="others", whole_lost=0.5)
    gate = qp.gate(old, new, max_drop=5.0, paired=True)
    assert statuses(gate) == {"max_drop": "failed", "paired": "failed"}
    assert checks(gate)["max_drop"]["images"] == 0
    assert "each over its own images" in checks(gate)["max_drop"]["reason"]


def test_each_bit_width_has_its_limit_and_together_they_hold_at_the_level(study) -> None:
    old = study("old", bits=(4, 8))
    new = study("new", seed=1, bits=(4, 8), whole_lost=0.3)
    found = checks(qp.gate(old, new, max_drop=50.0, max_drop_per_bits={4: 1.0, 3: 1.0}))
    assert found["max_drop at 8 bits"]["status"] == "passed"
    assert found["max_drop at 4 bits"]["status"] == "failed"
    assert found["max_drop at 3 bits"]["status"] == "skipped"
    assert "has no network at 3 bits" in found["max_drop at 3 bits"]["reason"]
    assert found["max_drop at 4 bits"]["level"] == pytest.approx(1 - 0.05 / 3)
    assert not qp.gate(old, new, max_drop=50.0, max_drop_per_bits={3: 1.0}, unavailable="fail").passed


def test_loss_against_float_and_noise_have_limits_of_their_own(study) -> None:
    old, new = study("old"), study("new", seed=1, whole_lost=0.3)
    found = checks(qp.gate(old, new, max_drop=math.inf, max_loss=5.0, max_noise_growth_db=1.0))
    assert found["max_loss"]["status"] == "failed"
    assert found["max_noise_growth_db"]["status"] == "passed"
    assert abs(found["max_noise_growth_db"]["value"]) < 0.5


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(0, 5), st.floats(-10, 10))
def test_the_whole_interval_decides(value, half, limit) -> None:
    finding = found_of(Interval(value, value - half, value + half), limit)
    assert (finding == "within") == (value + half <= limit)
    assert (finding == "beyond") == (value - half > limit)


# Layers, specs, scales, coverage, size


def test_the_layers_that_got_worse_are_counted_and_named(study) -> None:
    old = study("old")
    new = study("new", seed=1, lost={5: 0.4}, noise={9: 4e-3})
    gate = qp.gate(old, new, max_changed_layers=1)
    check = checks(gate)["max_changed_layers"]
    assert (check["status"], check["value"]) == ("failed", 2)
    assert check["names"] == [LAYERS["name"][5], LAYERS["name"][9]]
    assert qp.gate(new, old, max_changed_layers=0, max_drop=50).passed


def test_nothing_is_new_about_the_same_study(real) -> None:
    gate = qp.gate(
        real / "tensor",
        real / "tensor",
        paired=True,
        max_drop=5.0,
        max_changed_layers=0,
        max_changed_specs=0,
        max_scale_change=1.0,
        min_coverage=1.0,
        max_size_growth=0.0,
        max_noise_growth_db=0.0,
    )
    assert gate.passed
    assert set(statuses(gate)) == set(checks(gate)) - {"max_loss"}
    assert gate.document()["ranges"] == gate.document()["specs"] == []


def test_another_granularity_is_a_change_of_specs_and_of_ranges(real) -> None:
    found = checks(qp.gate(real / "tensor", real / "channel", max_changed_specs=0, max_scale_change=1.001))
    weighted = sum(isinstance(part, nn.Conv2d | nn.Linear) for part in sample_models.network().modules())
    assert found["max_changed_specs"]["value"] == weighted
    assert "granularity per_tensor → per_channel" in found["max_changed_specs"]["reason"]
    assert found["max_scale_change"]["status"] == "failed"
    assert all(name.endswith("weight") for name in found["max_scale_change"]["names"])


def test_coverage_is_the_share_of_macs_that_torch_counts(real) -> None:
    network = sample_models.network()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 12, 12))
    head = 2 * network.head.in_features * network.head.out_features
    check = checks(qp.gate(real / "tensor", real / "head", min_coverage=1.0))["min_coverage"]
    assert check["value"] == pytest.approx(1 - head / counter.get_total_flops())
    assert check["before"] == 1.0
    assert (check["status"], check["names"]) == ("failed", ["head"])


def test_size_is_that_of_all_weights_and_a_float_one_takes_four_bytes(real) -> None:
    weights = [part.weight.numel() for part in sample_models.network().modules() if isinstance(part, nn.Conv2d)]
    head = sample_models.network().head.weight.numel()
    gate = qp.gate(real / "tensor", real / "head", bits=4, max_size_growth=0.5)
    document = gate.document()
    assert document["old"]["weight_bytes"] == (sum(weights) + head) / 2
    assert document["new"]["weight_bytes"] == sum(weights) / 2 + 4 * head
    check = checks(gate)["max_size_growth"]
    assert check["value"] == pytest.approx(document["new"]["weight_bytes"] / document["old"]["weight_bytes"] - 1)


def test_a_range_that_grew_is_found_with_its_site(tmp_path, real) -> None:
    network = sample_models.network()
    with torch.no_grad():
        network.left.weight *= 3.0
    qp.analyze(network, sample_models.many(), out=tmp_path, bits=(8,), mode="screen")
    gate = qp.gate(real / "tensor", tmp_path, bits=8, max_scale_change=2.9)
    check = checks(gate)["max_scale_change"]
    assert check["status"] == "failed"
    (change,) = [
        change for change in gate.document()["ranges"] if change["layer"] == "left" and change["role"] == "weight"
    ]
    assert change["factor"] == pytest.approx(3.0, rel=1e-5)
    assert "left weight" in check["names"]


def test_a_study_that_kept_no_grids_says_what_to_do(study) -> None:
    found = checks(qp.gate(study("old"), study("new", seed=1), max_scale_change=2.0))["max_scale_change"]
    assert found["status"] == "skipped"
    assert "run its `quantopsy analyze` again" in found["reason"]


def test_another_architecture_has_no_layers_to_hold_against(study) -> None:
    other = LAYERS.assign(name="other." + LAYERS["name"], op="linear", weight_shape=[(7, 7)] * 20)
    gate = qp.gate(study("old"), study("new", other), max_drop=50.0, max_changed_layers=0, max_changed_specs=0)
    assert checks(gate)["max_changed_layers"]["status"] == checks(gate)["max_changed_specs"]["status"] == "skipped"
    assert len(gate.document()["only_old"]) == 20


def test_what_was_only_screened_is_a_prediction_and_never_paired(tmp_path, real) -> None:
    qp.analyze(sample_models.network(), sample_models.many(), out=tmp_path, bits=(8,), mode="screen")
    check = checks(qp.gate(real / "tensor", tmp_path, bits=8))["max_drop"]
    assert (check["predicted"], check["images"]) == (True, 0)
    assert "predicted by a screen, not run" in check["reason"]


def test_another_metric_is_not_compared(study) -> None:
    found = checks(qp.gate(study("old"), study("new", metric="agreement"), max_loss=50.0))["max_drop"]
    assert found["status"] == "skipped"
    assert "the metrics differ: top1 and agreement" in found["reason"]


# Recipes


def test_recipes_proven_on_the_same_images_are_held_against_each_other_in_pairs(real) -> None:
    old, new = real / "tensor" / RECIPE, real / "channel" / RECIPE
    gate = qp.gate(old, new, paired=True, max_scale_change=1.0, min_coverage=1.0, max_size_growth=0.0)
    found, recipes = checks(gate), [qp.Recipe.load(path) for path in (old, new)]
    after = [recipe.expected.after[0] for recipe in recipes]
    assert found["max_drop"]["value"] == pytest.approx(after[0] - after[1])
    assert found["max_drop"]["images"] == recipes[0].expected.samples
    assert found["paired"]["status"] == "passed"
    assert found["max_loss"]["interval"] == pytest.approx(recipes[1].expected.lost[1:])
    assert found["min_coverage"]["value"] == 1.0
    assert found["max_scale_change"]["status"] == "failed"
    assert found["max_changed_layers"]["reason"].startswith("a recipe does not say what single layers lose")


def test_recipes_without_their_proof_are_held_against_each_other_by_what_it_came_to(real) -> None:
    old, new = (replace(qp.Recipe.load(real / name / RECIPE), proof=None) for name in ("tensor", "channel"))
    gate = qp.gate(old, new, paired=True)
    assert checks(gate)["max_drop"]["value"] == pytest.approx(new.expected.lost[0] - old.expected.lost[0])
    assert checks(gate)["max_drop"]["images"] == 0
    assert checks(gate)["paired"]["status"] == "failed"
    assert any("not paired image by image" in sentence for sentence in gate.words())


def test_a_study_and_a_recipe_can_be_mixed(real) -> None:
    recipe = qp.Recipe.load(real / "channel" / RECIPE)
    gate = qp.gate(real / "tensor", recipe, max_drop=50.0)
    assert statuses(gate) == {"max_drop": "passed"}
    assert checks(gate)["max_drop"]["images"] == recipe.expected.samples  # those of the study that the proof was on
    assert gate.document()["old"]["bits"] == 4  # the study at the recipe's width
    assert gate.document()["new"]["label"] == "new"
    with open_existing(real / "tensor") as store:
        assert (
            set(gate.document()["only_new"])
            <= {layer["name"] for layer in store.noted("layers")}
            == set(recipe.plan.layers)
        )


# What a person sees


def test_a_frame_has_a_row_for_each_rule(study) -> None:
    frame = qp.gate(study("old"), study("new", seed=1)).frame()
    assert {"max_drop", "max_loss", "paired", "min_coverage"} <= set(frame["name"])
    assert frame["reason"].str.len().gt(0).all()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda one, two: qp.gate(one, two / "absent"), "has no study.sqlite"),
        (lambda one, two: qp.gate(one, two), "they share no bit-width"),
        (lambda one, two: qp.gate(one, two, bits=8), "8 bits: study 'two' has 4"),
        (lambda one, two: qp.gate(one, one / "study.sqlite"), "recipe '.*study.sqlite'"),
        (lambda one, two: qp.gate(one, one, max_dorp=1.0), "rule 'max_dorp': .* nearest are max_drop"),
        (lambda one, two: qp.gate(one, one, {"max_loss": "x"}), "rule max_loss = 'x'"),
        (lambda one, two: qp.gate(one, one, max_drop=math.inf), r"no rule can be judged \(no limit is set\)"),
        (
            lambda one, two: qp.gate(one, one, max_drop=math.inf, max_scale_change=2),
            "no rule can be judged .a study did",
        ),
    ],
)
def test_what_cannot_be_judged_is_an_error_that_helps(study, ask, said) -> None:
    one, two = study("one"), study("two", bits=(4,))
    with pytest.raises(qp.QuantopsyError, match=said):
        ask(one, two)
