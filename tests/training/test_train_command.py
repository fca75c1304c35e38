"""The command train: what a person sees, one document with --json, a mistake in one line, a page with the pictures."""

from __future__ import annotations

import json
import re

import pytest

MODEL, DATA, EVALUATION = "learning:network", "learning:training", "learning:evaluation"
SHORT = ("--epochs", "2", "--batch", "16", "--bits", "3", "--out", "trained")


def test_words_files_and_page(command, tmp_path) -> None:
    options = ("--data", DATA, "--evaluation", EVALUATION, *SHORT)
    code, out, err = command("train", MODEL, *options)
    assert code == 0, err
    assert "held out" in out
    assert "top1 is" in out
    folder = tmp_path / "trained"
    assert {"network.pt2", "recipe.json", "report.html", "training.json"} <= {path.name for path in folder.iterdir()}
    page = (folder / "report.html").read_text()
    for heading in ("The validation images", "Quantization error"):
        assert heading in page
    assert ">Levels<" not in page  # in so few steps none has moved
    assert not re.search(r'(src|href)="http', page)  # works offline
    code, out, err = command("apply", "trained", "--json")
    document = json.loads(out)
    assert document["samples"] == 160
    # The float network beside it is the trained one, and what the recipe lost is against the one before: the metric
    # is what can be compared, and both are named.
    expected = json.loads((folder / "recipe.json").read_text())["expected"]
    assert document["float"][0] != expected["float"][0]
    code, out, err = command("apply", "trained")
    out = " ".join(out.split())
    assert f"float as trained {document['float'][0]:.1f}" in out
    assert f"The recipe expects top1 {expected['after'][0]:.1f}" in out
    assert f"float before training {expected['float'][0]:.1f}: they agree." in out
    assert f"Recipe of train ({MODEL}, ddq)" in err


def test_levels_that_have_moved_are_drawn(command, tmp_path) -> None:
    options = ("--data", DATA, "--evaluation", EVALUATION, "--epochs", "4", "--batch", "16", "--bits", "2")
    code, _, err = command("train", MODEL, *options, "--out", "trained")
    assert code == 0, err
    assert ">Levels<" in (tmp_path / "trained" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "1 epoch of 8 batches of 11 (each without 2 of the 90 images, others every time), rate"),
        (("--batch", "64"), "1 epoch of 1 batch of 64 (each without 26 of the 90 images, others every time), rate"),
        (("--batch", "30"), "1 epoch of 3 batches of 30, rate"),
    ],
)
def test_few_images_make_smaller_batches_and_what_is_left_out_is_said(command, options, said) -> None:
    few = ("--samples", "100", "--epochs", "1", "--out", "trained")
    code, _, err = command("train", MODEL, "--data", DATA, *few, *options)
    assert code == 0
    assert said in " ".join(err.split())


def test_bits_are_told_and_drawn_where_they_learn(command, tmp_path) -> None:
    options = ("--data", DATA, "--epochs", "3", "--batch", "16", "--bits", "5", "--target", "4bits", "--edge-bits", "0")
    code, out, err = command("train", MODEL, *options, "--out", "trained")
    assert code == 0, err
    assert "the target is 4bits" in out
    assert "give --evaluation" in out  # the figures are of images that chose
    page = (tmp_path / "trained" / "report.html").read_text()
    assert "Bits of weights over time" in page


def test_one_document(command) -> None:
    code, out, _ = command("train", MODEL, "--data", DATA, "--evaluation", EVALUATION, *SHORT, "--json")
    document = json.loads(out)
    assert code == 0
    assert {"settings", "history", "expected", "levels", "average_bits"} <= set(document)
    assert len(document["history"]["epochs"]) == 3
    assert document["expected"]["samples"] == 160


@pytest.mark.parametrize(
    ("arguments", "thing"),
    [
        (("--method", "dddq"), "'dddq'"),
        (("--target", "four"), "'four'"),
        (("--target", "1bits"), "1 bits"),
        (("--norms", "gone"), "'gone'"),
        (("--augment", "blur"), "'blur'"),
        (("--scheme", "per-pixel"), "'per-pixel'"),
        (("--epochs", "0"), "epochs 0"),
        (("--bits", "0"), "bits 0"),
        (("--activation-bits", "0"), "bits 0"),
        (("--edge-bits", "-1"), "edge_bits -1"),
        (("--validation", "2"), "validation 2"),
        (("--samples", "20"), "20 images"),
        (("--loss", "learning:nothing"), "'nothing'"),
        (("--seed", "-1"), "seed -1"),
        (("--precision", "foo"), "precision 'foo'"),
        (("--precision", "fp16"), "'fp16'"),
        (("--device", "foo"), "device 'foo'"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, thing) -> None:
    code, out, err = command("train", MODEL, "--data", DATA, *SHORT, *arguments)
    assert (code, out) == (2, "")
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert thing in line


def test_a_recipe_of_another_network_is_refused(command, tmp_path) -> None:
    command("train", MODEL, "--data", DATA, *SHORT, "--json")
    document = json.loads((tmp_path / "trained" / "recipe.json").read_text())
    document["provenance"]["given"]["model"] = "learning:other_network"
    (tmp_path / "other.json").write_text(json.dumps(document))
    code, _, err = command("train", "other.json", "--data", DATA, "--out", "again")
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: recipe's layer")
    assert "this recipe is of" in line
