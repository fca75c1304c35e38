"""Files that run, and what running them shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantopsy.cli.arguments import (
    TARGETS,
    Also,
    Json,
    Metric,
    Preprocess,
    RecipeData,
    RecipeFile,
    RecipeModel,
    Threads,
)
from quantopsy.cli.terminal import kept_clean, new_console, print_json, watched
from quantopsy.core import QuantopsyError

_EXITS = ("onnx", "pt2", "pt2e", "encodings")


def export(
    recipe: RecipeFile,
    to: Annotated[
        str,
        typer.Option(
            help="onnx; pt2: torch.export, the simulation; pt2e: torch.export, PT2E's operators, as ExecuTorch takes "
            "them; encodings: AIMET's JSON, version 0.6.1"
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(help="The file  (default, beside the recipe: model.onnx, .pt2, .pt2e.pt2, recipe.encodings)"),
    ] = None,
    model: RecipeModel = None,
    data: RecipeData = None,
    metric: Metric = None,
    samples: Annotated[int, typer.Option(help="An evenly spaced subset of the images")] = 256,
    preprocess: Preprocess = None,
    opset: Annotated[int, typer.Option(help="Of ONNX, 21 or higher")] = 21,
    integer_convolutions: Annotated[
        bool,
        typer.Option(
            help="ConvInteger, of ONNX, where no rounding follows at once, and two for a piecewise weight: integers, "
            "but slow"
        ),
    ] = False,
    threads: Threads = 1,
    also: Also = None,
    target: Annotated[str | None, typer.Option(help=f"Write nothing that this cannot run: {TARGETS}")] = None,
    as_json: Json = False,
) -> None:
    """Write the network of a recipe as a file that runs, compared with the simulation layer by layer, and timed."""
    from quantopsy.api import export_onnx, export_program
    from quantopsy.core import names
    from quantopsy.report.exported import (
        export_cautions,
        export_statements,
        program_cautions,
        program_statements,
        times_table,
    )
    from quantopsy.report.terminal import bullets, print_part

    if to not in _EXITS:
        raise names.unknown(to, _EXITS, "file format")
    folder = recipe if recipe.is_dir() else recipe.parent
    if to == "encodings":
        if target is not None:
            raise QuantopsyError("--target", "an encodings file is not checked", "leave it out, or give --to onnx")
        _write_encodings(recipe, out, as_json)
        return
    if to in ("pt2", "pt2e"):
        with watched(as_json) as watch, kept_clean(as_json):
            program = export_program(
                recipe,
                out or folder / ("model.pt2" if to == "pt2" else "model.pt2e.pt2"),
                model,
                data,
                to=to,
                metric=metric,
                preprocess=preprocess,
                samples=samples,
                progress=watch,
            )
        if as_json:
            print_json(program.to_json())
            return
        print_part(new_console(), bullets(program_statements(program), program_cautions(program)))
        new_console().print(f"\nFile: {program.path}", highlight=False)
        return
    with watched(as_json) as watch, kept_clean(as_json):
        found = export_onnx(
            recipe,
            out or folder / "model.onnx",
            model,
            data,
            metric=metric,
            preprocess=preprocess,
            samples=samples,
            opset=opset,
            integer_convolutions=integer_convolutions,
            threads=threads,
            also=also or (),
            target=target,
            progress=watch,
        )
    if as_json:
        print_json(found.to_json())
        return
    console = new_console()
    print_part(console, bullets(export_statements(found), export_cautions(found)))
    print_part(console, times_table(found))
    console.print(f"\nFile: {found.exported.path}", highlight=False)


def _write_encodings(recipe: Path, out: Path | None, as_json: bool) -> None:
    from quantopsy.analysis.recipes import recipe_file
    from quantopsy.core.recipe import Recipe
    from quantopsy.export.encodings import aimet_encodings, not_carried, write_aimet_encodings

    file = recipe_file(recipe)
    read, path = Recipe.load(file), out or file.with_suffix(".encodings")
    write_aimet_encodings(read, path)
    if as_json:
        print_json(aimet_encodings(read))
        return
    console = new_console()
    console.print(f"Encodings: {path}, recipe of {read.source}", highlight=False)
    for line in not_carried(read):
        console.print(f"! Not in it: {line}.", highlight=False)


def parity(
    recipe: RecipeFile,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE.onnx", help="(default: what export writes)")
    ] = None,
    model: RecipeModel = None,
    data: RecipeData = None,
    metric: Metric = None,
    samples: Annotated[int, typer.Option(help="An evenly spaced subset of the images")] = 256,
    preprocess: Preprocess = None,
    integers: Annotated[str, typer.Option(help="Integer arithmetic: onnxruntime, tflite, ...")] = "onnxruntime",
    threads: Threads = 1,
    also: Also = None,
    as_json: Json = False,
) -> None:
    """Float, simulation, integer arithmetic and files on the same images: where they part, and why."""
    from quantopsy.api import parity as run
    from quantopsy.report.parity import parity_statements, parity_table
    from quantopsy.report.terminal import bullets, print_part

    with watched(as_json) as watch, kept_clean(as_json):
        found = run(
            recipe,
            files or (),
            model,
            data,
            metric=metric,
            preprocess=preprocess,
            samples=samples,
            integers=integers,
            threads=threads,
            also=also or (),
            progress=watch,
        )
    if as_json:
        print_json(found.to_json())
        return
    console = new_console()
    print_part(console, parity_table(found))
    print_part(console, bullets(parity_statements(found), []))
