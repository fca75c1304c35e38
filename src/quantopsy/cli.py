"""The commands, nothing else: arguments in, the Python interface called, results shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from quantopsy.core import QuantopsyError

_EXITS = ("onnx", "pt2", "pt2e", "encodings")
_TARGETS = "any, per-tensor, onnxruntime-cpu, onnxruntime-avx2, tensorrt, openvino, qnn, xnnpack, or FILE.json"

app = typer.Typer(
    help="A post-mortem for quantized convolutional networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Watch:
    """Progress on a terminal, with an estimate of the time left; silent elsewhere."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.bar = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.task: TaskID | None = None

    def start(self, phase: str, total: float) -> None:
        """A phase begins."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(phase, total=total or 1, completed=0 if total else 1)

    def advance(self, amount: float) -> None:
        """Some of the phase's work is done."""
        if self.task is not None:
            self.bar.advance(self.task, amount)

    def say(self, line: str) -> None:
        """A line above the progress bar."""
        if not self.quiet:
            self.console.print(line, highlight=False, markup=False)


def _console(**options: Any) -> Console:
    """A console on which names stay what they are: ``images:one:`` has no emoji in it."""
    return Console(emoji=False, **options)


@contextmanager
def watched(quiet: bool) -> Iterator[Watch]:
    """A progress display on standard error; standard output is for results. Of several processes only the first
    one's is seen."""
    watch = Watch(_console(stderr=True), quiet or os.environ.get("RANK", "0") != "0")
    with watch.bar:
        yield watch


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
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else")]


