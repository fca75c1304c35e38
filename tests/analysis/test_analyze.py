"""The main job: what a study promises, whatever happens while it is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sample_models
import torch
from scipy.stats import sem, spearmanr

import quantopsy as qp
from quantopsy.analysis import phases
from quantopsy.analysis.results import CELL_COLUMNS
from quantopsy.analysis.settings import Settings
from quantopsy.study import FILE, FLOAT, open_existing

BITS = (3, 8)


def study(out: Path | None = None, mode: str = "exact", **options):
    """The sample network analysed."""
    return qp.analyze(sample_models.network(), sample_models.data(), bits=BITS, out=out, mode=mode, **options)


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
    assert whole["float_value"].to_list() == pytest.approx([found.results.float_value] * len(whole))


def test_the_sum_of_degradations_has_the_error_of_all_layers_together(tmp_path) -> None:
    whole = study(tmp_path).whole().set_index("bits")
    with open_existing(tmp_path) as store:

        def lost(run: int) -> np.ndarray:
            return (store.result(FLOAT).statistics - store.result(run).statistics)[:, 0]

        single = sum(lost(cell["run"]) for cell in store.noted("cells") if cell["bits"] == 3)
        beyond = single - lost(next(entry["run"] for entry in store.noted("whole") if entry["bits"] == 3))
    assert whole.loc[3, "degradation_sum_stderr"] == pytest.approx(100 * sem(beyond))


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
    found = qp.analyze(sample_models.network(), sample_models.data(), bits=(5,), out=tmp_path, mode="exact")
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
run = exact.ExactEngine._run
exact.ExactEngine._run = lambda self, *a: (time.sleep(0.02), run(self, *a))[1]
qp.analyze(sample_models.network(), sample_models.data(), bits=(3, 8), out={out!r}, tile=4, mode="exact")
"""


def start(out: Path) -> subprocess.Popen:
    """A slow analysis in a process of its own."""
    path = [str(Path(__file__).parents[1])]
    return subprocess.Popen([sys.executable, "-c", SCRIPT.format(path=path, out=str(out))])


@pytest.fixture
def one_thread():
    """As many threads as that process has: sums are added up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_kill_9_loses_at_most_the_tile_in_flight_and_the_numbers_are_the_same(tmp_path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed)
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
    for folder in (killed, whole):
        study(folder, tile=4)
    same_numbers(pd.read_csv(killed / "cells.csv"), pd.read_csv(whole / "cells.csv"))


def test_a_run_stopped_before_the_baseline_says_how_to_go_on(tmp_path, monkeypatch) -> None:
    from quantopsy.engine.exact import ExactEngine

    def interrupted(*_):
        raise KeyboardInterrupt

    def analyze() -> qp.Study:
        return qp.analyze("sample_models:network", "sample_models:data", bits=BITS, out=tmp_path, mode="exact")

    with monkeypatch.context() as patch:
        patch.setattr(ExactEngine, "run_tile", interrupted)
        patch.setattr(ExactEngine, "float_pass", interrupted)
        with pytest.raises(KeyboardInterrupt):
            analyze()
    for command in (qp.diagnose, qp.repair, partial(qp.allocate, size="4bits")):
        with pytest.raises(qp.QuantopsyError, match="float was not measured; run the same `quantopsy analyze` again"):
            command(tmp_path)
    assert analyze().results.complete


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
    # A metric of torch is computed again for every resample.
    given = sample_models.network(), sample_models.data()
    by_f1 = qp.analyze(*given, bits=(4,), mode="exact", metric=metric, layers=("head",))
    x, y = sample_models.data().tensors
    with torch.no_grad():
        expected = float(metric(sample_models.network()(x), y))
    assert by_f1.results.float_value == pytest.approx(expected, abs=1e-6)
    by_score = study(metric=sample_models.confidence, layers=("head",))
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


def test_a_float_baseline_at_chance_is_said_right_behind_it(command) -> None:
    for data, warned in (("random_labels", True), ("data", False)):
        options = ("--bits", "8", "--layers", "head", "--mode", "screen", "--out", data)
        code, _, err = command("analyze", "sample_models:network", "--data", f"sample_models:{data}", *options)
        said = " ".join(err.split())
        assert code == 0
        assert ("! float top1 is not certainly better than guessing among 5 classes (20): preprocess" in said) == warned


def test_the_module_is_left_as_it_was() -> None:
    module = sample_models.network().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    qp.analyze(module, sample_models.data(), bits=(3,))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(part.training for part in module.modules())
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
        mode="exact",
    )
    worst = found.frame().sort_values("noise").iloc[-1]
    assert worst["name"] == "features.1.conv.0.0"
    assert worst["degradation_low"] > 20


def many_data(count: int = 96) -> torch.utils.data.TensorDataset:
    """More images, labelled with what the float network says, one in eight wrongly."""
    x = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        labels = sample_models.network()(x).argmax(1)
    labels[::8] = (labels[::8] + 1) % 5
    return torch.utils.data.TensorDataset(x, labels)


def cross_entropy(outputs: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """A user's loss."""
    return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")


