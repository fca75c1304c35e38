"""What is analysed, made ready once and again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import sample_models
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import quantopsy as qp
from quantopsy.analysis.phases import measure_plans
from quantopsy.analysis.progress import Silent
from quantopsy.analysis.schemes import at_bits
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Given, calibrated, make_ready, measuring, reopen
from quantopsy.core import QuantopsyError

MODEL, DATA = "sample_models:network", "sample_models:data"


def analyzed(out: Path, model: object = MODEL, data: object = DATA, **options: object) -> qp.Study:
    """A small exact study."""
    return qp.analyze(model, data, bits=(3, 8), out=out, mode="exact", **options)


def test_a_study_goes_on_from_what_its_analysis_was_given(tmp_path) -> None:
    study = analyzed(tmp_path, samples=24)
    with reopen(tmp_path, Silent()) as (store, subject):
        assert len(subject.order) == 24
        plan = at_bits(subject.full, 3)
        run = store.run(plan)
        before = store.result(run)
        ranges = calibrated(subject, [plan], Silent())
        with measuring(subject, store, ranges, Silent()) as bench:
            measure_plans(bench, {run: plan})  # nothing is left to measure
            other = store.run(at_bits(subject.full, 5))
            measure_plans(bench, {other: at_bits(subject.full, 5)})
        np.testing.assert_array_equal(store.result(run).energy, before.energy)
        found = store.result(other)
    assert sorted(found.images) == sorted(subject.order)
    noise = study.whole().set_index("bits")["noise"]
    assert noise[8] < found.energy.mean() < noise[3]


def test_settings_are_the_same_after_json() -> None:
    settings = Settings(bits=(4, 8), layers=("conv*",), changes={"weight": {"symmetric": True}}, tolerance=0.5)
    assert Settings.from_json(json.loads(json.dumps(asdict(settings)))) == settings


def test_a_python_object_is_asked_for_again(tmp_path) -> None:
    analyzed(tmp_path, model=sample_models.network())
    with (
        pytest.raises(QuantopsyError, match=r"its model was a Python object \(SmallNet\); give model="),
        reopen(tmp_path, Silent()),
    ):
        pass
    with reopen(tmp_path, Silent(), model=sample_models.network()) as (_, subject):
        assert len(subject.network.layers) == 9


def test_another_model_than_the_studys_is_refused(tmp_path) -> None:
    analyzed(tmp_path)
    with (
        pytest.raises(QuantopsyError, match="is of another experiment: model was"),
        reopen(tmp_path, Silent(), model=sample_models.other_network()),
    ):
        pass


def test_a_file_is_found_again_from_another_folder(tmp_path, monkeypatch) -> None:
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(sample_models.network(), (torch.randn(2, 3, 12, 12),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    monkeypatch.chdir(tmp_path)
    analyzed(tmp_path / "study", model="net.pt2")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with reopen(tmp_path / "study", Silent()) as (_, subject):
        assert len(subject.network.layers) == 9


def test_a_network_that_is_captured_already_is_taken_as_it_is() -> None:
    subject = make_ready(Given(sample_models.network(), sample_models.data()), Settings(), Silent())
    layer = subject.network.layers[0]
    tensors = {**subject.network.tensors, layer.weight: 2 * subject.network.tensors[layer.weight]}
    changed = make_ready(Given(replace(subject.network, tensors=tensors), sample_models.data()), Settings(), Silent())
    assert changed.network.names == subject.network.names
    assert changed.identity["model"] != subject.identity["model"]


def test_without_an_analysis_there_is_nothing_to_go_on_with(tmp_path) -> None:
    with pytest.raises(QuantopsyError, match=r"has no study\.sqlite"), reopen(tmp_path, Silent()):
        pass


class Changing(nn.Module):
    """Gives another result every time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).flatten(1) * (1.0 if torch.compiler.is_exporting() else 2.0)


def test_a_network_that_capturing_changes_is_refused() -> None:
    with pytest.raises(QuantopsyError, match="folding batch norms changes its output"):
        make_ready(Given(Changing(), sample_models.data()), Settings(), Silent())


def test_lists_of_vectors_are_no_guess_for_a_network_that_takes_both() -> None:
    linear = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    x = torch.randn(40, 16)
    batches = [x[:20], x[20:]]
    for ambiguous in (batches, iter(batches), [(batch, torch.zeros(20, dtype=torch.int64)) for batch in batches]):
        with pytest.raises(QuantopsyError, match=r"data 2 images of .*, 20x16.*give a Dataset of single images"):
            make_ready(Given(linear, ambiguous), Settings(), Silent())
    with pytest.raises(QuantopsyError, match="as batches of vectors alike"):
        make_ready(Given(linear, x, calibration=batches), Settings(), Silent())
    for plain in (x, list(x), TensorDataset(x), DataLoader(TensorDataset(x), batch_size=20)):
        subject = make_ready(Given(linear, plain), Settings(), Silent())
        assert [layer.output_shape for layer in subject.network.layers] == [(12,), (4,)]
    # Sequences of vectors, said to be so, and what a convolution does not take as a batch.
    sequences = make_ready(Given(linear, TensorDataset(torch.randn(8, 5, 16))), Settings(), Silent())
    assert sequences.network.layers[0].output_shape == (5, 12)
    signals = [torch.randn(4, 20) for _ in range(8)]
    convolution = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    assert len(make_ready(Given(convolution, signals), Settings(), Silent()).images) == 8


def test_a_study_of_another_metric_of_the_same_name_does_not_go_on(tmp_path) -> None:
    def score(factor):
        return lambda outputs, labels: factor * outputs[:, 0]

    first = analyzed(tmp_path, metric=score(1.0), samples=8)
    assert analyzed(tmp_path, metric=score(1.0), samples=8).results.float_value == first.results.float_value
    with pytest.raises(QuantopsyError, match=r"metric code was .*, now .*--fresh"):
        analyzed(tmp_path, metric=score(1000.0), samples=8)
    assert analyzed(tmp_path, metric=score(1000.0), samples=8, fresh=True).results.float_value == pytest.approx(
        1000.0 * first.results.float_value
    )


def test_another_loss_is_screened_anew(tmp_path) -> None:
    def screened(out, factor):
        study = qp.analyze(
            MODEL,
            DATA,
            bits=(3,),
            out=out,
            mode="screen",
            samples=8,
            loss=lambda outputs, labels: factor * nn.functional.cross_entropy(outputs, labels, reduction="none"),
        )
        return study.frame()["loss_change"].to_numpy()

    first = screened(tmp_path, 1.0)
    np.testing.assert_allclose(screened(tmp_path, 10.0), 10.0 * first, rtol=1e-4)
    np.testing.assert_array_equal(screened(tmp_path, 1.0), first)
