"""The Python interface itself: names of arguments, and what results look like where they are shown."""

from __future__ import annotations

import pytest
import sample_models
from small_net import SmallNet

import quantopsy as qp


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> qp.Study:
    out = tmp_path_factory.mktemp("study")
    return qp.analyze(sample_models.network(), sample_models.many(), bits=(4,), mode="screen", out=out)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: qp.analyze(None, None, bit=[8]), "quantopsy.analyze 'bit': .* nearest are bits"),
        (lambda: qp.schemes(None, None, activation_bit=8), "quantopsy.schemes .* nearest are activation_bits"),
        (lambda: qp.check_calibration(None, None, None, sample=8), "check_calibration .* nearest are samples"),
        (lambda: qp.additivity("st", subset=8), "quantopsy.additivity .* nearest are subsets"),
        (lambda: qp.diagnose("st", layer="a"), "quantopsy.diagnose .* nearest are layers"),
        (lambda: qp.repair("st", tarket="qnn"), "quantopsy.repair 'tarket': .* nearest are target"),
        (lambda: qp.allocate("st", sizes="4bits"), "quantopsy.allocate .* nearest are size"),
        (lambda: qp.apply("st", sample=8), "quantopsy.apply .* nearest are samples"),
        (lambda: qp.train(None, None, out="out", epoch=2), "quantopsy.train .* nearest are epochs"),
        (lambda: qp.export_onnx("st", opsets=21), "quantopsy.export_onnx .* nearest are opset"),
        (lambda: qp.export_program("st", too="pt2e"), "quantopsy.export_program .* nearest are to"),
        (lambda: qp.parity("st", integer="tflite"), "quantopsy.parity .* nearest are integers"),
    ],
)
def test_an_argument_that_there_is_not_is_named_with_the_nearest(call, said) -> None:
    with pytest.raises(qp.QuantopsyError, match=said):
        call()


def test_target_is_what_the_command_line_calls_it(study) -> None:
    given = {"model": sample_models.network(), "data": sample_models.many()}
    with pytest.raises(qp.QuantopsyError, match="target 'tensorr'"):
        qp.repair(study.folder, target="tensorr", **given)


def test_a_class_is_no_model() -> None:
    with pytest.raises(qp.QuantopsyError, match=r"model SmallNet: this is a class; give an instance, .*SmallNet\(\)"):
        qp.analyze(SmallNet, sample_models.data())


def test_results_are_shown_in_a_line_with_their_folder(study, tmp_path) -> None:
    shown = repr(study)
    assert shown.startswith(f"<Study {study.folder}: ")
    assert "layer" in shown
    network, data = sample_models.network(), sample_models.many()
    schemes = qp.schemes(network, data, samples=20, out=tmp_path / "schemes")
    gate = qp.gate(study, study)
    rest = (schemes, qp.compare(study), gate)
    assert [repr(result).split(":")[0] for result in rest] == [
        f"<Schemes {tmp_path / 'schemes'}", "<Comparison", "<Gate"
    ]  # fmt: skip
    for result in (study, *rest):
        assert len(repr(result)) < 500
        assert "\n" not in repr(result)


def test_a_recipes_results_are_shown_in_a_line(study) -> None:
    given = {"model": sample_models.network(), "data": sample_models.many()}
    qp.allocate(study.folder, size="4bits", **given)
    applied = qp.apply(study.folder, **given)
    assert repr(applied).startswith("<Applied, recipe of allocate (limit on size): top1 ")
    assert len(repr(applied)) < 200
    file = study.folder / "model.onnx"
    for result, begins in (
        (qp.export_onnx(study.folder, file, samples=20, **given), f"<Delivered {file}: top1 "),
        (qp.export_program(study.folder, study.folder / "a.pt2", samples=20, **given), "<SavedProgram "),
        (qp.parity(study.folder, samples=20, **given), "<Parity on 20 images: top1 "),
    ):
        assert repr(result).startswith(begins)
        assert len(repr(result)) < 400
    found = qp.check_calibration(given["model"], given["data"], given["data"], calibration_samples=16, samples=40)
    assert repr(found).startswith("<CalibrationStudy of SmallNet: 16 calibration images, ")
