"""Which layers hurt: analyze, report, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    Model,
    Out,
    Preprocess,
    Samples,
    Scheme,
    SkipBad,
    StudyFolder,
    StudyMetric,
    Tile,
    Unfused,
    WeightRange,
    changes,
    parse_bits,
    parse_names,
    parse_options,
    read_json,
    slug,
)
from quantopsy.cli.terminal import kept_clean, print_next, show, stopped, watched


def analyze(
    model: Model,
    data: Data,
    out: Out = None,
    metric: Annotated[
        str | None, typer.Option(help="top1, top5, agreement, or package.module:callable  (default: top1 with labels)")
    ] = None,
    bits: Annotated[str, typer.Option(help="Bit-widths of weights: 8, 4,8 or 3-8")] = "3-8",
    scheme: Scheme = "per-tensor",
    activation_bits: ActivationBits = 8,
    quantizer: Annotated[str | None, typer.Option(help="Weight quantizer, see `quantopsy quantizers`")] = None,
    granularity: Annotated[str | None, typer.Option(help="per_tensor, per_channel, per_group:N")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the weight quantizer; may be repeated")
    ] = None,
    correction: Annotated[str | None, typer.Option(help="Of quantized weights: none, mean_variance, bias")] = None,
    split_channels: Annotated[float, typer.Option(help="Share of input channels split in two (OCS)")] = 0.0,
    weight_range: WeightRange = None,
    activation_range: ActivationRange = None,
    plan: Annotated[Path | None, typer.Option(help="JSON plan laid over the scheme, layer by layer")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Only layers that match; may be repeated")] = None,
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = None,
    samples: Samples = None,
    mode: Annotated[
        str,
        typer.Option(help="screen: predict all cells; exact: run them; auto: predict, then run what decides"),
    ] = "auto",
    budget: Annotated[
        str | None, typer.Option(help="Of auto: a time (90s, 10m, 1h) or a number of passes  (default: 30)")
    ] = None,
    level: Level = 0.95,
    tolerance: Annotated[
        float | None, typer.Option(help="Loss that a harmless layer may have  (default: 1 point, or 1 % of the metric)")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="package.module:callable (outputs, labels) -> (B,), screened instead of margins")
    ] = None,
    probes: Annotated[int, typer.Option(help="Random probes of the screen")] = 1,
    precision: Annotated[
        str, typer.Option(help="Of the float network in the screen: float32, or bf16 where its ranking is the same")
    ] = "float32",
    seed: Annotated[int, typer.Option(help="Of probes, drawn images and checks")] = 0,
    engine: Engine = "local",
    preprocess: Preprocess = None,
    skip_bad: SkipBad = False,
    unfused: Unfused = None,
    device: Device = "cpu",
    tile: Tile = None,
    max_memory: MaxMemory = 4.0,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Quantize one layer at a time and show which layers hurt."""
    from quantopsy.analysis.settings import Settings

    settings = Settings(
        bits=parse_bits(bits),
        scheme=scheme,
        activation_bits=activation_bits,
        changes=changes(quantizer, granularity, weight_range, activation_range, correction, parse_options(option)),
        split_channels=split_channels,
        plan=None if plan is None else read_json(plan, "plan"),
        layers=tuple(layers or ("*",)),
        samples=samples,
        calibration_samples=calibration_samples,
        mode=mode,
        budget=budget,
        level=level,
        tolerance=tolerance,
        noise_probes=probes,
        precision=precision,
        seed=seed,
        engine=engine,
        device=device,
        tile=tile,
        max_memory=max_memory,
    )
    _analyze(
        model,
        data,
        out or Path(f"quantopsy-{slug(model)}"),
        settings,
        as_json,
        metric=metric,
        calibration=calibration,
        preprocess=preprocess,
        skip_bad=skip_bad,
        fresh=fresh,
        loss=loss,
        unfused=parse_names(unfused),
    )


def report(
    study: StudyFolder,
    metric: StudyMetric = None,
    as_json: Json = False,
) -> None:
    """Show a study again and rewrite its page and table, from what it holds."""
    from quantopsy.api import finish, open_study
    from quantopsy.report.terminal import print_results

    show(finish(open_study(study, metric)), as_json, print_results)


def demo(
    out: Annotated[Path, typer.Option(help="Study folder")] = Path("quantopsy-demo"),
    samples: Annotated[int | None, typer.Option(help="Fewer images")] = None,
    as_json: Json = False,
) -> None:
    """EfficientNet-Lite0 with its ImageNet weights on crops of photographs: nothing to download."""
    from quantopsy.analysis.settings import Settings
    from quantopsy.demo import BITS

    settings = Settings(bits=BITS, samples=samples)
    model, data, calibration = (f"quantopsy.demo:{name}" for name in ("network", "evaluation", "calibration"))
    _analyze(model, data, out, settings, as_json, title="EfficientNet-Lite0", calibration=calibration)


def _analyze(
    model: Any, data: Any, out: Path, settings: Any, as_json: bool, title: str | None = None, **options: Any
) -> None:
    from quantopsy.study import check_folder

    check_folder(out)
    try:
        from quantopsy.analysis.analyze import analyze as run
        from quantopsy.api import Study, finish
        from quantopsy.report.terminal import print_results

        with watched(as_json) as watch, kept_clean(as_json):
            watch.say(f"Quantopsy: {title or model}")
            results = run(model, data, out=out, settings=settings, progress=watch, **options)
    except KeyboardInterrupt:
        raise stopped("Stopped before anything was measured; the same command begins again.") from None
    show(finish(Study(out, results)), as_json, print_results)
    if not results.complete:
        raise stopped()
    if not as_json:
        print_next(out, "diagnose", "repair")