def whole_without_clock(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Tables of whole networks, equal but for the clock."""
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"), check_exact=True)


def test_mode_screen_predicts_every_cell_and_runs_none(tmp_path) -> None:
    found = study(tmp_path, mode="screen")
    frame = found.frame()
    assert tuple(frame.columns) == CELL_COLUMNS
    assert len(frame) == 9 * len(BITS)
    assert (frame["method"] == "screened").all()
    assert (frame["noise"] == frame["screened_noise"]).all()
    assert (frame["noise"] > 0).all()
    assert (frame["samples"] == sample_models.COUNT).all()
    assert (frame["degradation_low"] <= frame["degradation_high"]).all()
    assert frame["agreement"].between(0, 1).all()
    assert set(frame["verdict"]) <= {"hurts", "harmless", "undecided"}
    assert found.results.complete
    assert found.results.check is None
    assert len(found.whole()) == 0
    assert (tmp_path / "report.html").exists()
    with open_existing(tmp_path) as store:
        assert all(len(store.images(cell["run"])) == 0 for cell in store.noted("cells"))
        assert {phase for phase, *_ in store.costs()} == {"float", "screen"}


def test_what_the_screen_predicts_is_near_what_is_measured() -> None:
    predicted = study(mode="screen").frame().query("bits == 8")
    measured = study(mode="exact").frame().query("bits == 8")
    ratio = predicted["noise"].to_numpy() / measured["noise"].to_numpy()
    assert 0.7 < np.median(ratio) < 1.4


def test_mode_auto_labels_what_it_ran_and_what_it_only_screened(tmp_path) -> None:
    found = qp.analyze(
        sample_models.network(), many_data(), bits=(2, 3, 4, 6, 8), out=tmp_path, mode="auto", budget="9"
    )
    frame = found.frame()
    assert len(frame) == 9 * 5
    assert set(frame["method"]) == {"exact", "screened"}
    assert frame["screened_noise"].notna().all()
    assert found.results.complete
    assert found.results.check is not None
    assert found.results.open_cells >= 0
    with open_existing(tmp_path) as store:
        run_of = {(cell["layer"], cell["bits"]): cell["run"] for cell in store.noted("cells")}
        for row in frame.itertuples():
            ran = len(store.images(run_of[row.layer, row.bits]))
            assert (ran > 0) == (row.method == "exact"), row
            if row.method == "exact":
                assert ran == row.samples


def test_where_no_further_look_is_affordable_auto_ends_with_what_is_open(tmp_path, monkeypatch) -> None:
    looks = []
    monkeypatch.setattr("quantopsy.analysis.auto._affordable", lambda runs, *_: looks.append(runs) or [])
    found = qp.analyze(sample_models.network(), many_data(1000), bits=(2, 3, 4, 6, 8), out=tmp_path, budget="100000")
    (asked,) = looks
    assert len(asked) > 0
    assert found.results.complete
    assert found.results.open_cells >= len(asked)


def test_mode_auto_is_the_default() -> None:
    assert Settings().mode == "auto"


def test_auto_without_a_limit_leaves_nothing_open(tmp_path) -> None:
    found = qp.analyze(sample_models.network(), many_data(), bits=(3, 8), out=tmp_path, budget="100000")
    assert found.results.open_cells == 0
    assert set(found.frame()["verdict"]) <= {"hurts", "harmless", "undecided"}
    assert (found.whole()["samples"] > 0).all()
    assert found.whole()["noise_predicted"].notna().all()


def test_verdicts_that_auto_settles_are_those_of_exact() -> None:
    data = many_data()
    options = {"bits": (2, 4, 8), "tolerance": 10.0}
    auto = qp.analyze(sample_models.network(), data, budget="100000", **options).frame()
    exact = qp.analyze(sample_models.network(), data, mode="exact", **options).frame()
    assert (exact["samples"] == len(data)).all()
    both = auto["verdict"].ne("undecided") & exact["verdict"].ne("undecided")
    assert both.mean() > 0.3
    assert (auto["verdict"][both] == exact["verdict"][both]).mean() >= 0.95


def test_exact_after_auto_fills_every_cell_with_the_numbers_of_a_fresh_run(tmp_path) -> None:
    kept, fresh = tmp_path / "kept", tmp_path / "fresh"
    data = many_data()
    options = {"bits": (2, 4, 8), "tile": 32}
    qp.analyze(sample_models.network(), data, out=kept, budget="40", **options)
    filled = qp.analyze(sample_models.network(), data, out=kept, mode="exact", **options)
    alone = qp.analyze(sample_models.network(), data, out=fresh, mode="exact", **options)
    assert (filled.frame()["samples"] == len(data)).all()
    assert (filled.frame()["method"] == "exact").all()
    # Images that auto drew ran in other tiles: noise is the same up to float rounding, and hits are the same.
    for column in ("degradation", "degradation_low", "degradation_high", "agreement", "verdict"):
        assert filled.frame()[column].tolist() == alone.frame()[column].tolist(), column
    np.testing.assert_allclose(filled.frame()["noise"], alone.frame()["noise"], rtol=1e-3)
    assert filled.whole()["value"].tolist() == alone.whole()["value"].tolist()
    assert filled.results.complete


class Stopping:
    """A progress that stops the run once so many images of a phase are done."""

    def __init__(self, phase: str, after: int) -> None:
        self.phase, self.after, self.now = phase, after, ""
        self.totals: dict[str, float] = {}

    def start(self, phase: str, total: float) -> None:
        self.now = phase
        self.totals.setdefault(phase, total)

    def advance(self, amount: float) -> None:
        if self.now == self.phase:
            self.after -= amount
            if self.after <= 0:
                raise KeyboardInterrupt

    def say(self, line: str) -> None: ...


@pytest.mark.parametrize("mode", ["screen", "auto"])
def test_a_screen_that_was_stopped_goes_on_and_ends_with_the_same_numbers(tmp_path, mode) -> None:
    options = {"mode": mode, "tile": 8, "budget": "100000" if mode == "auto" else None}
    stopped = study(tmp_path / "stopped", progress=Stopping("screen", 9), **options)
    assert not stopped.results.complete
    assert (tmp_path / "stopped" / "report.html").exists()
    with open_existing(tmp_path / "stopped") as store:
        done = sum(len(tile.images) for tile in store.screened(store.noted("screen")))
    assert 0 < done < sample_models.COUNT
    going_on = Stopping("never", 1)
    resumed = study(tmp_path / "stopped", progress=going_on, **options)
    assert going_on.totals["screen"] == sample_models.COUNT - done
    whole = study(tmp_path / "whole", **options)
    assert resumed.results.complete
    same_numbers(resumed.frame(), whole.frame())
    whole_without_clock(resumed.whole(), whole.whole())


def test_a_screen_that_is_there_is_not_done_again(tmp_path) -> None:
    first = study(tmp_path, mode="screen")
    watching = Stopping("never", 1)
    again = study(tmp_path, mode="screen", progress=watching)
    assert watching.totals["screen"] == 0
    same_numbers(first.frame(), again.frame())


def test_a_screen_in_bfloat16_is_checked_against_float32(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(phases, "RANK_IMAGES", 16)  # the others are left to bfloat16
    monkeypatch.setattr(phases, "HALF_RANK", 0.8)  # which few images scatter about
    options = {"mode": "screen", "tile": 8}
    single, halved = study(**options).frame(), study(tmp_path / "halved", precision="bf16", **options)
    found = halved.frame()
    assert "bf16" not in " ".join(halved.results.warnings)
    assert (found["noise"] != single["noise"]).any()
    assert spearmanr(found["noise"], single["noise"]).statistic > 0.95
    watching = Stopping("never", 1)
    again = study(tmp_path / "halved", precision="bf16", progress=watching, **options)
    assert watching.totals["screen"] == 0
    same_numbers(again.frame(), found)


def test_where_bfloat16_does_not_rank_as_float32_does_the_screen_goes_on_in_float32(monkeypatch) -> None:
    monkeypatch.setattr(phases, "HALF_RANK", 1.1)
    options = {"mode": "screen", "tile": 8}
    refused = study(precision="bf16", **options)
    assert any(line.startswith("Screened in float32, not in bf16: its rank") for line in refused.results.warnings)
    same_numbers(refused.frame(), study(**options).frame())


def test_a_budget_is_for_the_screen_that_is_asked_for(tmp_path) -> None:
    study(tmp_path, mode="screen")
    study(tmp_path, mode="auto", budget="2")
    with pytest.raises(qp.QuantopsyError, match="the screen alone takes about 8 passes"):
        study(tmp_path, mode="auto", budget="2", seed=1)


def test_auto_goes_on_from_a_screen(tmp_path) -> None:
    study(tmp_path, mode="screen")
    watching = Stopping("never", 1)
    study(tmp_path, mode="auto", progress=watching)
    assert watching.totals["screen"] == 0


def test_the_same_seed_gives_the_same_tables_and_another_one_others() -> None:
    first, again, other = (study(mode="screen", seed=seed, noise_probes=2).frame() for seed in (4, 4, 5))
    same_numbers(first, again)
    assert (first["noise"] != other["noise"]).any()
    one, two = (study(mode="auto", seed=1, budget="100000") for _ in range(2))
    same_numbers(one.frame(), two.frame())
    whole_without_clock(one.whole(), two.whole())


def test_a_budget_too_small_for_the_screen_is_one_line_with_what_it_needs(tmp_path) -> None:
    with pytest.raises(
        qp.QuantopsyError,
        match=r"^budget of 2 passes: the screen alone takes about 8 passes; give more, or --mode screen",
    ):
        study(tmp_path, mode="auto", budget="2")
    with pytest.raises(
        qp.QuantopsyError, match=r"^budget of 0.001 s: up to the end of the screen it takes about .* s; give"
    ):
        study(tmp_path, mode="auto", budget="0.001s")


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"mode": "exact", "budget": "30"}, r"budget 30: mode exact has none"),
        ({"mode": "screen", "budget": "10m"}, r"budget 10m: mode screen has none"),
        ({"mode": "auto", "budget": "soon"}, r"budget 'soon': is no time"),
        ({"mode": "exat"}, r"mode 'exat'.*nearest are .*exact"),
        ({"engine": "cluster"}, r"engine 'cluster': there is none of that name; give local, ray or ray:ADDRESS"),
        ({"engine": "ray:nowhere"}, r"'nowhere' is no address of a Ray cluster"),
        ({"level": 1.0}, r"level 1: out of range"),
        ({"level": 0.4}, r"level 0.4: out of range"),
        ({"tolerance": -1.0}, r"tolerance -1: must not be negative"),
        ({"tolerance": float("nan")}, r"tolerance nan: must not be negative"),
        ({"noise_probes": 0}, r"noise_probes 0: must be positive"),
        ({"noise_probes": None}, r"noise_probes None: is no whole number"),
        ({"samples": 2.5}, r"samples 2.5: is no whole number"),
        ({"seed": -1}, r"seed -1: must not be negative"),
        ({"level": "x"}, r"level 'x': is no number"),
        ({"tolerance": "1"}, r"tolerance '1': is no number"),
        ({"max_memory": -1.0}, r"max_memory -1: must be positive"),
        ({"device": "meta"}, r"device 'meta': torch cannot compute on it here"),
        ({"device": 1.5}, r"device 1.5: is unknown to torch"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_made(tmp_path, change, pattern) -> None:
    with pytest.raises(qp.QuantopsyError, match=pattern):
        study(tmp_path / "study", **change)
    assert not (tmp_path / "study").exists()


@pytest.mark.skipif(torch.xpu.is_available(), reason="there is such a device")
def test_a_device_that_torch_knows_and_this_machine_lacks_is_refused() -> None:
    with pytest.raises(qp.QuantopsyError, match=r"device 'xpu': torch cannot compute on it here"):
        study(device="xpu")


def test_a_single_bit_width_needs_no_list() -> None:
    found = qp.analyze(sample_models.network(), sample_models.data(), bits=5, samples=8, mode="exact")
    assert found.results.bits == (5,)


@pytest.mark.parametrize("command", [qp.analyze, qp.schemes])
def test_a_call_that_fails_leaves_no_folder_behind(monkeypatch, tmp_path, command) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(qp.QuantopsyError, match="nonsense"):
        command(sample_models.network(), sample_models.data(), metric="nonsense")
    with pytest.raises(qp.QuantopsyError, match="bit-width 1"):
        command(sample_models.network(), sample_models.data(), bits=1)
    assert not list(tmp_path.glob("quantopsy-*"))


def test_a_users_loss_has_its_change_predicted() -> None:
    frame = study(mode="screen", loss=cross_entropy).frame()
    assert np.isfinite(frame["loss_change"]).all()
    assert (frame["loss_change"] != 0).any()
    x, y = sample_models.data().tensors
    assert study(mode="screen").frame()["loss_change"].isna().all()
    in_auto = study(mode="auto", loss=cross_entropy).frame()
    np.testing.assert_allclose(in_auto["loss_change"], frame["loss_change"], rtol=1e-4, atol=1e-7)
    assert len(x) == len(y)


def test_unlabelled_data_are_judged_by_agreement_in_auto() -> None:
    found = qp.analyze(sample_models.network(), sample_models.unlabelled(), bits=(2, 8), mode="auto")
    frame = found.frame()
    assert found.results.metric == "agreement"
    assert found.results.float_value == 100
    assert frame["degradation"].notna().all()
    measured = frame[frame["method"] == "exact"]
    assert len(measured)
    np.testing.assert_allclose(measured["degradation"], 100 * (1 - measured["agreement"]), atol=20)


def test_auto_runs_what_no_gradient_reaches() -> None:
    class Rounded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)
            self.head = torch.nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(torch.round(4 * self.first(x))).mean((2, 3)))

    torch.manual_seed(0)
    module = Rounded().eval()
    frame = qp.analyze(module, sample_models.unlabelled(), bits=(3, 8), mode="auto").frame()
    assert set(frame["name"]) >= {"first", "second", "head"}
    first = frame[frame["name"] == "first"]
    assert (first["method"] == "exact").all()
    assert first["screened_noise"].isna().all()
    assert (first["noise"] > 0).all()
    screened = qp.analyze(module, sample_models.unlabelled(), bits=(3, 8), mode="screen").frame()
    assert "first" not in set(screened["name"])


class Points(torch.nn.Module):
    """The largest of every feature over the points, by an operator that also gives its place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = torch.nn.Conv2d(3, 8, 1), torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.first(x)).flatten(2).max(2)[0])


