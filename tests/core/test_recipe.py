"""A recipe reads back as it was written; what is no recipe is said so in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.core.recipe import Expected, Mended, Proof, Recipe, Repair, Step, StoredTensor

STEP = Step("a: clipped", ("a",), "free", True, "noise -3 %", (-1.0, -2.0, 0.5), (0.9, 0.8, 1.0), (3.0, 2.0, 4.0), 0.5)
EXPECTED = Expected("top1", "points", 30, 0.95, *[(1.0, 0.5, 1.5)] * 6)


def recipe() -> Recipe:
    plan = Plan.of({Site("a", "weight"): Spec(bits=4, rounding="given:0123456789ab"), Site("b", "output"): Spec()})
    return Recipe(
        plan,
        transforms=({"name": "equalization", "scales": {}},),
        encodings={"b": {"output": [{"grid": "uniform", "scale": 0.1}]}},
        given={"given:0123456789ab": StoredTensor.of("bool", (3,), b"\x05")},
        model={"name": "net", "weights": {"a": [2, 2]}},
        expected=EXPECTED,
        proof=Proof(*(StoredTensor.of("float64", (1, 1), bytes(8)),) * 3),
        steps=(STEP,),
        provenance={"seed": 1},
    )


def test_a_file_reads_back_as_it_was_written(tmp_path) -> None:
    path = recipe().save(tmp_path / "new" / "recipe.json")
    assert Recipe.load(path) == recipe()


def test_numbers_that_json_lacks_are_spelled_and_read_back(tmp_path: Path) -> None:
    inf, nan = float("inf"), float("nan")
    step = replace(STEP, words="NaN", layers=("Infinity",), change=(0.0, -inf, inf), noise=(nan, nan, nan))
    written = replace(recipe(), expected=replace(EXPECTED, lost=(0.5, -inf, inf)), steps=(step,))
    path = written.save(tmp_path / "recipe.json")

    def refused(literal: str) -> None:
        raise AssertionError(f"{literal} is no JSON")

    json.loads(path.read_text(), parse_constant=refused)
    found = Recipe.load(path)
    assert found.expected == written.expected
    assert replace(found.steps[0], noise=STEP.noise) == replace(step, noise=STEP.noise)
    assert all(map(isnan, found.steps[0].noise))


def test_recipes_with_literals_of_numbers_that_json_lacks_are_read_too(tmp_path: Path) -> None:
    path = recipe().save(tmp_path / "recipe.json")
    path.write_text(path.read_text().replace("-2.0", "-Infinity"))
    assert Recipe.load(path).steps[0].change == (-1.0, -float("inf"), 0.5)


def test_a_repair_reads_back_through_json() -> None:
    layers = (Mended("a", (4.0, 1.0), (9.0, 2.0)), Mended("b", (2.0, 3.0), None))
    done = Repair(8, "any", 0.5, True, (STEP,), EXPECTED, layers, (0.1, 0.0, 0.2), ("more bits",))
    assert Repair.from_json(json.loads(json.dumps(done.to_json()))) == done
    assert done.left == (("b", 0.75), ("a", 0.25))


@given(st.binary())
def test_given_bytes_survive(raw: bytes) -> None:
    assert StoredTensor.of("bool", (1,), raw).raw == raw


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no JSON"),
        ("[]", "no object with a 'plan'"),
        ('{"plan": {"layers": {}}}', "of format None"),
        ('{"format": 1, "plan": {}}', "does not read"),
        ('{"format": 1, "plan": {"layers": {"a": {"weight": {"bits": 99}}}}}', "not a valid value"),
        ('{"format": 1, "plan": {"layers": {}}, "steps": [{"words": "x"}]}', "does not read"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_file(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(QuantopsyError, match=reason) as error:
        Recipe.load(path)
    assert "recipe.json" in str(error.value)


def test_a_missing_file_is_named_with_what_writes_it(tmp_path) -> None:
    with pytest.raises(QuantopsyError, match=r"nothing\.json': there is no such file; run `quantopsy repair`"):
        Recipe.load(tmp_path / "nothing.json")
    with pytest.raises(QuantopsyError, match=rf"folder '{tmp_path}': it holds no recipe; run `quantopsy repair` or"):
        Recipe.load(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    ("provenance", "source"),
    [
        ({"bits": 4, "target": "qnn"}, "repair (4 bits, target qnn)"),
        ({"limits": {"size": 1.0, "bitops": 2.0}}, "allocate (limit on size and bitops)"),
        ({"trained from": "net:make", "training": {"method": "lsq"}}, "train (net:make, lsq)"),
        ({}, "an unnamed command"),
    ],
)
def test_a_recipe_names_what_wrote_it(provenance, source) -> None:
    assert Recipe(plan=Plan(), provenance=provenance).source == source
