"""A study of a calibration set: right sets pass, every planted mistake is named, nothing is run twice."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import sample_models
import torch
from photographs import MEAN, STD, normalised, photographs, pixels
from torch.utils.data import ConcatDataset, Subset, TensorDataset

import quantopsy as qp
from quantopsy.analysis.calibration.document import document
from quantopsy.analysis.calibration.examination import examine
from quantopsy.analysis.calibration.study import _look, _made_ready
from quantopsy.analysis.progress import Silent
from quantopsy.analysis.schemes import at_bits
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Given
from quantopsy.core import QuantopsyError
from quantopsy.engine.exact import ExactEngine
from quantopsy.report.calibration.words import lead, statements

HELD_OUT = photographs(120, seed=100)


def checked(calibration, **options):
    return qp.check_calibration(sample_models.network(), HELD_OUT, calibration, draws=3, **options)


def looked_at(calibration):
    """What the statistics alone say: no run."""
    settings = Settings(bits=(8,), mode="exact")
    subject = _made_ready(Given(sample_models.network(), HELD_OUT, calibration=calibration), settings, Silent())
    return examine(_look(subject, at_bits(subject.full, 8), Silent()), 255)


def changed(n: int, change) -> TensorDataset:
    return TensorDataset(change(pixels(n, 0)))


def with_one(n: int, image: torch.Tensor) -> TensorDataset:
    x = photographs(n).tensors[0].clone()
    x[5] = image
    return TensorDataset(x)


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A right set, studied, and the folder."""
    folder = tmp_path_factory.mktemp("calibration")
    return checked(photographs(), select=6, out=folder), folder


def test_a_right_set_is_not_wrong(right) -> None:
    study, _ = right
    assert study.verdict.kind == "enough"
    assert study.verdict.needed is not None
    assert study.images == study.distinct == 64
    assert study.outliers.images == ()
    assert not study.duplicates.equal
    assert not any(shift.differs for shift in study.shifts)


def test_right_sets_raise_no_more_alarms_than_stated() -> None:
    # Four kinds of 1 in 100: above 4 of 24 comes with probability 0.003.
    assert sum(looked_at(photographs(40, seed)).different for seed in range(24)) <= 4


