"""The benchmark's book-keeping: what has been tried is not tried again, and shares have exact intervals."""

from __future__ import annotations

import pytest
from planted_faults import Journal, named, share, table
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
    assert share(95, 100) == f" 95.0% ({low:5.1%} to {high:6.1%})"


def line(place: int | None, findings: list | None = None, **more) -> dict:
    return {
        "what": "fault",
        "kind": "wide_range",
        "place": place,
        "place_strict": place,
        "place_noise": place,
        "lost": [2.0, 1.0, 3.0],
        "layers": ["conv"],
        "causes": ["calibration_range"],
        "findings": findings,
        **more,
    }


@pytest.mark.parametrize(
    ("finding", "right"),
    [
        (("conv", "calibration_range", "severe"), True),
        (("conv", "weight_outlier", "severe"), False),
        (("other", "calibration_range", "severe"), False),
    ],
)
def test_a_cause_is_right_at_a_faulty_layer_only(finding, right) -> None:
    assert named(line(1, [finding])) is right


def test_the_table_counts_what_was_kept() -> None:
    dropped = {"what": "fault", "kind": "wide_range", "dropped": "costs less than 1 point"}
    silent = line(None, [("conv", "bias_overflow", "severe")], kind="bias_overflow", causes=["bias_overflow"])
    text = table([line(1), line(2), dropped, silent])
    rows = {row.split()[0]: row.split() for row in text.splitlines()}
    assert rows["wide_range"][1:3] == ["3", "2"]
    assert "50.0%" in rows["wide_range"]
    assert rows["all"][1:3] == ["4", "3"]
    assert "100.0%" in rows["bias_overflow"]
