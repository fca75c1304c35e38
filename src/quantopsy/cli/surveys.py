"""Before an analysis: what the model is, schemes, calibration images, what quantizers there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantopsy.cli.arguments import (
    ActivationBits,
    ActivationRange,
    Calibration,
    CalibrationSamples,
    Data,
    Device,
    Engine,
    Fresh,
    Json,
    Level,
    MaxMemory,
    Metric,
    Model,
    Out,
    Preprocess,
    Samples,
    Scheme,
    SkipBad,
    Tile,
    Unfused,
    WeightRange,
    changes,
    parse_bits,
    parse_names,
    parse_sizes,
    slug,
)
from quantopsy.cli.terminal import kept_clean, new_console, print_json, stopped, watched


def check(
    model: Model,
    data: Data,
    metric: Metric = None,
    bits: Annotated[str, typer.Option(help="Bit-widths of weights that an analysis would have")] = "3-8",
    samples: Annotated[int | None, typer.Option(help="Images to run  (default: 64)")] = None,
    preprocess: Preprocess = None,
    skip_bad: SkipBad = False,
    unfused: Unfused = None,
    device: Device = "cpu",
    max_memory: MaxMemory = 4.0,
    as_json: Json = False,
) -> None:
    """Before an analysis, in seconds: what can be quantized, whether the float network is right, what a study costs."""
    from quantopsy.api import check as run
    from quantopsy.report.checked import checked_document, print_checked

    with watched(as_json) as watch, kept_clean(as_json):
        watch.say(f"Quantopsy: {model}")
        checked = run(
            model,
            data,
            metric=metric,
            bits=parse_bits(bits),
            preprocess=preprocess,
            skip_bad=skip_bad,
            unfused=parse_names(unfused),
            progress=watch,
            samples=samples,
            device=device,
            max_memory=max_memory,
        )
    if as_json:
        print_json(checked_document(checked))
    else:
        print_checked(checked, new_console())


def schemes(
    model: Model,
    data: Data,
    out: Out = None,
    metric: Metric = None,
    bits: Annotated[str, typer.Option(help="Bit-widths of weights: 8, 4,8 or 3-8")] = "8",
    activation_bits: ActivationBits = 8,
    weight_range: WeightRange = None,
    activation_range: ActivationRange = None,
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = None,
    samples: Samples = None,
    level: Level = 0.95,
    tolerance: Annotated[
        float | None, typer.Option(help="Loss that does not matter  (default: 1 point, or 1 % of the metric)")
    ] = None,
    engine: Engine = "local",
    preprocess: Preprocess = None,
    skip_bad: SkipBad = False,
    device: Device = "cpu",
    tile: Tile = None,
    max_memory: MaxMemory = 4.0,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Evaluate the whole network under the usual schemes: per tensor, per channel, weights or activations only."""
    from quantopsy.analysis.settings import Settings
    from quantopsy.study import check_folder

    settings = Settings(
        bits=parse_bits(bits),
        activation_bits=activation_bits,
        changes=changes(None, None, weight_range, activation_range, None, None),
        samples=samples,
        calibration_samples=calibration_samples,
        level=level,
        tolerance=tolerance,
        engine=engine,
        device=device,
        tile=tile,
        max_memory=max_memory,
    )
    folder = out or Path(f"quantopsy-schemes-{slug(model)}")
    check_folder(folder)
    from quantopsy.analysis.document import scheme_document
    from quantopsy.analysis.scheme_table import evaluate
    from quantopsy.analysis.subject import Given
    from quantopsy.api import SCHEMES, SCHEMES_REPORT, Schemes, finish_schemes
    from quantopsy.report.schemes import print_schemes

    with watched(as_json) as watch, kept_clean(as_json):
        watch.say(f"Quantopsy: {model}")
        given = Given(model, data, metric, calibration, preprocess, skip_bad)
        table = evaluate(given, settings, out=folder, fresh=fresh, progress=watch)
    finish_schemes(Schemes(folder, table))
    if as_json:
        print_json(scheme_document(table))
    else:
        console = new_console()
        print_schemes(table, console)
        console.print(f"\nReport: {folder / SCHEMES_REPORT}   table: {folder / SCHEMES}", highlight=False)
    if not table.complete:
        raise stopped()


