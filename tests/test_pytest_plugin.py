"""The fixture quantopsy_gate: a test of one's own that fails where the gate does."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest
from made_up import layer_table
from made_up_study import write_study

pytest_plugins = "pytester"
PLUGIN = ("-p", "quantopsy.pytest_plugin", "-p", "no:cacheprovider")


@pytest.fixture
def project(pytester):
    """A project with two studies and a test of them, that takes its rules from the ini file."""
    layers = layer_table(8)
    write_study(pytester.path / "old", layers)
    write_study(pytester.path / "new", layers, seed=1, whole_lost=0.3)
    pytester.makepyfile(
        """
        def test_default(quantopsy_gate):
            assert quantopsy_gate("old", "new").passed

        def test_strict(quantopsy_gate):
            quantopsy_gate("old", "new", max_drop=1.0)

        def test_of_its_own(quantopsy_gate):
            assert quantopsy_gate("old", "new", {"max_drop": 50.0}).frame()["status"].iloc[0] == "passed"
        """
    )
    pytester.makeini("[pytest]\nquantopsy_rules = gate/rules.toml\n")
    rules = pytester.mkdir("gate") / "rules.toml"
    rules.write_text("max_drop = 50.0\n")
    return pytester


def test_a_test_fails_where_the_gate_does_and_says_why(project) -> None:
    result = project.runpytest_inprocess(*PLUGIN, "--junit-xml=report.xml")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["quantopsy gate failed", "max_drop: top1 of new is worse than that of old by *"])
    result.stdout.no_fnmatch_line("*Traceback*")
    root = ElementTree.parse(project.path / "report.xml").getroot()
    properties = root.findall(".//testcase[@name='test_strict']/properties/property")
    (drop,) = [entry.get("value") for entry in properties if entry.get("name") == "quantopsy.max_drop"]
    assert drop.startswith("failed: ")


def test_a_mistake_is_an_error_of_the_test(project) -> None:
    project.makepyfile(test_wrong="def test_wrong(quantopsy_gate):\n    quantopsy_gate('old', 'absent')\n")
    result = project.runpytest_inprocess(*PLUGIN, "test_wrong.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*study '*absent'*"])


def test_pytest_pays_next_to_nothing_for_the_plugin() -> None:
    code = "import quantopsy.pytest_plugin, sys; print({'torch', 'pandas', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
