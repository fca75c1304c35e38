"""The command gate: exit codes for continuous integration, one document with --json, a mistake in one line."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from made_up import layer_table
from made_up_study import write_study

LAYERS = layer_table(8)


@pytest.fixture
def gate(command, tmp_path):
    """Run the gate beside two studies and a file of rules: (exit code, standard output, standard error)."""
    write_study(tmp_path / "old", LAYERS)
    write_study(tmp_path / "new", LAYERS, seed=1, whole_lost=0.3)
    (tmp_path / "rules.toml").write_text("max_drop = 50.0\n")
    return lambda *arguments: command("gate", *arguments)


def test_it_exits_with_0_where_all_rules_hold_and_with_1_where_one_does_not(gate) -> None:
    code, out, _ = gate("old", "new", "--rules", "rules.toml")
    assert code == 0
    assert "PASSED" in out
    code, out, _ = gate("old", "new")
    assert code == 1
    assert "FAILED" in out


def test_json_is_the_only_thing_on_standard_output(gate) -> None:
    code, out, _ = gate("old", "new", "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False


def test_junit_is_written_also_where_the_gate_fails(gate, tmp_path) -> None:
    code, _, _ = gate("old", "new", "--junit", "reports/gate.xml")
    assert code == 1
    assert ElementTree.parse(tmp_path / "reports" / "gate.xml").getroot().find(".//failure") is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("old", "absent"), "study 'absent'"),
        (("old", "new", "--bits", "5"), "5 bits: study 'old' has 8"),
        (("old", "new", "--rules", "absent.toml"), "rules 'absent.toml': cannot be read"),
        (("old", "rules.toml"), "recipe 'rules.toml': is no JSON"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(gate, arguments, said) -> None:
    code, out, err = gate(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert said in err
