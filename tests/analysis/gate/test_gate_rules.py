"""Rules are read from TOML, and what is no rule is an error that helps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from quantopsy.analysis.gate.rules import Rules
from quantopsy.core import QuantopsyError


def read(folder: Path, text: str, name: str = "rules.toml") -> Rules:
    (folder / name).write_text(text)
    return Rules.read(folder / name)


def test_every_rule_is_optional(tmp_path) -> None:
    assert read(tmp_path, "") == Rules()


def test_a_file_says_what_is_limited(tmp_path) -> None:
    rules = read(
        tmp_path,
        """
        level = 0.9
        undecided = "fail"
        paired = true
        max_drop = inf
        max_changed_layers = 0
        [max_drop_per_bits]
        4 = 5
        """,
    )
    assert rules == Rules(
        level=0.9,
        undecided="fail",
        paired=True,
        max_drop=math.inf,
        max_changed_layers=0,
        max_drop_per_bits={4: 5},
    )


def test_a_pyproject_has_a_table_of_them(tmp_path) -> None:
    text = "[project]\nname = 'x'\n[tool.quantopsy.gate]\nmax_drop = 2.0\n"
    assert read(tmp_path, text, "pyproject.toml").max_drop == 2.0
    with pytest.raises(QuantopsyError, match=r"no table tool.quantopsy.gate; add \[tool.quantopsy.gate\]"):
        read(tmp_path, "[project]\nname = 'x'\n", "pyproject.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_dorp = 1.0", r"rule 'max_dorp' of rules .*: there is none of that name; nearest are max_drop"),
        ("max_drop = 'much'", r"rule max_drop = 'much' of rules .*: not a valid value; give a number"),
        ("max_drop = nan", r"max_drop = nan"),
        ("max_loss = true", r"max_loss = True"),
        ("undecided = 'maybe'", r"give pass or fail"),
        ("unavailable = 'pass'", r"give skip or fail"),
        ("paired = 1", r"give true or false"),
        ("level = 1.0", r"give a share from 0.5 to below 1"),
        ("bits = 1", r"give a whole number from 2 to 16"),
        ("max_changed_layers = 0.5", r"give a whole number from 0 on"),
        ("max_scale_change = 0.5", r"give a number from 1 on"),
        ("min_coverage = 95", r"give a number from 0 to 1"),
        ("max_drop_per_bits = 3", r"give a table"),
        ("[max_drop_per_bits]\nfour = 1.0", r"max_drop_per_bits = 'four'"),
        ("[max_drop_per_bits]\n4 = 'x'", r"max_drop_per_bits.4 = 'x'"),
        ("max_drop = ", r"is no TOML"),
    ],
)
def test_what_is_no_rule_is_an_error_that_helps(tmp_path, text, said) -> None:
    with pytest.raises(QuantopsyError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(QuantopsyError, match=r"rules '.*absent.toml': cannot be read"):
        Rules.read(tmp_path / "absent.toml")
