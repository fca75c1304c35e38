"""Profiles of back ends refuse what those cannot run."""

from __future__ import annotations

import json

import pytest

from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.remedy.target import check_start, profiles, target

SYMMETRIC = Spec(symmetric=True, signed=True, granularity="per_channel")


def test_every_profile_reads_and_takes_something() -> None:
    assert {
        "any",
        "per-tensor",
        "onnxruntime-cpu",
        "tensorrt",
        "openvino",
        "qnn",
        "xnnpack",
        "onnxruntime-avx2",
    } <= set(profiles())
    for profile in profiles().values():
        specs = [Spec(symmetric=s, granularity=g) for s in (True, False) for g in ("per_tensor", "per_channel")]
        assert any(profile.refuses("weight", "conv2d", spec) is None for spec in specs), profile.name
        assert profile.summary


@pytest.mark.parametrize(
    ("name", "role", "spec", "reason"),
    [
        ("per-tensor", "weight", SYMMETRIC, "no grids per channel"),
        ("per-tensor", "weight", None, "nothing stays float"),
        ("per-tensor", "weight", Spec(bits=4), "no 4 bits"),
        ("tensorrt", "output", Spec(), "only symmetric"),
        ("xnnpack", "weight", Spec(granularity="per_channel"), "only symmetric"),
        ("onnxruntime-cpu", "weight", Spec(kind="piecewise"), "no piecewise grids"),
        ("onnxruntime-cpu", "weight", Spec(tensors=2), "2 tensors"),
        ("per-tensor", "weight", Spec(correction="mean_variance"), "no offset per channel"),
        ("onnxruntime-cpu", "weight", SYMMETRIC, None),
        ("onnxruntime-cpu", "weight", SYMMETRIC.with_bits(4), None),
        ("onnxruntime-avx2", "weight", SYMMETRIC, "at most 7"),
        ("onnxruntime-avx2", "weight", SYMMETRIC.with_bits(7), None),
        ("onnxruntime-avx2", "weight", Spec(), None),
        ("openvino", "weight", Spec(), "only symmetric"),
        ("xnnpack", "output", Spec(symmetric=True), None),
        ("qnn", "output", Spec(bits=16), None),
        ("any", "weight", Spec(kind="piecewise", bits=4, granularity="per_group:8"), None),
    ],
)
def test_what_a_back_end_cannot_run_is_refused(name, role, spec, reason) -> None:
    found = target(name).refuses(role, "conv2d", spec)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_file_may_limit_single_operators(tmp_path) -> None:
    base = {"kinds": ["uniform"], "bits": [8], "granularity": ["per_tensor"], "symmetric": [False]}
    path = tmp_path / "chip.json"
    path.write_text(
        json.dumps(
            {"weights": base, "activations": base, "operators": {"concat": {"activations": {**base, "bits": [16]}}}}
        )
    )
    chip = target(path)
    assert chip.name == "chip"
    assert chip.refuses("output", "concat", Spec()) == "no 8 bits"
    assert chip.refuses("output", "conv2d", Spec()) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "cannot be read"), ("{}", "does not read"), ('{"weights": {"colour": 1}}', "no field 'colour'")],
)
def test_a_wrong_file_is_one_line(tmp_path, text, reason) -> None:
    path = tmp_path / "chip.json"
    path.write_text(text)
    with pytest.raises(QuantopsyError, match=reason):
        target(path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bits": 8}, r"\['bits'\] is 8, no array"),
        ({"bits": ["8"]}, r"\['bits'\]\[0\] is '8'"),
        ({"kinds": "uniform"}, r"\['kinds'\] is 'uniform', no array"),
        ({"symmetric": True}, r"\['symmetric'\] is True, no array"),
        ({"tensors": "2"}, r"\['tensors'\] is '2'"),
        ({"signed_bits": 7}, r"\['signed_bits'\] is 7, no array"),
    ],
)
def test_a_field_of_another_form_is_named(tmp_path, fields, reason) -> None:
    limits = {"kinds": ["uniform"], "bits": [8], "granularity": ["per_tensor"], "symmetric": [True, False]}
    path = tmp_path / "chip.json"
    path.write_text(json.dumps({"weights": {**limits, **fields}, "activations": limits}))
    with pytest.raises(QuantopsyError, match=reason):
        target(path)


def test_a_misspelt_part_is_not_passed_over(tmp_path) -> None:
    limits = {"kinds": ["uniform"], "bits": [8], "granularity": ["per_tensor"], "symmetric": [True], "signed_bits": []}
    both = {"weights": limits, "activations": limits}
    path = tmp_path / "chip.json"
    for wrong, field in (({"operator": {}}, "operator"), ({"operators": {"add": {"weihgts": limits}}}, "weihgts")):
        path.write_text(json.dumps({**both, **wrong}))
        with pytest.raises(QuantopsyError, match=f"no field '{field}'"):
            target(path)
    path.write_text(json.dumps({**both, "operators": {"conv2": {"weights": limits}}}))
    with pytest.raises(QuantopsyError, match=r"'conv2'.*nearest are conv2d"):
        target(path)
    path.write_text(json.dumps(both))
    assert target(path).refuses("weight", "conv2d", Spec(symmetric=True, signed=True)) == "no 8 bits of signed codes"


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(QuantopsyError, match="tensorrt"):
        target("tensorr")


def test_a_start_that_cannot_run_is_named() -> None:
    plan = Plan.of({Site("a", "weight"): Spec(), Site("a", "output"): Spec()})
    with pytest.raises(QuantopsyError, match=r"weight of 'a': only symmetric|output of 'a': only symmetric"):
        check_start(target("tensorrt"), plan, {"a": "conv2d"})
    check_start(target("per-tensor"), plan, {"a": "conv2d"})
