"""A gate as people and machines read it: eighty columns, sentences, JSON, JUnit XML."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import pytest
from made_up import NASTY, layer_table
from made_up_study import write_study
from rich.console import Console

import quantopsy as qp
from quantopsy.report.gate.terminal import print_gate
from quantopsy.study import open_existing

pytest_plugins = "pytester"
LAYERS = layer_table(20)


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> qp.api.Gate:
    """A gate that fails: the whole network and two layers are worse."""
    folder = tmp_path_factory.mktemp("studies")
    write_study(folder / "before", LAYERS)
    write_study(folder / "after", LAYERS, seed=1, lost={5: 0.4}, noise={9: 4e-3}, whole_lost=0.3)
    for name, width in (("before", 1.234e-5), ("after", 5.678e-5)):
        with open_existing(folder / name) as store:
            store.note("grids", {layer: {"weight": [[[-width, width]]]} for layer in LAYERS["name"]})
    return qp.gate(folder / "before", folder / "after", max_drop=1.0, max_loss=31.0, max_changed_layers=1)


def printed(gate: qp.api.Gate, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_gate(gate.judged, Console(file=stream, width=width, force_terminal=False))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_and_says_what_failed_and_why(gate, width) -> None:
    text = printed(gate, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.lstrip().startswith("after in the place of before, weights at 8 bits")
    assert "max_drop: top1 of after is worse than that of before by" in text
    assert "at most 1 point is broken" in " ".join(text.split())
    assert "\u22121.23e\u22125 \u2192 \u22125.68e\u22125   1.23e\u22125 \u2192 5.68e\u22125     4.60" in text
    assert text.rstrip().endswith("FAILED: 1 passed, 2 failed, 6 skipped")


def test_what_is_undecided_is_marked_and_explained(tmp_path) -> None:
    studies = [write_study(tmp_path / f"study{seed}", LAYERS, seed=seed) for seed in (0, 1)]
    text = printed(qp.gate(*studies, max_drop=0.5), 80)
    assert "passed?" in text
    assert "? undecided: the limit lies inside the interval" in text


def test_a_terminal_of_ascii_gets_ascii(gate) -> None:
    assert printed(gate, 80, "ascii").isascii()


def test_the_document_is_json_and_has_every_number(gate) -> None:
    document = json.loads(json.dumps(gate.document(), allow_nan=False))
    assert document["passed"] is False
    drop = next(check for check in document["checks"] if check["rule"] == "max_drop")
    assert drop["interval"][0] < drop["value"] < drop["interval"][1]
    assert document["layers"]["verdicts"]["worse"] == 1
    assert document["rules"]["max_changed_layers"] == 1


def test_junit_has_a_case_for_each_check(gate, tmp_path) -> None:
    root = ElementTree.parse(gate.junit(tmp_path / "reports" / "gate.xml")).getroot()
    (suite,) = root
    cases = suite.findall("testcase")
    outcome = {case.get("name"): next((part.tag for part in case), "") for case in cases}
    assert outcome["max_drop"] == outcome["max_changed_layers"] == "failure"
    assert outcome["max_loss"] == "system-out"
    assert outcome["min_coverage"] == "skipped"
    assert int(suite.get("tests")) == len(cases) == len(gate.judged.checks)
    assert int(suite.get("failures")) == len(suite.findall(".//failure")) == 2
    assert int(suite.get("skipped")) == len(suite.findall(".//skipped")) == 6
    assert LAYERS["name"][5] in suite.find(".//testcase[@name='max_changed_layers']/failure").text


def test_junit_uses_no_word_that_pytest_does_not(gate, tmp_path, pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        def test_passes(): print("said")
        def test_fails(): assert False
        @pytest.mark.skip(reason="why")
        def test_skips(): pass
        """
    )
    pytester.runpytest_inprocess("--junit-xml=theirs.xml", "-o", "junit_logging=system-out", "-p", "no:cacheprovider")

    def words(path) -> set[tuple[str, str]]:
        parts = list(ElementTree.parse(path).getroot().iter())
        return {(part.tag, name) for part in parts for name in ("", *part.attrib)}

    ours = words(gate.junit(tmp_path / "ours.xml"))
    assert ours <= words(pytester.path / "theirs.xml")


def test_junit_survives_what_xml_cannot_hold(tmp_path) -> None:
    nasty = f"{NASTY}\x00\x1b"
    renamed = LAYERS.assign(name=[nasty, *LAYERS["name"][1:]])
    write_study(tmp_path / "before", renamed)
    write_study(tmp_path / "after", renamed, seed=1, lost={0: 0.5})
    gate = qp.gate(tmp_path / "before", tmp_path / "after", max_changed_layers=0)
    root = ElementTree.parse(gate.junit(tmp_path / "gate.xml")).getroot()
    assert NASTY in root.find(".//testcase[@name='max_changed_layers']/failure").text


def test_a_file_that_cannot_be_written_is_an_error(gate, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(qp.QuantopsyError, match=r"JUnit file '.*gate.xml': cannot be written"):
        gate.junit(tmp_path / "file" / "gate.xml")
