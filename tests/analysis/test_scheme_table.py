"""Whole networks under quantization schemes: the numbers are those of an analysis, and of the definition."""

from __future__ import annotations

import numpy as np
import pytest
import sample_models
import torch

import quantopsy as qp
from quantopsy.analysis import significance
from quantopsy.analysis.scheme_table import COLUMNS, QUESTIONS
from quantopsy.analysis.schemes import WHOLE_NETWORK_SCHEMES
from quantopsy.metrics import TopK
from quantopsy.study import FLOAT, open_existing


def table(out=None, **options):
    """The schemes of the sample network."""
    return qp.schemes(sample_models.network(), sample_models.data(), out=out, **{"bits": 4, **options})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return table(tmp_path_factory.mktemp("schemes"))


def row(found, scheme: str):
    return found.frame().set_index("scheme").loc[scheme]


def test_every_scheme_of_table_1_has_a_row(found) -> None:
    frame = found.frame()
    assert tuple(frame.columns) == COLUMNS
    assert frame["scheme"].tolist() == list(WHOLE_NETWORK_SCHEMES)
    assert (frame["samples"] == sample_models.COUNT).all()
    np.testing.assert_allclose(frame["degradation"], found.table.float_value - frame["value"])


def test_bits_are_named_where_something_is_quantized(found) -> None:
    frame = found.frame().set_index("scheme")
    assert frame["weight_bits"].isna().tolist() == [False] * 3 + [True] + [False] * 3
    assert frame["activation_bits"].isna().tolist() == [False] * 4 + [True] * 3


def test_several_bit_widths_have_activations_alone_once(tmp_path) -> None:
    frame = table(tmp_path, bits=(4, 8)).frame()
    assert len(frame) == 2 * 6 + 1
    assert frame["weight_bits"].dropna().unique().tolist() == [8, 4]


@pytest.mark.parametrize(
    ("scheme", "name"), [("per-tensor", "asymmetric per tensor"), ("per-channel", "symmetric per channel")]
)
def test_a_scheme_is_the_whole_network_of_an_analysis_with_it(found, scheme, name) -> None:
    study = qp.analyze(sample_models.network(), sample_models.data(), bits=(4,), scheme=scheme, mode="exact")
    whole, mine = study.whole().iloc[0], row(found, name)
    for column in ("noise", "sqnr_db", "value", "degradation", "degradation_low", "degradation_high", "agreement"):
        assert mine[column] == pytest.approx(whole[column]), column


