"""Studies side by side, from what they hold: planted changes are named, and only they."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sample_models
from made_up import layer_table
from made_up_study import write_study

import quantopsy as qp
from quantopsy.analysis.comparison import COLUMNS
from quantopsy.study import open_existing

LAYERS = layer_table(20)


def verdicts(comparison: qp.api.Comparison, column: str = "verdict") -> dict[str, list[str]]:
    return comparison.frame().groupby(column)["name"].apply(list).to_dict()


@pytest.fixture
def study(tmp_path):
    """Write a study of twenty layers under a name."""

    def write(name: str, layers: pd.DataFrame = LAYERS, **options):
        return write_study(tmp_path / name, layers, **options)

    return write


def test_the_layer_that_lost_and_the_one_that_grew_loud_are_named(study) -> None:
    guilty, loud = LAYERS["name"][5], LAYERS["name"][9]
    before = study("before")
    after = study("after", seed=1, lost={5: 0.4}, noise={9: 4e-3}, whole_lost=0.5)
    found = qp.compare(before, after)
    assert verdicts(found)["worse"] == [guilty]
    assert "better" not in verdicts(found)
    assert loud in verdicts(found, "noise_verdict")["worse"]
    (difference,) = found.compared.differences
    assert difference.whole is not None
    assert difference.whole.degradation.low > 30
    assert difference.whole.images == 300
    back = qp.compare(after, before)
    assert verdicts(back)["better"] == [guilty]


def test_a_row_has_both_sides_and_the_change_between_them(study) -> None:
    frame = qp.compare(study("before"), study("after", seed=1, noise={4: 1e-2})).frame()
    assert set(COLUMNS) < set(frame.columns)
    row = frame.iloc[4]
    assert row["degradation_change"] == pytest.approx(row["degradation_after"] - row["degradation_before"])
    assert row["sqnr_change_db"] == pytest.approx(row["sqnr_db_after"] - row["sqnr_db_before"])
    assert row["noise_change_db"] == pytest.approx(10 * np.log10(row["noise_after"] / row["noise_before"]))
    assert row["sqnr_change_db_low"] < row["sqnr_change_db"] < row["sqnr_change_db_high"] < -8
    assert (frame["images"] == 300).all()


def test_other_images_are_not_paired_and_it_says_so(study) -> None:
    found = qp.compare(study("before"), study("after", seed=1, lost={5: 0.5}, data="others"))
    assert (found.frame()["images"] == 0).all()
    assert verdicts(found)["worse"] == [LAYERS["name"][5]]
    assert any("different images" in sentence for sentence in found.words())


def test_two_halves_of_the_images_of_one_network_show_no_change(study) -> None:
    """Over many seeds: in 5 of 100 comparisons at most is any layer called changed."""
    alarms = 0
    for seed in range(12):
        one, other = (study(f"{half}{seed}", seed=2 * seed + half, data=f"half {half}") for half in (0, 1))
        found = qp.compare(one, other)
        alarms += bool({"worse", "better"} & (set(verdicts(found)) | set(verdicts(found, "noise_verdict"))))
    assert alarms <= 3  # more than that in 12 has a chance of 1 in 500 at 5 in 100


def test_more_looks_need_more_to_be_certain(study) -> None:
    studies = [study(f"study {seed}", seed=seed) for seed in range(4)]
    assert qp.compare(*studies[:2]).compared.looks == 40
    assert qp.compare(*studies).compared.looks == 120


def test_each_study_is_held_against_the_first_at_each_bit_width(study) -> None:
    studies = [study(f"study {seed}", seed=seed, bits=(4, 8)) for seed in range(3)]
    compared = qp.compare(*studies, bits=(4, 8)).compared
    pairs = [(d.before.label, d.before.bits, d.after.label, d.after.bits) for d in compared.differences]
    assert pairs == [("study 0", bits, f"study {other}", bits) for bits in (8, 4) for other in (1, 2)]
    assert len(compared.views) == 6


def test_a_single_studys_bit_widths_are_held_against_its_finest(study) -> None:
    compared = qp.compare(study("one", bits=(4, 6, 8))).compared
    assert [(d.before.bits, d.after.bits) for d in compared.differences] == [(8, 6), (8, 4)]
    # Adds have no weights: the same measurement at every bit-width, and nothing to compare.
    weighted = LAYERS["name"][LAYERS["weight_shape"].notna()].tolist()
    for difference in compared.differences:
        assert difference.layers["name"].tolist() == weighted
        assert set(difference.layers["noise_verdict"]) == {"worse"}


def test_one_bit_width_alone_is_only_a_profile(study) -> None:
    found = qp.compare(study("one"))
    assert found.compared.differences == ()
    assert found.frame().empty
    assert len(found.compared.views) == 1


def test_a_renamed_network_is_compared_all_the_same(study) -> None:
    renamed = LAYERS.assign(name="model." + LAYERS["name"])
    found = qp.compare(study("before"), study("after", renamed, seed=1, lost={5: 0.5}))
    assert verdicts(found)["worse"] == [LAYERS["name"][5]]
    assert set(found.frame()["matched"]) == {"shape"}


def test_another_architecture_stands_beside_it_only(study) -> None:
    other = LAYERS.assign(name="other." + LAYERS["name"], op="linear", weight_shape=[(7, 7)] * 20)
    found = qp.compare(study("before"), study("after", other))
    assert found.frame().empty
    (difference,) = found.compared.differences
    assert difference.whole is not None
    assert any("different architecture" in sentence for sentence in found.words())


def test_labels_are_the_shortest_ends_that_tell_apart(study) -> None:
    compared = qp.compare(study("one/study"), study("two/study", seed=1)).compared
    assert [view.label for view in compared.views] == ["one/study", "two/study"]


def test_a_metric_of_another_kind_leaves_the_noise(study) -> None:
    found = qp.compare(study("before"), study("after", seed=1, metric="agreement", noise={5: 1e-1}))
    assert found.frame()["degradation_change"].isna().all()
    assert set(verdicts(found)) == {"undecided"}
    assert verdicts(found, "noise_verdict")["worse"] == [LAYERS["name"][5]]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda one, two: qp.compare(one, two, bits=5), "5 bits: study 'one' has 8; give --bits it has"),
        (lambda one, two: qp.compare(one, one), "a study was given twice"),
        (lambda one, two: qp.compare(), "no study was given"),
        (lambda one, two: qp.compare(one, two / "absent"), "has no study.sqlite"),
        (lambda one, two: qp.compare(one, two), "they share no bit-width"),
        (lambda one, two: qp.compare(one, two, metric="top5"), "its metric is top1, not top5"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_helps(study, ask, said) -> None:
    one, two = study("one"), study("two", bits=(4,))
    with pytest.raises(qp.QuantopsyError, match=said):
        ask(one, two)


def test_a_study_is_read_with_the_metric_it_was_made_with(tmp_path) -> None:
    """Images with labels, and all the same not top1."""
    made = qp.analyze(sample_models.network(), sample_models.data(), bits=(8,), metric="agreement", out=tmp_path)
    assert qp.open_study(tmp_path).results.metric == made.results.metric == "agreement"
    with open_existing(tmp_path) as store:
        store.note("request", {"given": {"metric": {"object": "Accuracy"}}})
    with pytest.raises(qp.QuantopsyError, match=r"its metric was a Python object \(Accuracy\); give metric="):
        qp.open_study(tmp_path)


def test_schemes_of_one_network_are_paired_image_by_image(tmp_path) -> None:
    """Real studies: the float network is one, so that its signal cancels."""
    options = {"bits": (4,), "mode": "exact"}
    one, two = (
        qp.analyze(sample_models.network(), sample_models.data(), scheme=scheme, out=tmp_path / scheme, **options)
        for scheme in ("per-tensor", "per-channel")
    )
    found = qp.compare(one, two)
    frame = found.frame()
    assert (frame["images"] == sample_models.COUNT).all()
    np.testing.assert_allclose(frame["sqnr_change_db"], -frame["noise_change_db"], atol=1e-9)
    weightless = frame[frame["name"] == "pool"].iloc[0]
    assert weightless["noise_change_db"] == 0.0
    assert weightless["noise_verdict"] == "unchanged"
    (difference,) = found.compared.differences
    assert difference.differing_settings() == {"scheme": ("per-tensor", "per-channel")}