def calibration(
    model: Model,
    data: Annotated[str, typer.Option(help="Images held out: those that the network is for, labelled where there are")],
    calibration: Annotated[str, typer.Option(help="Images that ranges are to be estimated on")],
    out: Annotated[Path | None, typer.Option(help="Folder; a run that was interrupted goes on in it")] = None,
    metric: Annotated[
        str | None, typer.Option(help="top1, top5, agreement, or package.module:callable  (default: top1 with labels)")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bit-width of weights")] = 8,
    scheme: Scheme = "per-tensor",
    activation_bits: ActivationBits = 8,
    activation_range: ActivationRange = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Run the metric with so many images: 1,4,16  (default: doubling, run where it decides)"),
    ] = None,
    draws: Annotated[int, typer.Option(help="Random subsets of each size")] = 5,
    select: Annotated[int | None, typer.Option(help="Choose so many images that stand for all")] = None,
    samples: Annotated[int | None, typer.Option(help="An evenly spaced subset of the images held out")] = None,
    calibration_samples: Annotated[int | None, typer.Option(help="An evenly spaced subset of --calibration")] = None,
    level: Annotated[float, typer.Option(help="Confidence level of intervals")] = 0.95,
    tolerance: Annotated[
        float | None, typer.Option(help="Loss that does not matter  (default: 1 point, or 1 % of the metric)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random subsets")] = 0,
    preprocess: Preprocess = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave unreadable images held out, out")] = False,
    device: Device = "cpu",
    tile: Tile = None,
    max_memory: Annotated[float, typer.Option(help="GiB for the images in flight, and for what is kept")] = 4.0,
    fresh: Annotated[bool, typer.Option(help="Discard what is in the folder")] = False,
    as_json: Json = False,
) -> None:
    """Are the calibration images enough, and the right ones? Ranges and metric by their number, and what is wrong."""
    from quantopsy.analysis.calibration.document import document
    from quantopsy.api import REPORT, SELECTED, check_calibration
    from quantopsy.report.calibration.terminal import print_study

    folder = out or Path(f"quantopsy-calibration-{slug(model)}")
    with watched(as_json) as watch, kept_clean(as_json):
        watch.say(f"Quantopsy: {model}, calibrated on {calibration}")
        study = check_calibration(
            model,
            data,
            calibration,
            metric=metric,
            bits=bits,
            sizes=None if sizes is None else parse_sizes(sizes),
            draws=draws,
            select=select,
            preprocess=preprocess,
            skip_bad=skip_bad,
            out=folder,
            fresh=fresh,
            progress=watch,
            scheme=scheme,
            activation_bits=activation_bits,
            changes=changes(None, None, None, activation_range, None, None),
            samples=samples,
            calibration_samples=calibration_samples,
            level=level,
            tolerance=tolerance,
            seed=seed,
            device=device,
            tile=tile,
            max_memory=max_memory,
        )
    if as_json:
        print_json(document(study))
        return
    console = new_console()
    print_study(study, console)
    console.print(f"\nReport: {folder / REPORT}", highlight=False)
    if study.selection is not None:
        path = folder / SELECTED
        console.print(f"Selected: {path}, for --calibration {calibration}@{path}", highlight=False, soft_wrap=True)


def quantizers(as_json: Json = False) -> None:
    """List the quantizers, range estimators and training methods, a line each."""
    from rich.markup import escape
    from rich.table import Table

    from quantopsy.calibrate.registry import summaries
    from quantopsy.training.quantizers.registry import METHODS

    found = summaries() | {"training_methods": {m.name: f"{m.summary} ({m.source})" for m in METHODS.values()}}
    if as_json:
        print_json(found)
        return
    console = new_console()
    for heading, entries in found.items():
        table = Table(title=heading.replace("_", " "), title_justify="left", box=None, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, summary in entries.items():
            table.add_row(escape(name), escape(summary))
        console.print(table)
