"""Specs and plans: frozen, validated when made, and the same again after JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantopsy.core import ROLES, Plan, QuantopsyError, Site, Spec

NAMES = ("features.0", "features.1", "head")
specs = st.builds(
    Spec,
    kind=st.sampled_from(["uniform", "piecewise"]),
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
    signed=st.sampled_from([None, True, False]),
    narrow=st.booleans(),
    granularity=st.sampled_from(["per_tensor", "per_channel", "per_group:7"]),
    range_estimator=st.sampled_from(["min_max", "percentile:99.9"]),
    correction=st.sampled_from(["none", "mean_variance"]),
    tensors=st.integers(1, 4),
    options=st.dictionaries(st.text(min_size=1, max_size=4), st.integers() | st.booleans(), max_size=2),
)
plans = st.dictionaries(st.builds(Site, st.sampled_from(NAMES), st.sampled_from(ROLES)), specs).map(Plan.of)


@given(specs)
def test_a_spec_survives_json(spec) -> None:
    again = Spec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)


@given(plans)
def test_a_plan_survives_json_with_its_fingerprint(plan) -> None:
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())), NAMES)
    assert again == plan
    assert again.fingerprint == plan.fingerprint


@given(plans, plans)
def test_different_plans_have_different_fingerprints(a, b) -> None:
    assert (a.fingerprint == b.fingerprint) == (a == b)


@given(plans, plans)
def test_union_lets_the_right_side_decide(a, b) -> None:
    union = a | b
    assert set(union) == set(a) | set(b)
    assert all(union[site] == (b if site in b else a)[site] for site in union)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 1},
        {"bits": 17},
        {"bits": 4.0},
        {"bits": True},
        {"granularity": "per_layer"},
        {"granularity": "per_group:0"},
        {"kind": ""},
        {"symmetric": 1},
        {"signed": "yes"},
        {"correction": "mean"},
        {"tensors": 0},
        {"options": 3},
    ],
)
def test_a_wrong_value_is_refused_and_quoted(fields) -> None:
    with pytest.raises(QuantopsyError, match="not a valid value; ") as caught:
        Spec(**fields)
    assert repr(next(iter(fields.values()))) in str(caught.value)


def test_a_spec_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Spec().bits = 4  # type: ignore[misc]


def test_patterns_nulls_and_a_base() -> None:
    base = Plan.of({Site(name, "input"): Spec() for name in NAMES})
    data = {"layers": {"features.*": {"input": None, "weight": {"bits": 4}}, "features.1": {"weight": {"bits": 3}}}}
    plan = Plan.from_json(data, NAMES, base)
    assert dict(plan.sites) == {
        Site("features.0", "weight"): Spec(bits=4),
        Site("features.1", "weight"): Spec(bits=3),
        Site("head", "input"): Spec(),
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "not an object with 'layers'"),
        ({"layers": {"haed": {}}}, "nearest are head"),
        ({"layers": {"head": 3}}, "not an object; map input, weight, output"),
        ({"layers": {"head": {"bias": {}}}}, "roles are input, weight, output"),
        ({"layers": {"head": {"weight": {"bit": 4}}}}, "known fields are .*bits"),
        ({"layers": {"head": {"weight": 4}}}, "give an object such as"),
    ],
)
def test_a_plan_that_cannot_be_read_says_why(data, said) -> None:
    with pytest.raises(QuantopsyError, match=said):
        Plan.from_json(data, NAMES)
