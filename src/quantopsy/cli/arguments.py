"""Arguments that several commands share, and how texts are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from quantopsy.core import QuantopsyError

TARGETS = "any, per-tensor, onnxruntime-cpu, onnxruntime-avx2, tensorrt, openvino, qnn, xnnpack, or FILE.json"

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="FILE.onnx, FILE.pt2, package.module:callable, or a recipe")
]
Data = Annotated[str, typer.Option(help="Folder of images or package.module:callable; with labels where there are")]
Out = Annotated[Path | None, typer.Option(help="Study folder; a run that was interrupted goes on in it")]
Metric = Annotated[str | None, typer.Option(help="As of analyze")]
Preprocess = Annotated[Path | None, typer.Option(help="JSON: resize, crop, interpolation, channels, mean, std")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]
Threads = Annotated[int, typer.Option(help="Of the runtimes")]
Also = Annotated[list[str] | None, typer.Option(help="A runtime to run files in besides ONNX Runtime: openvino")]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe.json, or the study that it is in")]
RecipeModel = Annotated[
    str | None, typer.Option(help="FILE.onnx, FILE.pt2 or package.module:callable  (default: the recipe's)")
]
RecipeData = Annotated[str | None, typer.Option(help="Images to run it on  (default: the recipe's)")]
StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of an analysis")]
StudyMetric = Annotated[str | None, typer.Option(help="The metric, where it was a Python object")]
Unfused = Annotated[
    str | None,
    typer.Option(help="Activation functions that the runtime leaves alone, as layers of their own: silu,hardswish"),
]
ActivationBits = Annotated[int, typer.Option(help="Bit-width of activations")]
WeightRange = Annotated[str | None, typer.Option(help="Range estimator of weights")]
ActivationRange = Annotated[str | None, typer.Option(help="Range estimator of activations")]
Calibration = Annotated[str | None, typer.Option(help="Images for the ranges  (default: those of --data)")]
CalibrationSamples = Annotated[int | None, typer.Option(help="At most so many images for the ranges")]
Samples = Annotated[int | None, typer.Option(help="An evenly spaced subset; more can follow later")]
Level = Annotated[float, typer.Option(help="Confidence level of intervals and verdicts")]
Engine = Annotated[str, typer.Option(help="local, ray, or ray:ADDRESS")]
SkipBad = Annotated[bool, typer.Option(help="Leave unreadable images out, and count them")]
Tile = Annotated[int | None, typer.Option(help="Images run at once  (default: by memory)")]
MaxMemory = Annotated[float, typer.Option(help="GiB for the images in flight")]
Fresh = Annotated[bool, typer.Option(help="Discard the study that is in the folder")]
Scheme = Annotated[str, typer.Option(help="per-tensor or per-channel")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else")]


def parse_names(text: str | None) -> tuple[str, ...]:
    """``one`` or ``one,other``."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def parse_bits(text: str) -> tuple[int, ...]:
    """``8``, ``4,8`` or ``3-8``."""
    try:
        found: list[int] = []
        for part in text.split(","):
            low, dash, high = part.partition("-")
            if dash and int(low) > int(high):
                raise QuantopsyError(f"--bits {text!r}", "the range runs backwards", f"write {int(high)}-{int(low)}")
            found += range(int(low), int(high) + 1) if dash else [int(low)]
    except ValueError:
        raise QuantopsyError(f"--bits {text!r}", "is no list of bit-widths", "write 8, 4,8 or 3-8") from None
    return tuple(found)


def parse_sizes(text: str) -> tuple[int, ...]:
    """``1,4,16``: numbers of images."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise QuantopsyError(f"--sizes {text!r}", "is no list of numbers of images", "write 1,4,16") from None


def read_json(path: Path, thing: str) -> Any:
    """The JSON document in ``path``."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise QuantopsyError(
            f"{thing} {str(path)!r}", f"cannot be read ({error.strerror})", "check the path"
        ) from error
    except ValueError as error:
        raise QuantopsyError(f"{thing} {str(path)!r}", f"is not JSON ({error})", "check its syntax") from error


def parse_options(pairs: list[str] | None) -> dict[str, Any] | None:
    """``NAME=VALUE`` pairs; a value that reads as JSON is taken as such."""
    if not pairs:
        return None
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise QuantopsyError(f"--option {pair!r}", "is no NAME=VALUE", "see `quantopsy quantizers`")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def changes(
    quantizer: str | None,
    granularity: str | None,
    weight: str | None,
    activation: str | None,
    correction: str | None,
    options: Any,
) -> Any:
    """The fields that the options change in a scheme's specs, by role."""
    on_weight = {"kind": quantizer, "granularity": granularity, "range_estimator": weight}
    on_weight |= {"correction": correction, "options": options}
    on_weight = {name: value for name, value in on_weight.items() if value is not None}
    on_activation = {} if activation is None else {"range_estimator": activation}
    return {
        role: fields
        for role, fields in (("weight", on_weight), ("input", on_activation), ("output", on_activation))
        if fields
    }


def slug(model: str) -> str:
    name = model.rpartition(":")[2] if ":" in model else Path(model).stem
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name) or "study"
