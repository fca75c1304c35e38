"""The benchmark's book-keeping: what has been tried is not tried again, and shares have exact intervals."""

from __future__ import annotations

import pytest
from fault_search import Journal
from planted_faults import described, named, place, share, table
from scipy.stats import beta


def test_a_line_is_made_once_also_by_another_process(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    made = []

    def make() -> dict:
        made.append(1)
        return {"lost": [1.5]}

    key = {"network": "a", "number": 0}
    first = Journal(path).once(key, make)
    assert Journal(path).once(key, make) == first == {**key, "lost": [1.5]}
    Journal(path).once({**key, "number": 1}, make)
    assert len(made) == 2


def test_a_torn_last_line_is_made_again(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"number": 0, "x": 1}\n{"number": 1, "x"')
    journal = Journal(path)
    assert journal.once({"number": 0}, lambda: {"x": 9})["x"] == 1
    assert journal.once({"number": 1}, lambda: {"x": 2})["x"] == 2
    assert [line["x"] for line in Journal(path).lines] == [1, 2]


def test_intervals_are_clopper_and_pearsons() -> None:
    low, high = beta.ppf(0.025, 95, 6), beta.ppf(0.975, 96, 5)
    assert share(95, 100) == f" 95.0% ({low:6.1%} to {high:6.1%})"


def fault(kind: str = "wide_range", number: int = 0, **more) -> dict:
    entry = {"what": "fault", "network": "a", "kind": kind, "seed": 0, "number": number, "layer": "conv"}
    return {**entry, "fault": {}, "lost": [2.0, 1.0, 3.0], "layers": ["conv"], "causes": ["calibration_range"], **more}


def result(of: dict, place: int, *findings: tuple[str, str, str]) -> dict:
    key = {part: of[part] for part in ("network", "kind", "seed", "number")}
    places = {"place": place, "place_faultiest": place, "place_noise": place}
    return {"what": "fault", **key, **places, "findings": [*findings], "first": [["other"]]}


@pytest.mark.parametrize(
    ("finding", "right"),
    [
        (("conv", "calibration_range", "severe"), True),
        (("conv", "weight_outlier", "severe"), False),
        (("other", "calibration_range", "severe"), False),
    ],
)
def test_a_cause_is_right_at_a_faulty_layer_only(finding, right) -> None:
    assert named(fault(), result(fault(), 1, finding)) is right
    assert ("NOT named" in described(fault(), result(fault(), 2, finding))) is not right


def test_the_table_counts_what_was_kept() -> None:
    first, second = fault(), fault(number=1)
    dropped = {**{k: v for k, v in fault(number=2).items() if k != "fault"}, "dropped": "costs less than 1 point"}
    silent = fault("bias_overflow", causes=["bias_overflow"])
    lines = [
        result(first, 1, ("conv", "calibration_range", "severe")),
        result(second, 2, ("conv", "weight_outlier", "severe")),
        result(silent, 9, ("conv", "bias_overflow", "mild")),
        {"what": "unharmed", "network": "a", "findings": [["x", "bias_shift", "mild"], ["y", "bias_shift", "severe"]]},
    ]
    text = table([first, second, dropped, silent], lines)
    rows = {row.split()[0]: row.split() for row in text.splitlines()}
    assert rows["wide_range"][1:3] == ["3", "2"]
    assert rows["wide_range"].count("50.0%") == 4
    assert rows["all"][1:3] == ["4", "3"]
    assert rows["bias_overflow"].count("100.0%") == 1
    assert text.splitlines()[-1] == "unharmed a: severe findings: y: bias_shift"


def test_a_layers_place_is_that_of_the_first_faulty_one() -> None:
    assert place(["a", "b", "c"], ["c", "b"]) == 2
