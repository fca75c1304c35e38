"""The main job: what a study promises, whatever happens while it is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sample_models
import torch

import quantopsy as qp
from quantopsy.analysis.results import CELL_COLUMNS
from quantopsy.study import FILE, open_existing

BITS = (3, 8)


def study(out: Path | None = None, **options):
    """The sample network analysed."""
    return qp.analyze(sample_models.network(), sample_models.data(), bits=BITS, out=out, **options)


def same_numbers(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Equal but for the clock."""
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"), check_exact=True)


def test_a_study_has_a_row_for_every_cell_and_its_files(tmp_path) -> None:
    found = study(tmp_path)
    frame = found.frame()
    assert tuple(frame.columns) == CELL_COLUMNS
    assert len(frame) == 9 * len(BITS)
    assert (frame["samples"] == sample_models.COUNT).all()
    assert (frame["method"] == "exact").all()
    assert (frame["degradation_low"] <= frame["degradation"]).all()
    assert (frame["degradation"] <= frame["degradation_high"]).all()
    written = pd.read_csv(tmp_path / "cells.csv")
    np.testing.assert_allclose(written["noise"], frame["noise"])
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert (tmp_path / FILE).exists()


def test_the_numbers_are_of_the_definition(tmp_path) -> None:
    found = study(tmp_path)
    x, y = sample_models.data().tensors
    with torch.no_grad():
        outputs = sample_models.network()(x)
    assert found.results.float_value == pytest.approx(100 * float((outputs.argmax(1) == y).double().mean()))
    row = found.frame().iloc[0]
    signal_energy = float(outputs.double().square().sum(1).mean())
    assert row["sqnr_db"] == pytest.approx(10 * np.log10(signal_energy / row["noise"]), rel=1e-6)
    whole = found.whole().set_index("bits")
    assert whole.loc[3, "noise_sum"] == pytest.approx(found.frame().query("bits == 3")["noise"].sum())
    assert whole.loc[8, "degradation"] == pytest.approx(found.results.float_value - whole.loc[8, "value"])


def test_a_layer_without_weights_is_measured_once_for_all_bits(tmp_path) -> None:
    frame = study(tmp_path).frame()
    pool = frame[frame["name"] == "pool"]
    assert pool["noise"].nunique() == 1
    with open_existing(tmp_path) as store:
        runs = {cell["run"] for cell in store.noted("cells") if cell["layer"] == int(pool["layer"].iloc[0])}
    assert len(runs) == 1


def test_fewer_bits_make_more_noise() -> None:
    frame = study().frame().pivot(index="name", columns="bits", values="noise")
    weighted = frame.loc[["stem.0", "depthwise.0", "left", "right.0", "head"]]
    assert (weighted[3] > weighted[8]).all()


def test_again_runs_nothing_and_more_samples_continue(tmp_path) -> None:
    small = study(tmp_path, samples=12, tile=4)
    assert (small.frame()["samples"] == 12).all()
    before = (tmp_path / FILE).stat().st_mtime_ns
    with open_existing(tmp_path) as store:
        tiles = store._connection.execute("SELECT COUNT(*) FROM tile").fetchone()[0]
    study(tmp_path, samples=12, tile=4)
    with open_existing(tmp_path) as store:
        assert store._connection.execute("SELECT COUNT(*) FROM tile").fetchone()[0] == tiles
    more = study(tmp_path, tile=4)
    assert (more.frame()["samples"] == sample_models.COUNT).all()
    assert before
    fresh = study(tile=4)
    np.testing.assert_allclose(more.frame()["noise"], fresh.frame()["noise"], rtol=1e-6)
    assert more.frame()["degradation"].tolist() == fresh.frame()["degradation"].tolist()


def test_another_bit_width_joins_the_study(tmp_path) -> None:
    study(tmp_path)
    found = qp.analyze(sample_models.network(), sample_models.data(), bits=(5,), out=tmp_path)
    assert set(found.frame()["bits"]) == {5}
    assert set(study(tmp_path).frame()["bits"]) == set(BITS)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"metric": "agreement"}, "metric"),
        ({"scheme": "per-channel"}, "scheme"),
        ({"activation_bits": 6}, "activation bits"),
        ({"calibration_samples": 7}, "calibration samples"),
    ],
)
def test_a_changed_setting_is_refused_by_name_and_nothing_is_lost(tmp_path, change, name) -> None:
    before = study(tmp_path).frame()
    with pytest.raises(qp.QuantopsyError, match=rf"is of another experiment: {name} was"):
        study(tmp_path, **change)
    same_numbers(qp.open_study(tmp_path).frame(), before)


def test_a_changed_model_is_refused(tmp_path) -> None:
    study(tmp_path)
    with pytest.raises(qp.QuantopsyError, match="another experiment: model was"):
        qp.analyze(sample_models.other_network(), sample_models.data(), bits=BITS, out=tmp_path)