@app.command()
def analyze(
    model: Model,
    data: Data,
    out: Out = None,
    metric: Annotated[
        str | None, typer.Option(help="top1, top5, agreement, or package.module:callable  (default: top1 with labels)")
    ] = None,
    bits: Annotated[str, typer.Option(help="Bit-widths of weights: 8, 4,8 or 3-8")] = "3-8",
    scheme: Annotated[str, typer.Option(help="per-tensor or per-channel")] = "per-tensor",
    activation_bits: Annotated[int, typer.Option(help="Bit-width of activations")] = 8,
    quantizer: Annotated[str | None, typer.Option(help="Weight quantizer, see `quantopsy quantizers`")] = None,
    granularity: Annotated[str | None, typer.Option(help="per_tensor, per_channel, per_group:N")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the weight quantizer; may be repeated")
    ] = None,
    correction: Annotated[str | None, typer.Option(help="Of quantized weights: none, mean_variance, bias")] = None,
    split_channels: Annotated[float, typer.Option(help="Share of input channels split in two (OCS)")] = 0.0,
    weight_range: Annotated[str | None, typer.Option(help="Range estimator of weights")] = None,
    activation_range: Annotated[str | None, typer.Option(help="Range estimator of activations")] = None,
    plan: Annotated[Path | None, typer.Option(help="JSON plan laid over the scheme, layer by layer")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Only layers that match; may be repeated")] = None,
    calibration: Annotated[str | None, typer.Option(help="Images for the ranges  (default: those of --data)")] = None,
    calibration_samples: Annotated[int | None, typer.Option(help="At most so many images for the ranges")] = None,
    samples: Annotated[int | None, typer.Option(help="An evenly spaced subset; more can follow later")] = None,
    mode: Annotated[
        str,
        typer.Option(help="screen: predict all cells; exact: run them; auto: predict, then run what decides"),
    ] = "auto",
    budget: Annotated[
        str | None, typer.Option(help="Of auto: a time (90s, 10m, 1h) or a number of passes  (default: 30)")
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence level of intervals and verdicts")] = 0.95,
    tolerance: Annotated[
        float | None, typer.Option(help="Loss that a harmless layer may have  (default: 1 point, or 1 % of the metric)")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="package.module:callable (outputs, labels) -> (B,), screened instead of margins")
    ] = None,
    probes: Annotated[int, typer.Option(help="Random probes of the screen")] = 1,
    seed: Annotated[int, typer.Option(help="Of probes, drawn images and checks")] = 0,
    engine: Annotated[str, typer.Option(help="local, ray, or ray:ADDRESS")] = "local",
    preprocess: Preprocess = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave unreadable images out, and count them")] = False,
    unfused: Unfused = None,
    device: Device = "cpu",
    tile: Annotated[int | None, typer.Option(help="Images run at once  (default: by memory)")] = None,
    max_memory: Annotated[float, typer.Option(help="GiB for the images in flight")] = 4.0,
    fresh: Annotated[bool, typer.Option(help="Discard the study that is in the folder")] = False,
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
        seed=seed,
        engine=engine,
        device=device,
        tile=tile,
        max_memory=max_memory,
    )
    _analyze(
        model,
        data,
        out or Path(f"quantopsy-{_slug(model)}"),
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


@app.command()
def report(
    study: StudyFolder,
    metric: StudyMetric = None,
    as_json: Json = False,
) -> None:
    """Show a study again and rewrite its page and table, from what it holds."""
    from quantopsy.api import finish, open_study
    from quantopsy.report.terminal import print_results

    _show(finish(open_study(study, metric)), as_json, print_results)


@app.command()
def additivity(
    study: StudyFolder,
    low: Annotated[int, typer.Option(help="Bits of the weights of a random subset of layers")] = 4,
    high: Annotated[int, typer.Option(help="Bits of the weights of all others")] = 8,
    subsets: Annotated[int, typer.Option(help="How many, their sizes spread from one layer to all")] = 24,
    samples: Annotated[int | None, typer.Option(help="The first so many images of the study  (default: all)")] = None,
    seed: Annotated[int, typer.Option(help="Of the subsets")] = 0,
    metric: StudyMetric = None,
    as_json: Json = False,
) -> None:
    """Say how far the losses of single layers add up to that of the network."""
    from quantopsy import api
    from quantopsy.report.terminal import print_additivity

    with watched(as_json) as watch, _kept_clean(as_json):
        found = api.additivity(
            study, low=low, high=high, subsets=subsets, samples=samples, seed=seed, metric=metric, progress=watch
        )
    _show(found, as_json, print_additivity)
    done = found.results.additivity
    if done is None or done.samples < done.wanted:
        raise _stopped()


@app.command()
def diagnose(
    study: StudyFolder,
    bits: Annotated[int | None, typer.Option(help="Of weights  (default: the highest at which a layer hurts)")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Layers that match, instead of those that hurt")] = None,
    samples: Annotated[int, typer.Option(help="Images that tests are run on")] = 256,
    as_json: Json = False,
) -> None:
    """Find out why layers hurt: name causes, test each by a counterfactual, say what it removes."""
    from quantopsy.api import diagnose as run
    from quantopsy.report.terminal import print_findings

    with watched(as_json) as watch:
        found = run(study, bits=bits, layers=tuple(layers or ()), samples=samples, progress=watch)
    _show(found, as_json, print_findings)


@app.command()
def repair(
    study: StudyFolder,
    bits: Annotated[int | None, typer.Option(help="Of weights  (default: the study's most)")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Loss of the metric to end at  (default: half the study's tolerance)")
    ] = None,
    target: Annotated[str, typer.Option(help=f"What it is to run on: {_TARGETS}")] = "any",
    budget: Annotated[str | None, typer.Option(help="Try nothing new after that long: 10m")] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe  (default: recipe.json of the study)")] = None,
    as_json: Json = False,
) -> None:
    """Try fixes, cheapest first, keep those that held-out images confirm, and write the recipe."""
    from quantopsy.api import repair as run
    from quantopsy.core.recipe import RECIPE
    from quantopsy.report.terminal import print_repair

    with watched(as_json) as watch, _kept_clean(as_json):
        found = run(study, bits=bits, max_drop=max_drop, target=target, budget=budget, out=out, progress=watch)
    if as_json:
        from quantopsy.report.repaired import repair_document

        _print_json(repair_document(found.results))
        return
    _show(found, as_json, print_repair)
    _console().print(f"Recipe: {out or study / RECIPE}", highlight=False)


@app.command()
def allocate(
    study: StudyFolder,
    size: Annotated[str | None, typer.Option(help="Of all weights: 4bits, 0.5x (of 8 bits), 300KB")] = None,
    bitops: Annotated[
        str | None, typer.Option(help="MACs x bits of weight x bits of input: 4bits, 0.5x (of 8-bit weights), 1.5G")
    ] = None,
    latency: Annotated[
        Path | None, typer.Option(help="CSV: layer,bits,latency, or a column per bit-width: layer,2,4,8")
    ] = None,
    latency_limit: Annotated[str | None, typer.Option(help="In the table's unit, or 4bits, 0.5x")] = None,
    bits: Annotated[str | None, typer.Option(help="Of weights, to choose from  (default: the study's)")] = None,
    activation_bits: Annotated[
        str | None, typer.Option(help="Of activations, to choose from: 4,8  (default: as they are)")
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(help="noise, additive, degradation, hawq or greedy  (default: whichever measures best)"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe  (default: recipe.json of the study)")] = None,
    as_json: Json = False,
) -> None:
    """Mixed precision: bits per layer under limits on size, BitOps, latency, or several; writes a recipe."""
    from quantopsy.api import allocate as run
    from quantopsy.core.recipe import RECIPE
    from quantopsy.report.allocated import allocation_document
    from quantopsy.report.terminal import print_allocation

    with watched(as_json) as watch, _kept_clean(as_json):
        found = run(
            study,
            size=size,
            bitops=bitops,
            latency=latency,
            latency_limit=latency_limit,
            bits=None if bits is None else parse_bits(bits),
            activation_bits=() if activation_bits is None else parse_bits(activation_bits),
            criterion=criterion,
            out=out,
            progress=watch,
        )
    if as_json:
        _print_json(allocation_document(found.results))
        return
    _show(found, as_json, print_allocation)
    _console().print(f"Recipe: {out or study / RECIPE}", highlight=False)


@app.command()
def train(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A MODEL, the folder of an analysis, or a recipe.json")
    ],
    data: Annotated[str, typer.Option(help="Images to train on; labels where there are")],
    evaluation: Annotated[
        str | None, typer.Option(help="Images that decide nothing, for the final figure  (default: the study's)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; a training that was interrupted goes on in it")] = None,
    method: Annotated[str, typer.Option(help="ddq, lsq, lsq+, pact, dorefa, pot, apot, ste; float to compare")] = "ddq",
    activation_method: Annotated[
        str | None, typer.Option(help="Of activations  (default: as weights; with ddq, pot, apot lsq)")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Of weights  (default: a recipe's own, else 4; 8 at most where they learn)")
    ] = None,
    activation_bits: Annotated[
        int | None, typer.Option(help="Of activations  (default: a study's or recipe's own, else 8)")
    ] = None,
    edge_bits: Annotated[int, typer.Option(help="Of a model's first and last layer; 0: as all others")] = 8,
    bias_bits: Annotated[int | None, typer.Option(help="Put biases on grids too")] = None,
    scheme: Annotated[str, typer.Option(help="Of a model: per-tensor or per-channel")] = "per-tensor",
    edges: Annotated[
        str, typer.Option(help="Of a model: quantize all values, or the inputs of layers with weights alone")
    ] = "all",
    plan: Annotated[Path | None, typer.Option(help="JSON plan laid over a model's, layer by layer")] = None,
    target: Annotated[
        str | None, typer.Option(help="Let bits of weights learn, within 4bits on average, 500KB, or 0.125x of float")
    ] = None,
    bitops: Annotated[
        str | None,
        typer.Option(
            help="Let bits of weights and of what they multiply learn, within 4bits (of weights), 0.5x of 8, or 1.5G"
        ),
    ] = None,
    share: Annotated[
        list[str] | None, typer.Option(help="Layers that match learn one bit-width together; may be repeated")
    ] = None,
    footprint: Annotated[str, typer.Option(help="bits, or levels: 2^bits, as DDQ's equation (6) is printed")] = "bits",
    correction: Annotated[
        float | None, typer.Option(help="Lambda of DDQ's gradient correction, for any method  (default: 0.001 of ddq)")
    ] = None,
    norms: Annotated[str, typer.Option(help="Batch norms: kept (weights get grids per channel), or folded")] = "kept",
    epochs: Annotated[int, typer.Option(help="How many")] = 10,
    batch: Annotated[
        int | None,
        typer.Option(help="Images of a step, of all processes together  (default: 64, of few images fewer)"),
    ] = None,
    rate: Annotated[float, typer.Option(help="Learning rate of weights")] = 0.01,
    distillation: Annotated[
        float, typer.Option(help="Weight of the float network's outputs in the loss; 0: none")
    ] = 1.0,
    augment: Annotated[
        str, typer.Option(help="none, flip, flip+shift  (auto: flip+shift of labelled pictures)")
    ] = "auto",
    ema: Annotated[float, typer.Option(help="Evaluate and keep a running average of weights: 0.999; 0: none")] = 0.0,
    patience: Annotated[int | None, typer.Option(help="End after so many epochs without a better one")] = None,
    validation: Annotated[float, typer.Option(help="Share of the images that chooses the best epoch")] = 0.1,
    loss: Annotated[str | None, typer.Option(help="package.module:callable (outputs, labels) -> (B,)")] = None,
    metric: Metric = None,
    samples: Annotated[int | None, typer.Option(help="An evenly spaced subset of --data")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of images and their changes")] = 0,
    unfused: Unfused = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16")] = "no",
    preprocess: Preprocess = None,
    device: Device = "cpu",
    fresh: Annotated[bool, typer.Option(help="Begin again")] = False,
    as_json: Json = False,
) -> None:
    """Quantization-aware training: levels, step sizes and bits are learned; writes a network and its recipe."""
    from quantopsy.api import REPORT
    from quantopsy.api import train as run
    from quantopsy.report.trained import print_trained

    folder = out or Path(f"quantopsy-trained-{_slug(source)}")
    with watched(as_json) as watch, _kept_clean(as_json):
        watch.say(f"Quantopsy: {source}, trained on {data}")
        try:
            found = run(
                source,
                data,
                evaluation=evaluation,
                metric=metric,
                preprocess=preprocess,
                loss=loss,
                unfused=parse_names(unfused),
                out=folder,
                fresh=fresh,
                progress=watch,
                method=method,
                activation_method=activation_method,
                bits=bits,
                activation_bits=activation_bits,
                edge_bits=edge_bits,
                bias_bits=bias_bits,
                scheme=scheme,
                edges=edges,
                plan=None if plan is None else read_json(plan, "plan"),
                target=target,
                bitops=bitops,
                share=tuple(share or ()),
                footprint=footprint,
                correction=correction,
                norms=norms,
                epochs=epochs,
                batch=batch,
                rate=rate,
                distillation=distillation,
                augment=augment,
                ema=ema,
                patience=patience,
                validation=validation,
                samples=samples,
                seed=seed,
                precision=precision,
                device=device,
            )
        except KeyboardInterrupt:
            raise _stopped() from None
    if found is None:  # of several processes the first one tells
        return
    if as_json:
        _print_json(found.trained.to_json())
        return
    console = _console()
    print_trained(found.trained, console)
    console.print(f"\nRecipe: {folder / 'recipe.json'}   report: {folder / REPORT}", highlight=False)


@app.command(name="apply")
def apply_(
    recipe: RecipeFile,
    model: RecipeModel = None,
    data: RecipeData = None,
    metric: Metric = None,
    samples: Annotated[int | None, typer.Option(help="An evenly spaced subset")] = None,
    preprocess: Preprocess = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run the network that a recipe makes of a model, beside the float one."""
    from quantopsy.api import apply as run
    from quantopsy.report.repaired import applied_sentences

    with watched(as_json) as watch, _kept_clean(as_json):
        found = run(
            recipe, model, data, metric=metric, samples=samples, preprocess=preprocess, device=device, progress=watch
        )
    if as_json:
        _print_json(found.to_json())
        return
    for sentence in applied_sentences(found):
        _console().print(sentence, highlight=False)


@app.command()
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
    target: Annotated[str | None, typer.Option(help=f"Write nothing that this cannot run: {_TARGETS}")] = None,
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
        with watched(as_json) as watch, _kept_clean(as_json):
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
            _print_json(program.to_json())
            return
        print_part(_console(), bullets(program_statements(program), program_cautions(program)))
        _console().print(f"\nFile: {program.path}", highlight=False)
        return
    with watched(as_json) as watch, _kept_clean(as_json):
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
        _print_json(found.to_json())
        return
    console = _console()
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
        _print_json(aimet_encodings(read))
        return
    console = _console()
    console.print(f"Encodings: {path}, recipe of {read.source}", highlight=False)
    for line in not_carried(read):
        console.print(f"! Not in it: {line}.", highlight=False)


@app.command()
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

    with watched(as_json) as watch, _kept_clean(as_json):
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
        _print_json(found.to_json())
        return
    console = _console()
    print_part(console, parity_table(found))
    print_part(console, bullets(parity_statements(found), []))


@app.command()
def compare(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Folders of analyses")],
    bits: Annotated[
        str | None, typer.Option(help="Bit-widths: 8, 4,8 or 3-8  (default: 8; of a single study all)")
    ] = None,
    level: Annotated[float | None, typer.Option(help="Confidence level  (default: the first study's)")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Change that does not matter  (default: the first study's)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page: FILE.html")] = None,
    metric: Annotated[str | None, typer.Option(help="The metric, where it was a Python object")] = None,
    as_json: Json = False,
) -> None:
    """Which layers changed from the first study to the others, or from its finest bits to fewer. Runs nothing."""
    from quantopsy.analysis.document import comparison_document
    from quantopsy.api import compare as compared
    from quantopsy.report.compared.terminal import print_compared

    found = compared(
        *studies,
        bits=None if bits is None else parse_bits(bits),
        metric=metric,
        level=level,
        tolerance=tolerance,
    )
    if out is not None:
        found.report(out)
    if as_json:
        _print_json(comparison_document(found.compared))
        return
    console = _console()
    print_compared(found.compared, console)
    if out is not None:
        console.print(f"\nReport: {out}", highlight=False)


@app.command()
def gate(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Folder of an analysis, or a recipe.json")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The same, of what is to replace it")],
    rules: Annotated[
        Path | None, typer.Option(help="TOML: max_drop, max_changed_layers, ...  (default: the study's tolerance)")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Of weights  (default: the rules', else 8)")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML, a test case for each rule: FILE.xml")] = None,
    metric: StudyMetric = None,
    as_json: Json = False,
) -> None:
    """Check that NEW may replace OLD, rule by rule: exit code 0 where all hold, 1 where one does not. Runs nothing."""
    from quantopsy.api import gate as run
    from quantopsy.report.gate.terminal import print_gate

    changed = {} if bits is None else {"bits": bits}
    found = run(old, new, rules, metric=metric, **changed)
    if junit is not None:
        found.junit(junit)
    if as_json:
        _print_json(found.document())
    else:
        print_gate(found.judged, _console())
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def calibration(
    model: Model,
    data: Annotated[str, typer.Option(help="Images held out: those that the network is for, labelled where there are")],
    calibration: Annotated[str, typer.Option(help="Images that ranges are to be estimated on")],
    out: Annotated[Path | None, typer.Option(help="Folder; a run that was interrupted goes on in it")] = None,
    metric: Annotated[
        str | None, typer.Option(help="top1, top5, agreement, or package.module:callable  (default: top1 with labels)")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bit-width of weights")] = 8,
    scheme: Annotated[str, typer.Option(help="per-tensor or per-channel")] = "per-tensor",
    activation_bits: Annotated[int, typer.Option(help="Bit-width of activations")] = 8,
    activation_range: Annotated[str | None, typer.Option(help="Range estimator of activations")] = None,
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
    tile: Annotated[int | None, typer.Option(help="Images run at once  (default: by memory)")] = None,
    max_memory: Annotated[float, typer.Option(help="GiB for the images in flight, and for what is kept")] = 4.0,
    fresh: Annotated[bool, typer.Option(help="Discard what is in the folder")] = False,
    as_json: Json = False,
) -> None:
    """Are the calibration images enough, and the right ones? Ranges and metric by their number, and what is wrong."""
    from quantopsy.analysis.calibration.document import document
    from quantopsy.api import REPORT, SELECTED, check_calibration
    from quantopsy.report.calibration.terminal import print_study

    folder = out or Path(f"quantopsy-calibration-{_slug(model)}")
    with watched(as_json) as watch, _kept_clean(as_json):
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
        _print_json(document(study))
        return
    console = _console()
    print_study(study, console)
    console.print(f"\nReport: {folder / REPORT}", highlight=False)
    if study.selection is not None:
        path = folder / SELECTED
        console.print(f"Selected: {path}, for --calibration {calibration}@{path}", highlight=False, soft_wrap=True)


@app.command()
def schemes(
    model: Model,
    data: Data,
    out: Out = None,
    metric: Metric = None,
    bits: Annotated[str, typer.Option(help="Bit-widths of weights: 8, 4,8 or 3-8")] = "8",
    activation_bits: Annotated[int, typer.Option(help="Bit-width of activations")] = 8,
    weight_range: Annotated[str | None, typer.Option(help="Range estimator of weights")] = None,
    activation_range: Annotated[str | None, typer.Option(help="Range estimator of activations")] = None,
    calibration: Annotated[str | None, typer.Option(help="Images for the ranges  (default: those of --data)")] = None,
    calibration_samples: Annotated[int | None, typer.Option(help="At most so many images for the ranges")] = None,
    samples: Annotated[int | None, typer.Option(help="An evenly spaced subset; more can follow later")] = None,
    level: Annotated[float, typer.Option(help="Confidence level of intervals and verdicts")] = 0.95,
    tolerance: Annotated[
        float | None, typer.Option(help="Loss that does not matter  (default: 1 point, or 1 % of the metric)")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, ray, or ray:ADDRESS")] = "local",
    preprocess: Preprocess = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave unreadable images out, and count them")] = False,
    device: Device = "cpu",
    tile: Annotated[int | None, typer.Option(help="Images run at once  (default: by memory)")] = None,
    max_memory: Annotated[float, typer.Option(help="GiB for the images in flight")] = 4.0,
    fresh: Annotated[bool, typer.Option(help="Discard the study that is in the folder")] = False,
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
    folder = out or Path(f"quantopsy-schemes-{_slug(model)}")
    check_folder(folder)
    from quantopsy.analysis.document import scheme_document
    from quantopsy.analysis.scheme_table import evaluate
    from quantopsy.analysis.subject import Given
    from quantopsy.api import SCHEMES, SCHEMES_REPORT, Schemes, finish_schemes
    from quantopsy.report.schemes import print_schemes

    with watched(as_json) as watch, _kept_clean(as_json):
        watch.say(f"Quantopsy: {model}")
        given = Given(model, data, metric, calibration, preprocess, skip_bad)
        table = evaluate(given, settings, out=folder, fresh=fresh, progress=watch)
    finish_schemes(Schemes(folder, table))
    if as_json:
        _print_json(scheme_document(table))
    else:
        console = _console()
        print_schemes(table, console)
        console.print(f"\nReport: {folder / SCHEMES_REPORT}   table: {folder / SCHEMES}", highlight=False)
    if not table.complete:
        raise _stopped()


@app.command()
def quantizers(as_json: Json = False) -> None:
    """List the quantizers and range estimators, a line each."""
    from rich.markup import escape
    from rich.table import Table

    from quantopsy.calibrate.registry import summaries

    found = summaries()
    if as_json:
        _print_json(found)
        return
    console = _console()
    for heading, entries in found.items():
        table = Table(title=heading.replace("_", " "), title_justify="left", box=None, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, summary in entries.items():
            table.add_row(escape(name), escape(summary))
        console.print(table)


@app.command()
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

        with watched(as_json) as watch, _kept_clean(as_json):
            watch.say(f"Quantopsy: {title or model}")
            results = run(model, data, out=out, settings=settings, progress=watch, **options)
    except KeyboardInterrupt:
        raise _stopped("Stopped before anything was measured; the same command begins again.") from None
    _show(finish(Study(out, results)), as_json, print_results)
    if not results.complete:
        raise _stopped()


def _kept_clean(as_json: bool) -> AbstractContextManager[Any]:
    """Standard output is for the document; a cluster's own notices would go there too."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def _stopped(words: str = "Stopped; the same command goes on where it was.") -> typer.Exit:
    _console(stderr=True).print(words)
    return typer.Exit(130)


def _print_json(value: Any) -> None:
    """For programs: what JSON cannot hold is null."""
    from quantopsy.core.plain import plain

    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def _show(study: Any, as_json: bool, show: Callable[[Any, Console], None]) -> None:
    """The document, or what ``show`` prints of the results."""
    from quantopsy.analysis.document import document
    from quantopsy.api import CELLS, REPORT

    if as_json:
        _print_json(document(study.results))
        return
    console = _console()
    show(study.results, console)
    console.print(f"\nReport: {study.folder / REPORT}   table: {study.folder / CELLS}", highlight=False)


def _slug(model: str) -> str:
    name = model.rpartition(":")[2] if ":" in model else Path(model).stem
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name) or "study"


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except QuantopsyError as error:
        _console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