def test_weights_alone_are_the_network_with_rounded_weights() -> None:
    """By hand, of a network without batch norms: each output channel on its symmetric grid."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(800, 5)
    )
    x = torch.randn(20, 3, 12, 12)
    found = qp.schemes(network, torch.utils.data.TensorDataset(x), bits=4)
    with torch.no_grad():
        before = network(x)
        for weight in (network[0].weight, network[3].weight):
            flat = weight.reshape(len(weight), -1)
            scale = (flat.abs().amax(1) / 7.5).reshape(-1, *[1] * (weight.dim() - 1))
            weight.copy_((weight / scale).round().clamp(-8, 7) * scale)
        noise = float((network(x) - before).square().sum(1).mean())
    assert row(found, "weights only, symmetric per channel")["noise"] == pytest.approx(noise, rel=1e-4)


def test_intervals_are_paired_and_verdicts_corrected(found) -> None:
    with open_existing(found.folder) as store:
        reference = store.result(FLOAT)
        runs = {run: store.result(run) for run in range(1, 8)}
    level = significance.corrected_level(0.95, len(WHOLE_NETWORK_SCHEMES))
    for (_, mine), result in zip(found.frame().iterrows(), runs.values(), strict=True):
        plain = significance.degradation(TopK(1), reference.statistics, result.statistics)
        strict = significance.degradation(TopK(1), reference.statistics, result.statistics, level=level)
        assert (mine["degradation_low"], mine["degradation_high"]) == (plain.low, plain.high)
        assert mine["verdict"] == significance.verdict(strict, found.table.tolerance)


def test_questions_are_differences_between_schemes(found) -> None:
    for _, mine in found.questions().iterrows():
        before, after = QUESTIONS[mine["question"]]
        assert mine["change"] == pytest.approx(row(found, after)["degradation"] - row(found, before)["degradation"])
        assert mine["change_low"] <= mine["change"] <= mine["change_high"]


def test_images_are_run_once_and_more_of_them_continue(tmp_path) -> None:
    fewer = table(tmp_path, samples=12, tile=4)
    assert (fewer.frame()["samples"] == 12).all()

    def tiles() -> int:
        with open_existing(tmp_path) as store:
            return store._connection.execute("SELECT COUNT(*) FROM tile").fetchone()[0]

    before = tiles()
    again = table(tmp_path, samples=12, tile=4)
    assert tiles() == before
    assert again.frame().drop(columns="seconds").equals(fewer.frame().drop(columns="seconds"))
    more, fresh = table(tmp_path, tile=4), table()
    np.testing.assert_allclose(more.frame()["noise"], fresh.frame()["noise"], rtol=1e-6)
    assert more.frame()["value"].tolist() == fresh.frame()["value"].tolist()


def test_a_killed_run_keeps_its_tiles_and_goes_on(tmp_path, monkeypatch) -> None:
    """Stopped after the second tile: what was run is shown, and the next run does the rest."""
    from quantopsy.study import Store

    append, calls = Store.append, []

    def stopping(self, results, runner_up=None):
        append(self, results, runner_up)
        calls.append(1)
        if len(calls) == sample_models.COUNT // 8 + 2:  # the float network's tiles, then two of the schemes'
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", stopping)
        stopped = table(tmp_path, tile=8)
    assert not stopped.table.complete
    assert (stopped.frame()["samples"] == 16).all()
    assert any("stopped" in sentence for sentence in stopped.words())
    whole = table(tmp_path, tile=8)
    assert whole.table.complete
    assert whole.frame()["value"].tolist() == table(tile=8).frame()["value"].tolist()


def test_a_folder_of_something_else_is_left_untouched(tmp_path) -> None:
    table(tmp_path)
    with pytest.raises(qp.QuantopsyError, match="it holds no layer-wise analysis"):
        qp.open_study(tmp_path)
    with pytest.raises(qp.QuantopsyError, match="is of another experiment"):
        qp.analyze(sample_models.network(), sample_models.data(), bits=(8,), out=tmp_path)
    with pytest.raises(qp.QuantopsyError, match="metric was top1, now agreement"):
        table(tmp_path, metric="agreement")


def test_the_files_hold_the_table(tmp_path) -> None:
    import pandas as pd

    found = table(tmp_path)
    written = pd.read_csv(tmp_path / "schemes.csv")
    np.testing.assert_allclose(written["noise"], found.frame()["noise"])
    assert (tmp_path / "schemes.html").stat().st_size > 1000


def test_mobilenet_needs_weights_per_channel(zoo) -> None:
    """Table 1 of the practical approach: nothing is left of a MobileNet per tensor, nearly all per channel."""
    found = qp.schemes(
        zoo.network("mobilenet_v2_10"), zoo.images("mobilenet_v2_10", "imagenette_val"), samples=48,
        calibration=zoo.images("mobilenet_v2_10", "imagenette_train"), calibration_samples=32,
    )  # fmt: skip
    frame = found.frame().set_index("scheme")
    assert frame.loc["asymmetric per tensor", "verdict"] == "hurts"
    assert frame.loc["asymmetric per tensor", "degradation"] > 30
    assert frame.loc["symmetric per channel", "degradation"] < 10
    assert frame.loc["activations only", "degradation"] < 10
    (granularity,) = found.questions().query("question == 'granularity'")["verdict"]
    assert granularity == "better"