MISTAKES = {
    "not normalised": (lambda x: x, "range"),
    "0 to 1": (lambda x: x / 255, "range"),
    "no mean": (lambda x: x / STD, "range"),
    "BGR": (lambda x: normalised(x).flip(1), "order"),
    "BGR before": (lambda x: normalised(x.flip(1)), "order"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_preprocessing_is_named(name) -> None:
    change, kind = MISTAKES[name]
    found = looked_at(changed(100, change))
    assert found.mistaken
    (shift,) = found.shifts
    assert (shift.order is not None and shift.order.channels == (2, 1, 0)) == (kind == "order")
    assert shift.range_differs == (kind == "range")


OUTLIERS = {
    "bright": lambda: (pixels(64, 0)[5] * 8 - MEAN) / STD,
    "not normalised": lambda: pixels(64, 0)[5],
}


@pytest.mark.parametrize("name", OUTLIERS)
def test_one_image_that_does_not_belong_is_named_and_what_it_costs(name) -> None:
    study = checked(with_one(64, OUTLIERS[name]()))
    assert study.verdict.kind == "wrong"
    assert study.outliers.images == (5,)
    assert study.names == {5: "5"}
    assert study.outliers.factor > 2
    assert study.cleaned is not None
    assert study.cleaned.images == 63
    assert study.cleaned.noise < study.given.noise
    assert not any(shift.differs for shift in study.shifts)


def test_too_few_are_told_and_how_many_would_do() -> None:
    study = checked(photographs(4))
    assert study.verdict.kind == "too few"
    assert study.verdict.source == "evaluation"
    assert study.verdict.needed is None or 4 < study.verdict.needed <= 60
    assert (study.growth["source"] == "evaluation").any()


def test_duplicates_count_once() -> None:
    eight = photographs(8)
    study = checked(ConcatDataset([eight] * 6))
    assert study.images == 48
    assert study.distinct == 8
    assert len(study.duplicates.equal) == 8
    assert study.duplicates.equal[0] == (0, 8, 16, 24, 32, 40)
    assert study.growth["size"].max() == 8 or (study.growth["source"] == "evaluation").any()


def test_images_in_both_sets_blank_and_bad_ones_are_named() -> None:
    x = photographs(40).tensors[0].clone()
    x[3] = HELD_OUT[17][0]
    x[4] = 0.5
    x[6, 0, 2, 2] = torch.nan
    study = checked(TensorDataset(x))
    assert study.duplicates.shared == (3,)
    assert study.outliers.blank == (4,)
    assert len(study.bad) == 1
    assert "image 6 " in study.bad[0]
    assert study.images == 39
    assert study.verdict.kind != "wrong"


def test_numbers_are_those_of_an_analysis(right, tmp_path) -> None:
    study, _ = right
    analysed = qp.analyze(
        sample_models.network(), HELD_OUT, calibration=photographs(), bits=(8,), mode="exact", out=tmp_path
    )
    whole = analysed.whole().iloc[0]
    assert study.given.value == whole["value"]
    assert study.given.noise == pytest.approx(whole["noise"], rel=1e-6)
    assert study.given.loss.value == pytest.approx(whole["degradation"])


def test_a_selection_is_a_calibration_set(right) -> None:
    study, folder = right
    assert study.selection is not None
    listed = (folder / "selected.txt").read_text().split()
    assert listed == list(study.selection.entries)
    again = checked(f"photographs:photographs@{folder / 'selected.txt'}", sizes=(6,))
    assert again.images == 6
    assert again.given.noise == pytest.approx(study.selection.outcome.noise, rel=1e-6)
    assert study.selection.coverage_worst > study.selection.random_coverage_worst


def test_growth_says_what_subsets_cover(right) -> None:
    study, _ = right
    growth = study.growth
    whole = growth[growth["size"] == 64].iloc[0]
    assert whole["coverage_worst"] == 1.0
    assert whole["value"] == study.given.value
    assert growth.groupby("draw")["coverage"].apply(lambda draw: draw.iloc[:-1].is_monotonic_increasing).all()
    # One image in n + 1 is beyond an end: of most activations here both are in use.
    one = growth[growth["size"] == 16]["beyond"].mean()
    assert 0.3 / 17 < one < 3 / 17
    run = growth[growth["value"].notna()]["size"].unique()
    assert len(run) < len(growth["size"].unique())
    assert study.verdict.needed in run


def test_asked_for_sizes_are_all_run(tmp_path) -> None:
    study = checked(photographs(), sizes=(2, 8, 64), out=tmp_path)
    assert study.growth["value"].notna().all()
    assert sorted(study.growth["size"].unique()) == [2, 8, 64]


def test_what_was_run_is_not_run_again(right, monkeypatch) -> None:
    study, folder = right

    def run_tile(*_):
        raise AssertionError("run again")

    monkeypatch.setattr(ExactEngine, "run_tile", run_tile)
    again = checked(photographs(), select=6, out=folder)
    assert {**document(again), "seconds": 0} == {**document(study), "seconds": 0}


def test_the_document_is_json(right) -> None:
    study, _ = right
    plain = json.loads(json.dumps(document(study), allow_nan=False))
    assert plain["verdict"]["kind"] == "enough"
    assert plain["selection"]["images"] == list(study.selection.entries)
    assert len(plain["activations"]) == len(study.activations)


def test_held_out_clipping_is_measured(right) -> None:
    study, _ = right
    x, held = photographs().tensors[0], HELD_OUT.tensors[0]
    row = study.activations.set_index("activation").loc["x"]
    assert row["low"] == pytest.approx(float(x.min()), abs=0.03)
    step = (row["high"] - row["low"]) / 255
    outside = (held < row["low"] - step) | (held > row["high"] + step)
    assert row["images"] == pytest.approx(float(outside.flatten(1).any(1).double().mean()))
    assert study.activations["share"].is_monotonic_decreasing
    assert np.isfinite(study.activations.drop(columns="activation").to_numpy(dtype=float)).all()


REFUSED = {
    "select 65": {"select": 65},
    "sizes 100": {"sizes": (4, 100)},
    "draws 1": {"draws": 1},
    "select 0": {"select": 0},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_is_refused(name) -> None:
    options = {"draws": 3, **REFUSED[name]}
    with pytest.raises(QuantopsyError, match=name):
        qp.check_calibration(sample_models.network(), HELD_OUT, photographs(), **options)


def test_a_subset_of_a_folder_study_is_another_experiment(right) -> None:
    _, folder = right
    with pytest.raises(QuantopsyError, match="another experiment"):
        checked(Subset(photographs(), range(40)), out=folder)


def test_what_differs_without_a_measurable_effect_is_not_called_wrong() -> None:
    study = checked(changed(64, lambda x: normalised(255 * (x / 255) ** 1.6)))
    assert any(shift.location_differs for shift in study.shifts)
    assert not any(shift.range_differs for shift in study.shifts)
    assert study.cost.low <= 0.0
    assert study.verdict.kind == "different"
    assert lead(study).startswith("The 64 calibration images are different, without a measurable effect: ")
    assert "  " not in " ".join(statements(study))


def test_a_loss_without_a_unit_is_said_in_plain_words() -> None:
    study = checked(photographs(4))
    nothing = study.growth["loss"].mask(study.growth["loss"].notna(), 0.0)
    bare = replace(study, unit="", growth=study.growth.assign(loss=nothing))
    text = " ".join(statements(bare))
    assert "lose next to nothing of" in text
    assert "  " not in text
