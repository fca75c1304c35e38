"""Bit-widths for a small network from its study, from beginning to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import quantopsy as qp
from quantopsy.analysis.results import Results
from quantopsy.core import QuantopsyError
from quantopsy.core.recipe import Recipe
from quantopsy.remedy.allocation.costs import amount
from quantopsy.remedy.proof import Parts
from quantopsy.report.allocated import (
    allocation_section,
    allocation_statements,
    front_table,
    onnx_bytes,
    rivals_table,
)
from quantopsy.study import open_existing

BITS = (2, 3, 4, 8)


class Unequal(nn.Module):
    """Two branches of which the one with most of the weights hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.faint = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 5, padding=2)
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((10.0 * self.loud(x) + 0.1 * self.faint(x)).relu().mean((2, 3)))


def network() -> nn.Module:
    """Always the same."""
    torch.manual_seed(0)
    return Unequal().eval()


def many() -> TensorDataset:
    """Labelled by the network."""
    x = torch.randn(160, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return TensorDataset(x, network()(x).argmax(1))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("allocation")
    qp.analyze(network(), many(), out=folder, bits=BITS, mode="screen")
    return folder


def allocated(folder: Path, **options) -> Results:
    return qp.allocate(folder, model=network(), data=many(), **options).results


@pytest.fixture(scope="module")
def outcome(study) -> Results:
    return allocated(study, size="4bits")


def test_the_limit_is_kept_and_noise_is_below_the_uniform_networks(outcome) -> None:
    done = outcome.allocated
    assert done is not None
    assert done.uses["size"] <= done.limits["size"]
    assert done.baseline == 4
    assert done.noise_ratio[2] < 0.5  # the interval's upper end
    assert done.bits["loud"] > done.bits["faint"]
    assert set(done.bits.values()) <= set(BITS)
    assert len(set(done.bits.values())) > 1


def test_every_criterion_was_run_and_the_quietest_taken(outcome) -> None:
    done = outcome.allocated
    assert {rival.words for rival in done.rivals} == {"noise", "additive", "degradation", "hawq", "greedy"}
    assert done.criterion == min(done.rivals, key=lambda rival: rival.noise).words
    assert all(rival.uses["size"] <= done.limits["size"] for rival in done.rivals)


def test_the_front_goes_from_the_smallest_to_the_largest(outcome) -> None:
    front = outcome.allocated.front
    sizes = [point.uses["size"] for point in front]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(sum(p.numel() for p in network().parameters() if p.dim() > 1) * 2 / 8)
    assert front[-1].noise < 0.1 * front[0].noise


def test_the_recipe_has_the_bits_and_gives_what_was_promised(study, outcome) -> None:
    recipe = Recipe.load(study / "recipe.json")
    given = {site.layer: spec.bits for site, spec in recipe.plan.sites if site.role == "weight"}
    assert given == dict(outcome.allocated.bits)
    found = qp.apply(recipe, network(), many())
    assert found.same_model
    # Image by image what was measured for the proof, biases corrected and all.
    with open_existing(study) as store:
        report = Parts.of(np.asarray(store.noted("order"))).report
    x, labels = many().tensors
    decided = found.module(x[report]).argmax(1)
    assert 100 * float((decided == labels[report]).double().mean()) == pytest.approx(
        outcome.allocated.expected.after[0]
    )
    kept = 100 * float((decided == network()(x[report]).argmax(1)).double().mean())
    decisions = outcome.allocated.decisions
    assert decisions.after == pytest.approx(kept)
    assert decisions.gained[0] == pytest.approx(decisions.after - decisions.before)
    assert decisions.gained[1] <= decisions.gained[0] <= decisions.gained[2]
    assert f"It decides {kept:.1f} % of them as the float network does" in " ".join(allocation_statements(outcome))


def test_the_same_again_measures_nothing(study, outcome, monkeypatch) -> None:
    from quantopsy.engine.exact import ExactEngine

    def refuse(*_) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(ExactEngine, "whole_pass", refuse)
    assert allocated(study, size="4bits").allocated == outcome.allocated


def test_what_was_allocated_is_shown(study, outcome) -> None:
    assert json.loads(json.dumps(outcome.allocated.to_json()))["criterion"] == outcome.allocated.criterion
    section = allocation_section(outcome)
    assert section is not None
    assert len(section.charts) == 3
    assert any("uniform 4 bits" in words for words in allocation_statements(outcome))
    assert "Mixed precision" in (study / "report.html").read_text()


def test_a_loss_that_no_bits_mend_is_said(outcome) -> None:
    def said(lost: tuple[float, float, float]) -> list[str]:
        done = outcome.allocated
        *others, highest = done.uniform
        expected = replace(done.expected, lost=(95.0, 90.0, 98.0))
        broken = replace(done, uniform=(*others, replace(highest, degradation=lost)), expected=expected)
        return [s for s in allocation_statements(replace(outcome, allocated=broken)) if "cannot mend" in s]

    assert said((90.0, 84.0, 95.0)) == [
        "With uniform 8 bits, the most that were allowed, it loses 90.00 (84.00 to 95.00) points already: bits cannot "
        "mend this. `quantopsy repair` comes first."
    ]
    assert not said((0.5, -1.0, 2.0))
    assert not [s for s in allocation_statements(outcome) if "cannot mend" in s]


def test_every_choice_is_in_the_table_once_and_what_was_chosen_is_marked(outcome) -> None:
    done = outcome.allocated
    rows = front_table(outcome, done).rows
    assert len({row[1:] for row in rows}) == len(rows)
    uniform = {f"uniform {bits} bits" for bits in BITS}
    assert uniform <= {word for row in rows for word in row[0].split(", ")}
    assert [row[1] for row in rows if row[0].startswith("chosen")] == [amount("size", done.uses["size"])]
    marked = [row[0] for row in rivals_table(outcome, done).rows if "chosen" in row[0]]
    assert marked == [f"{done.criterion} (chosen)"]


def test_the_size_in_a_file_of_onnx_has_four_or_eight_bits_a_weight(outcome) -> None:
    done = outcome.allocated
    weights = {name: parameter.numel() for name, parameter in network().named_parameters() if parameter.dim() > 1}
    by_hand = sum(weights[f"{name}.weight"] * (4 if bits <= 4 else 8) / 8 for name, bits in done.bits.items())
    assert onnx_bytes(outcome, done) == pytest.approx(by_hand, abs=len(done.bits))
    assert "as ONNX stores it)" in allocation_statements(outcome)[0]


def test_activations_may_be_chosen_too(tmp_path, study) -> None:
    done = allocated(study, bitops="0.5x", activation_bits=(4, 8), criterion="additive").allocated
    assert done.uses["bitops"] <= done.limits["bitops"]
    assert set(done.activation_bits.values()) <= {4, 8}
    # Both branches of the addition are read on one grid.
    assert done.along == "bitops"


def test_the_front_rises_where_all_that_is_limited_is_a_product_of_two_choices(study) -> None:
    done = allocated(
        study, bitops="0.5x", activation_bits=(4, 8), criterion="additive", out=study / "front.json"
    ).allocated
    spent = [point.uses["bitops"] for point in done.front]
    uniform = {int(point.words.split()[1]): point.uses["bitops"] for point in done.uniform}
    assert spent == sorted(spent)
    assert spent[0] == pytest.approx(uniform[2] / 2)  # activations at 4 bits and not at 8
    assert spent[-1] > uniform[4]


def test_layers_are_listed_in_the_order_of_the_network(outcome) -> None:
    assert list(outcome.allocated.bits) == [name for name in outcome.layers["name"] if name in outcome.allocated.bits]
    assert list(outcome.allocated.bits) == ["loud", "faint", "head"]


def test_several_limits_hold_at_once(study) -> None:
    done = allocated(study, size="0.6x", bitops="0.4x", criterion="additive").allocated
    assert done.uses["size"] <= done.limits["size"]
    assert done.uses["bitops"] <= done.limits["bitops"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "no limit was given"),
        ({"size": "1bits"}, "nearest feasible is size"),
        ({"size": "4bits", "criterion": "hawk"}, "'hawk'.*nearest.*hawq"),
        ({"latency_limit": "3"}, "says nothing without --latency"),
        ({"size": "4bits", "latency": "nothing.csv"}, "says nothing without --latency-limit"),
        ({"latency_limit": "3", "latency": "nothing.csv"}, "cannot be read"),
    ],
)
def test_a_mistake_is_one_line(study, options, reason) -> None:
    with pytest.raises(QuantopsyError, match=reason) as error:
        allocated(study, **options)
    assert "\n" not in str(error.value)


class Recurrent(Unequal):
    """Its head runs twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(super().forward(x).relu())


def test_layers_that_share_a_weight_get_the_same_bits(tmp_path) -> None:
    torch.manual_seed(0)
    model, data = Recurrent().eval(), many()
    qp.analyze(model, data, out=tmp_path, bits=(3, 8), mode="screen", metric="agreement")
    done = qp.allocate(tmp_path, model=model, data=data, size="5bits", criterion="hawq").results.allocated
    bits = dict(done.bits)
    assert len(bits) == 4
    assert len({width for name, width in bits.items() if name not in ("loud", "faint")}) == 1
    assert done.uses["size"] <= 5 * (12 + 300 + 16) / 8