class Masked(Points):
    """A product with a mask; beside the scores what is no value of images."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor]:
        y = self.first(x)
        y = self.head((y * (y > 0)).mean((2, 3)))
        return y, None, self.head.bias, y.square().mean()


class Regression(Points):
    """A number for each image, of layers that give just that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x)).mean((2, 3))
        return torch.relu(self.head(y)[:, 0] * self.head(y).mean(1)) + 1.5


def square(outputs, labels):
    """A score of each image, of numbers or of the first of several outputs."""
    return -(outputs[0].square().sum(1) if isinstance(outputs, tuple) else outputs.reshape(len(outputs), -1).sum(1))


@pytest.mark.parametrize("mode", ["exact", "screen", "auto"])
@pytest.mark.parametrize("model", [Points, Masked, Regression])
def test_an_ordinary_model_is_analysed_in_every_mode(model, mode) -> None:
    torch.manual_seed(0)
    frame = qp.analyze(model().eval(), sample_models.unlabelled(), bits=(3, 8), mode=mode, metric=square).frame()
    hidden = {"first"} if model is Masked and mode == "screen" else set()  # no gradient passes a comparison
    assert {"first", "head"} - hidden <= set(frame["name"])
    assert (frame["screened_noise" if mode == "screen" else "noise"] > 0).all()


def test_classes_are_asked_for_where_the_metric_needs_them() -> None:
    with pytest.raises(qp.QuantopsyError, match=r"metric 'top1': it compares classes and .* shape \(\d+,\)"):
        qp.analyze(Regression().eval(), sample_models.data(), bits=(3,))


def test_another_sample_count_joins_a_screen(tmp_path) -> None:
    study(tmp_path, mode="screen", samples=16, tile=8)
    found = study(tmp_path, mode="screen", tile=8)
    assert (found.frame()["samples"] == sample_models.COUNT).all()
    fresh = study(mode="screen", tile=8)
    np.testing.assert_allclose(found.frame()["noise"], fresh.frame()["noise"], rtol=1e-3)
