"""The commands repair and apply: what a person sees, one document with --json, a mistake in one line."""

from __future__ import annotations

import json

import pytest

MODEL, DATA = "sample_models:network", "sample_models:many"


def test_from_a_study_to_a_recipe_that_runs(command, tmp_path) -> None:
    command("analyze", MODEL, "--data", DATA, "--bits", "4", "--mode", "exact", "--out", "study", "--json")
    code, out, err = command("repair", "study", "--budget", "30s", "--out", "mine.json", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {"metric", "float", "before", "after", "interval", "steps"} <= set(document)
    assert document["interval"][0] <= document["after"] <= document["interval"][1]
    assert document["after"] >= document["before"]

    code, out, _ = command("report", "study", "--json")
    assert len(json.loads(out)["repair"]["steps"]) == len(document["steps"])
    page = (tmp_path / "study" / "report.html").read_text()
    assert "Loss (points), step by step" in page

    # Model and data are those of the study, and so the loss is what the recipe expects.
    code, out, err = command("apply", "mine.json")
    assert code == 0
    assert "Recipe of repair (4 bits, target any)" in err
    assert "they agree" in out
    code, out, _ = command("apply", "mine.json", "--json", "--samples", "50")
    assert json.loads(out)["samples"] == 50
    code, out, _ = command("apply", "mine.json", "--model", "sample_models:other_network", "--data", DATA)
    assert code == 0
    assert "not those that the recipe was made for" in out


def test_a_recipe_is_not_replaced_without_a_word(command) -> None:
    command("analyze", MODEL, "--data", DATA, "--bits", "4,8", "--mode", "screen", "--out", "study", "--json")
    _, _, err = command("allocate", "study", "--size", "6bits")
    assert "replaces" not in err
    code, _, err = command("repair", "study", "--budget", "1s")
    assert code == 0, err
    assert "replaces the recipe of allocate (limit on size)" in " ".join(err.split())
    _, out, err = command("export", "study", "--to", "encodings")
    assert "recipe of repair (8 bits, target any)" in " ".join(out.split())
    _, _, err = command("allocate", "study", "--size", "6bits")
    assert "replaces the recipe of repair (8 bits, target any)" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "thing"),
    [
        (("repair", "nothing"), "study 'nothing'"),
        (("repair", "study", "--target", "tensorr"), "target 'tensorr'"),
        (("repair", "study", "--bits", "7"), "bit-width 7"),
        (("apply", "nothing.json"), "recipe 'nothing.json'"),
        (("apply", "study"), "folder 'study': it holds no recipe; run `quantopsy repair`"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, thing) -> None:
    command("analyze", MODEL, "--data", DATA, "--bits", "8", "--mode", "screen", "--out", "study", "--json")
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert thing in line
