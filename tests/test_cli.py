"""The command line: one document with --json, one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import sample_models
import torch
from PIL import Image

from quantopsy.core import Plan
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.graph import to_onnx
from quantopsy.graph.capture import capture

MODEL, DATA = "sample_models:network", "sample_models:data"


def test_json_is_the_only_thing_on_standard_output(command, tmp_path) -> None:
    code, out, _ = command("analyze", MODEL, "--data", DATA, "--bits", "4,8", "--out", "study", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["metric"] == "top1"
    assert set(document["whole"]) == {"4", "8"}
    assert document["worst"]["4"][0]["noise"] >= document["worst"]["4"][1]["noise"]
    assert document["passes"] > 0
    assert document["seconds"] > 0
    assert (tmp_path / "study" / "report.html").exists()
    code, again, _ = command("report", "study", "--json")
    assert json.loads(again)["whole"] == document["whole"]


def test_a_check_leaves_nothing_and_takes_the_arguments_of_an_analysis(command, tmp_path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = [MODEL, "--data", DATA, "--bits", "4,8", "--samples", "16", "--max-memory", "2"]
    code, out, _ = command("check", *arguments, "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["images"], document["samples"], document["metric"]) == (40, 16, "top1")
    assert document["passes"]["screen"] < document["passes"]["auto"]
    code, out, _ = command("check", *arguments)
    assert code == 0
    assert "What an analysis at 2 bit-widths takes" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert command("analyze", *arguments, "--json")[0] == 0
    code, _, err = command("check", MODEL, "--data", "sample_models:nothing")
    assert code == 2
    assert len(err.splitlines()) <= 2


def test_additivity_goes_on_from_a_study(command) -> None:
    command("analyze", MODEL, "--data", DATA, "--bits", "4,8", "--mode", "exact", "--out", "study", "--json")
    code, out, err = command("additivity", "study", "--subsets", "5", "--samples", "16", "--json")
    assert code == 0
    made = json.loads(out)["additivity"]
    assert (made["samples"], len(made["subsets"])) == (16, 5)
    code, out, err = command("additivity", "study", "--subsets", "5", "--samples", "16")
    assert code == 0
    assert "5 of them are run already" in " ".join(err.split())
    assert "Subsets of layers at 4 bits, the others at 8" in out
    code, _, err = command("additivity", "study", "--low", "5")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: study 'study': 5 of 9 layers, 'stem.0' first")
    assert "--bits 4,5,8" in err.splitlines()[-1]


def test_every_step_ends_with_the_command_of_the_next(command) -> None:
    """They are run as they are printed, from a model to a file."""
    code, out, _ = command("analyze", MODEL, "--data", "sample_models:many", "--bits", "4,8", "--out", "a study")
    done = ["analyze"]
    while code == 0 and (lines := [line for line in out.splitlines() if "quantopsy " in line and " # " in line]):
        last = shlex.split(lines[-1].partition("#")[0].removeprefix("Next:"))
        done.append(last[1])
        code, out, err = command(*last[1:])
        assert code == 0, err
    assert done == ["analyze", "repair", "export"]


def test_a_person_sees_settings_baseline_and_worst_layers(command) -> None:
    code, out, err = command("analyze", MODEL, "--data", DATA, "--bits", "3-4", "--samples", "16")
    assert code == 0
    assert "stem.0" in out
    assert "100.0% of" in err
    assert "quantopsy-network/report.html" in out.replace("\n", "")


MISTAKES = {
    "no model file": (["absent.pt2", "--data", DATA], r"model 'absent.pt2': no such file; give"),
    "no module": (["nowhere:net", "--data", DATA], r"cannot be imported .*; give package.module:callable"),
    "no callable": (["sample_models:netwrok", "--data", DATA], r"nearest are .*network"),
    "callable fails": (["sample_models:failing_model", "--data", DATA], r"weights are missing.*; it must run"),
    "no network": (["sample_models:no_model", "--data", DATA], r"returned int; return a torch.nn.Module"),
    "no layer": (["torch.nn:Identity", "--data", DATA], r"no layer that can be quantized"),
    "no folder": ([MODEL, "--data", "absent"], r"absent"),
    "wrong shape": ([MODEL, "--data", "sample_models:wrong_shape"], r"does not run on the data"),
    "NaN image": ([MODEL, "--data", "sample_models:nan_data"], r"NaN|infin"),
    "labels out of range": ([MODEL, "--data", "sample_models:high_labels"], r"label"),
    "failing metric": ([MODEL, "--data", DATA, "--metric", "sample_models:failing_metric"], r"failing_metric"),
    "unknown metric": ([MODEL, "--data", DATA, "--metric", "top11"], r"top1"),
    "bits": ([MODEL, "--data", DATA, "--bits", "1"], r"bit-width 1: out of range; give whole numbers from 2 to 16"),
    "bits words": ([MODEL, "--data", DATA, "--bits", "few"], r"is no list of bit-widths; write 8, 4,8 or 3-8"),
    "layer pattern": ([MODEL, "--data", DATA, "--layers", "stemm*"], r"layer 'stemm\*'.*nearest are stem.0"),
    "scheme": ([MODEL, "--data", DATA, "--scheme", "per-chanel"], r"nearest are per-channel"),
    "range": ([MODEL, "--data", DATA, "--weight-range", "percentil:99"], r"percentil"),
    "quantizer": ([MODEL, "--data", DATA, "--quantizer", "picewise"], r"piecewise"),
    "device": ([MODEL, "--data", DATA, "--device", "gpu"], r"device 'gpu': is unknown to torch"),
    "no plan file": ([MODEL, "--data", DATA, "--plan", "plan.json"], r"plan 'plan.json': cannot be read"),
    "samples": ([MODEL, "--data", DATA, "--samples", "0"], r"samples 0: must be positive"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_thing_reason_and_remedy(command, name, tmp_path) -> None:
    arguments, pattern = MISTAKES[name]
    code, out, err = command("analyze", *arguments)
    assert code == 2
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in err

    assert re.search(pattern, line), line
    assert "; " in line
    assert not list(tmp_path.glob("*/study.sqlite")) or name in ("labels out of range", "failing metric", "NaN image")


def test_an_onnx_file_is_a_model(command, tmp_path) -> None:
    network = capture(sample_models.network(), (torch.zeros(2, 3, 12, 12),))
    content = to_onnx(network, Plan(), Calibration()).SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    options = ("--data", DATA, "--bits", "4", "--samples", "16", "--json")
    documents = []
    for model in (str(path), MODEL):
        code, out, _ = command("analyze", model, "--out", f"study-{len(documents)}", *options)
        assert code == 0
        documents.append(json.loads(out)["worst"]["4"])
    assert [cell["name"] for cell in documents[0]] == [cell["name"] for cell in documents[1]]
    path.write_bytes(content[:-100])
    code, out, err = command("analyze", str(path), *options)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: model {str(path)!r}: is no ONNX file, or cut off")


def test_a_truncated_picture_is_named_and_can_be_skipped(command, tmp_path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(6):
        pixels = torch.randint(0, 255, (12, 12, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pre.json").write_text(json.dumps({"crop": 12, "mean": [127] * 3, "std": [64] * 3}))
    common = ["analyze", MODEL, "--data", "pictures", "--preprocess", "pre.json", "--bits", "8", "--out", "study"]
    code, _, err = command(*common)
    assert code == 2
    assert "3.png" in err
    code, out, _ = command(*common, "--skip-bad", "--json", "--fresh")
    assert code == 0
    document = json.loads(out)
    assert document["samples"] == 5
    assert any("3.png" in line for line in document["warnings"])


def test_another_study_in_the_folder_is_left_untouched(command, tmp_path) -> None:
    assert command("analyze", MODEL, "--data", DATA, "--bits", "8", "--out", "study")[0] == 0
    before = (tmp_path / "study" / "cells.csv").read_bytes()
    code, _, err = command("analyze", "sample_models:other_network", "--data", DATA, "--bits", "8", "--out", "study")
    assert code == 2
    assert "model was" in err
    assert (tmp_path / "study" / "cells.csv").read_bytes() == before


def test_importing_the_package_is_cheap_and_draws_nothing() -> None:
    script = "import sys, quantopsy; print([m for m in ('torch', 'plotly', 'pandas', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_compare_shows_writes_and_documents_what_changed(command, tmp_path) -> None:
    from made_up import layer_table
    from made_up_study import write_study

    layers = layer_table(20)
    write_study(tmp_path / "before", layers)
    write_study(tmp_path / "after", layers, seed=1, lost={5: 0.4})
    code, out, _ = command("compare", "before", "after", "--json", "--out", "page.html")
    assert code == 0
    (difference,) = json.loads(out)["differences"]
    assert difference["verdicts"]["worse"] == 1
    assert next(row["name"] for row in difference["layers"] if row["verdict"] == "worse") == layers["name"][5]
    assert (tmp_path / "page.html").exists()
    code, out, _ = command("compare", "before", "after")
    assert code == 0
    assert out.lstrip().startswith("after against before, weights at 8 bits")
    code, out, err = command("compare", "before", "after", "--out", "page.html/below.html")
    assert (code, err.splitlines()[-1].startswith("error: page 'page.html/below.html': cannot be written")) == (2, True)
    code, out, err = command("compare", "before", "absent")
    assert (code, out) == (2, "")
    assert "study 'absent': has no study.sqlite; give the folder" in err


def test_help_says_what_holds_where_an_option_is_left_out(command, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = command("repair", "--help")
    assert code == 0
    assert "(default: recipe.json of the study)" in " ".join(out.split())


def test_names_are_printed_as_they_are(command, tmp_path, monkeypatch) -> None:
    # Rich reads :one: as an emoji.
    (tmp_path / "broken_images.py").write_text(
        "import torch\n\ndef one():\n    return [(torch.full((3, 12, 12), float('nan')), 0)] * 4\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, err = command("analyze", MODEL, "--data", "broken_images:one")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: image 0 of broken_images:one: it holds a NaN")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--scheme", "perchannel"), "scheme 'perchannel'"),
        (("--mode", "fast"), "mode 'fast': there is none of that name; nearest are auto, exact, screen"),
        (("--bits", "8-4"), "--bits '8-4': the range runs backwards; write 4-8"),
        (("--engine", "rai"), "engine 'rai'"),
        (("--out", "file"), "folder 'file': it is a file"),
        (("--out", "/proc/study"), "folder '/proc/study': cannot be written"),
    ],
)
def test_what_needs_no_model_is_refused_before_torch_is_imported(tmp_path, arguments, said) -> None:
    (tmp_path / "file").write_text("")
    line = ["quantopsy", "analyze", "nowhere:net", "--data", "nowhere:data", *arguments]
    script = (
        f"import sys\nfrom quantopsy.cli import app as cli\nsys.argv = {line!r}\n"
        "try: cli.main()\nexcept SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert found.stdout.strip() == "2 False"
    assert said in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_quantizers_are_checked_before_data_and_model(command) -> None:
    _, _, err = command("analyze", "nowhere:net", "--data", "nowhere:data", "--quantizer", "picewise")
    assert "nearest are piecewise" in err


@pytest.mark.parametrize("name", ["repair", "allocate"])
def test_a_recipe_that_cannot_be_written_is_refused_before_anything_is_opened(command, tmp_path, name) -> None:
    for out, said in ((".", "recipe '.': it is a folder"), ("/proc/recipe/mine.json", "folder '/proc/recipe': cannot")):
        code, _, err = command(name, "nothing", "--out", out)
        assert code == 2
        assert said in err


def test_a_training_checks_its_folder_first(command, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    _, _, err = command("train", "nowhere:net", "--data", "nowhere:data", "--out", "file")
    assert "folder 'file': it is a file" in err


def test_an_interrupt_before_the_first_result_says_so(command, monkeypatch, tmp_path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantopsy.analysis.analyze.make_ready", interrupt)
    code, out, err = command("analyze", MODEL, "--data", DATA, "--out", "study")
    assert (code, out) == (130, "")
    assert "Stopped before anything was measured" in err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sample_models", "--data", DATA), "model 'sample_models': it is a module; add .*: sample_models:callable"),
        ((MODEL, "--data", "sample_models"), "data 'sample_models': it is a module; add .*: sample_models:callable"),
        (("sample_models:SmallNett", "--data", DATA), "model 'sample_models:SmallNett': module 'sample_models' has no"),
        ((MODEL, "--data", "sample_models:validation"), "data 'sample_models:validation': module 'sample_models' has"),
    ],
)
def test_modules_are_told_from_what_is_in_them(command, arguments, said) -> None:

    code, _, err = command("analyze", *arguments)
    line = err.strip().splitlines()[-1]
    assert code == 2
    assert re.search(said, line), line
    assert not {"SmallNet,", "TensorDataset", "torch"} & set(line.replace(",", ", ").split())
