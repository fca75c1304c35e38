"""The example for GitHub Actions: its commands are those that there are, and do what it says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from string import Template
from xml.etree import ElementTree

import pytest

from quantopsy.cli import app as cli

WORKFLOW = Path(__file__).parents[2] / "examples" / "github_actions.yml"
HERE = {
    "MODEL": "sample_models:network",
    "DATA": "sample_models:many",
    "CALIBRATION": "sample_models:data",
    "SETTINGS": "--bits 8 --mode exact",
}


def commands() -> list[list[str]]:
    """Every ``quantopsy`` command line of the workflow, its variables replaced by :data:`HERE`."""
    lines = re.findall(r"^ +(quantopsy .*)$", WORKFLOW.read_text(), flags=re.MULTILINE)
    return [shlex.split(Template(line).substitute(HERE)) for line in lines]


def test_the_workflow_is_yaml_and_gives_every_variable() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert set(workflow["env"]) == set(HERE)
    steps = workflow["jobs"]["gate"]["steps"]
    assert all("run" in step or "uses" in step for step in steps)
    # The report is kept also where the gate fails, which is when it is wanted.
    assert steps[-1]["if"] == "always()"


def test_its_commands_run_from_base_to_gate(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quantization.toml").write_text("max_drop = 5.0\nmax_scale_change = 1.0\npaired = true\n")
    assert [command[1] for command in commands()] == ["analyze", "analyze", "gate"]
    for command in commands():
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code in (0, None), capsys.readouterr().err
    assert ElementTree.parse(tmp_path / "reports" / "gate.xml").getroot().find(".//failure") is None
