"""Running subsets of layers: what a study promises of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sample_models

import quantopsy as qp
from quantopsy.analysis import measure_additivity as measuring
from quantopsy.analysis.measure_additivity import measure_additivity
from quantopsy.core import QuantopsyError
from quantopsy.study import open_existing

MODEL, DATA = "sample_models:network", "sample_models:data"


def analyzed(out: Path, bits: tuple[int, ...] = (4, 8), mode: str = "exact", **options: object) -> qp.Study:
    """A study of the sample network."""
    return qp.analyze(MODEL, DATA, bits=bits, out=out, mode=mode, **options)


def tiles(folder: Path) -> int:
    with open_existing(folder) as store:
        return store._connection.execute("SELECT COUNT(*) FROM tile").fetchone()[0]


def test_expected_and_measured_are_of_the_same_images(tmp_path) -> None:
    study = analyzed(tmp_path)
    found = measure_additivity(tmp_path, subsets=5).additivity
    table = found.table
    assert (found.low_bits, found.high_bits, found.samples) == (4, 8, sample_models.COUNT)
    assert table["low_layers"].tolist() == [1, 2, 3, 4, 5]
    frame, weighted = study.frame(), set(study.layers().dropna(subset=["weight_shape"])["layer"])
    noise = frame.set_index(["layer", "bits"])["noise"]
    for row in table.to_dict("records"):
        assert set(row["layers"]) <= weighted
        single = [noise[layer, 4 if layer in row["layers"] else 8] for layer in study.layers()["layer"]]
        assert row["noise_expected"] == pytest.approx(sum(single))
    whole = study.whole().set_index("bits").loc[4]
    everything = table.iloc[-1]
    assert everything["noise_measured"] == pytest.approx(whole["noise"])
    assert everything["degradation_measured"] == pytest.approx(whole["degradation"])
    assert everything["degradation_expected"] == pytest.approx(whole["degradation_sum"])
    assert everything["noise_expected"] == pytest.approx(whole["noise_sum"])


def test_again_runs_nothing_and_a_report_shows_it(tmp_path) -> None:
    analyzed(tmp_path)
    first = measure_additivity(tmp_path, subsets=5, samples=16).additivity
    before = tiles(tmp_path)
    again = qp.additivity(tmp_path, subsets=5, samples=16).results.additivity
    assert tiles(tmp_path) == before
    assert again.table.equals(first.table)
    assert first.samples == 16
    assert qp.open_study(tmp_path).results.additivity.table.equals(first.table)
    assert "Do single layers add up?" in (tmp_path / "report.html").read_text()


def test_more_images_join_those_that_were_run(tmp_path) -> None:
    analyzed(tmp_path / "a", tile=8)
    analyzed(tmp_path / "b", tile=8)
    measure_additivity(tmp_path / "a", subsets=4, samples=16)
    grown = measure_additivity(tmp_path / "a", subsets=4).additivity.table
    at_once = measure_additivity(tmp_path / "b", subsets=4).additivity.table
    np.testing.assert_allclose(grown["noise_measured"], at_once["noise_measured"], rtol=1e-6)
    assert grown["degradation_measured"].tolist() == at_once["degradation_measured"].tolist()


def test_a_stop_keeps_what_was_measured_and_says_so(tmp_path, monkeypatch) -> None:
    analyzed(tmp_path, tile=8)
    whole = measuring.measure_plans

    def interrupted(bench, plans, **options):
        done = iter([True, False])
        whole(bench, plans, lambda: next(done), **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure_plans", interrupted)
    stopped = measure_additivity(tmp_path, subsets=4).additivity
    assert (stopped.samples, stopped.wanted) == (16, sample_models.COUNT)
    monkeypatch.undo()
    assert measure_additivity(tmp_path, subsets=4).additivity.samples == sample_models.COUNT


def test_screened_cells_are_summed_and_counted(tmp_path) -> None:
    analyzed(tmp_path, mode="screen")
    found = measure_additivity(tmp_path, subsets=5).additivity
    assert (found.table["screened"] == 9).all()
    assert found.table["noise_predicted"].notna().all()
    assert np.isfinite(found.screen_error)
    assert found.interaction is not None
    assert found.interaction.factor.low <= found.interaction.factor.value <= found.interaction.factor.high
    assert qp.open_study(tmp_path).results.additivity.table.equals(found.table)


def test_without_the_bit_width_it_names_the_command(tmp_path) -> None:
    analyzed(tmp_path, bits=(3, 8))
    with pytest.raises(QuantopsyError, match=r"5 of 9 layers, 'stem.0' first, .* at 4 bits; run .*--bits 3,4,8, which"):
        measure_additivity(tmp_path)
    with open_existing(tmp_path) as store:
        assert store.noted("additivity") is None


def test_without_a_layer_it_names_the_command(tmp_path) -> None:
    analyzed(tmp_path, layers=("stem.*", "left"))
    with pytest.raises(QuantopsyError, match=r"7 of 9 layers, 'depthwise.0' first.* with all layers"):
        measure_additivity(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"low": 8}, "low bit-width 8: it is not below the high one, 8"),
        ({"low": 1}, "bit-width 1: out of range"),
        ({"high": 17}, "bit-width 17: out of range"),
        ({"subsets": 0}, "subsets 0: must be positive"),
        ({"samples": 0}, "samples 0: must be positive"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, wrong, said) -> None:
    with pytest.raises(QuantopsyError, match=said):
        measure_additivity(tmp_path, **wrong)