SCRIPT = """
import sys; sys.path[:0] = {path!r}
import quantopsy as qp, sample_models, torch, time
from quantopsy.engine import exact
torch.set_num_threads(1)
if {slow}:
    run = exact.ExactEngine._run
    exact.ExactEngine._run = lambda self, *a: (time.sleep(0.02), run(self, *a))[1]
qp.analyze(sample_models.network(), sample_models.data(), bits=(3, 8), out={out!r}, tile=4)
"""


def start(out: Path, slow: bool) -> subprocess.Popen:
    """An analysis in a process of its own."""
    path = [str(Path(__file__).parents[1])]
    return subprocess.Popen([sys.executable, "-c", SCRIPT.format(path=path, out=str(out), slow=slow)])


def test_kill_9_loses_at_most_the_tile_in_flight_and_the_numbers_are_the_same(tmp_path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, slow=True)
    deadline = time.monotonic() + 120
    finished = 0
    while finished < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        if (killed / FILE).exists():
            with open_existing(killed) as store:
                cells = store.noted("cells", [])
                finished = len(store.images(cells[0]["run"])) // 4 if cells else 0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run must have been killed in the middle"
    with open_existing(killed) as store:
        kept = len(store.images(store.noted("cells")[0]["run"]))
    assert finished * 4 <= kept < sample_models.COUNT
    assert start(killed, slow=False).wait() == 0
    assert start(whole, slow=False).wait() == 0
    same_numbers(pd.read_csv(killed / "cells.csv"), pd.read_csv(whole / "cells.csv"))


def test_a_stopped_run_still_writes_its_table_and_page(tmp_path, monkeypatch) -> None:
    from quantopsy.engine.exact import ExactEngine

    original, calls = ExactEngine.run_tile, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(ExactEngine, "run_tile", interrupted)
    found = study(tmp_path, tile=8)
    assert not found.results.complete
    assert (found.frame()["samples"] == 16).all()
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "cells.csv").exists()


def test_without_labels_the_metric_is_agreement() -> None:
    found = qp.analyze(sample_models.network(), sample_models.unlabelled(), bits=(3,))
    assert found.results.metric == "agreement"
    assert found.results.float_value == 100


def test_any_metric() -> None:
    import torchmetrics

    metric = torchmetrics.classification.MulticlassF1Score(num_classes=5, average="macro")
    by_f1 = study(metric=metric)
    x, y = sample_models.data().tensors
    with torch.no_grad():
        expected = float(metric(sample_models.network()(x), y))
    assert by_f1.results.float_value == pytest.approx(expected, abs=1e-6)
    by_score = study(metric=sample_models.confidence)
    assert by_score.frame()["degradation"].notna().all()


def test_a_plan_decides_layer_by_layer() -> None:
    plan = {"layers": {"stem.*": {"weight": {"granularity": "per_channel"}, "input": None}, "left": {"weight": None}}}
    found = study(plan=plan)
    plain = study()
    changed = found.frame()["noise"].to_numpy() != plain.frame()["noise"].to_numpy()
    assert set(found.frame()["name"][changed]) == {"stem.0", "left"}
    with pytest.raises(qp.QuantopsyError, match=r"plan layer 'lefft'.*nearest are left"):
        study(plan={"layers": {"lefft": {"weight": {"bits": 4}}}})


def test_a_float_baseline_at_chance_is_said() -> None:
    found = qp.analyze(sample_models.network(), sample_models.random_labels(), bits=(8,), layers=("head",))
    assert any("chance level" in line for line in found.results.warnings)


def test_the_module_is_left_as_it_was() -> None:
    module = sample_models.network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    qp.analyze(module, sample_models.data(), bits=(3,))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("scheme", ["per-tensor", "per-channel"])
def test_an_affine_layer_has_a_vector_for_a_weight(scheme) -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Conv2d(3, 5, 3)).eval()
    found = qp.analyze(module, sample_models.unlabelled(), bits=(4,), scheme=scheme)
    assert found.frame()["op"].tolist() == ["batch_norm", "conv2d"]
    assert found.results.distributions["0"].channel_low.shape == (3,)


def test_a_guilty_layer_of_a_real_network_is_found(zoo, tmp_path) -> None:
    found = qp.analyze(
        zoo.network("mobilenet_v2_10"),
        zoo.images("mobilenet_v2_10", "imagenette_val", 48),
        calibration=zoo.images("mobilenet_v2_10", "imagenette_train", 32),
        bits=(8,),
        layers=("features.0.*", "features.1.*", "features.2.*"),
        out=tmp_path,
    )
    worst = found.frame().sort_values("noise").iloc[-1]
    assert worst["name"] == "features.1.conv.0.0"
    assert worst["degradation_low"] > 20
