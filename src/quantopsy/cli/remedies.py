"""What to do: repair, mixed precision, training, and a recipe applied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantopsy.cli.arguments import (
    TARGETS,
    Device,
    Json,
    Metric,
    Preprocess,
    RecipeData,
    RecipeFile,
    RecipeModel,
    StudyFolder,
    Unfused,
    parse_bits,
    parse_names,
    read_json,
    slug,
)
from quantopsy.cli.terminal import kept_clean, new_console, print_json, print_next, show, stopped, watched


def repair(
    study: StudyFolder,
    bits: Annotated[int | None, typer.Option(help="Of weights  (default: the study's most)")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Loss of the metric to end at  (default: half the study's tolerance)")
    ] = None,
    target: Annotated[str, typer.Option(help=f"What it is to run on: {TARGETS}")] = "any",
    budget: Annotated[str | None, typer.Option(help="Try nothing new after that long: 10m")] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe  (default: recipe.json of the study)")] = None,
    as_json: Json = False,
) -> None:
    """Try fixes, cheapest first, keep those that held-out images confirm, and write the recipe."""
    from quantopsy.api import repair as run
    from quantopsy.report.terminal import print_repair

    with watched(as_json) as watch, kept_clean(as_json):
        found = run(study, bits=bits, max_drop=max_drop, target=target, budget=budget, out=out, progress=watch)
    if as_json:
        from quantopsy.analysis.document import repair_document

        print_json(repair_document(found.results))
        return
    show(found, as_json, print_repair)
    _print_recipe(study, out)


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
    from quantopsy.analysis.document import allocation_document
    from quantopsy.api import allocate as run
    from quantopsy.report.terminal import print_allocation

    with watched(as_json) as watch, kept_clean(as_json):
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
        print_json(allocation_document(found.results))
        return
    show(found, as_json, print_allocation)
    _print_recipe(study, out)


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

    folder = out or Path(f"quantopsy-trained-{slug(source)}")
    with watched(as_json) as watch, kept_clean(as_json):
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
            raise stopped() from None
    if found is None:  # of several processes the first one tells
        return
    if as_json:
        print_json(found.trained.to_json())
        return
    console = new_console()
    print_trained(found.trained, console)
    console.print(f"\nRecipe: {folder / 'recipe.json'}   report: {folder / REPORT}", highlight=False)
    print_next(folder, "export")


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

    with watched(as_json) as watch, kept_clean(as_json):
        found = run(
            recipe, model, data, metric=metric, samples=samples, preprocess=preprocess, device=device, progress=watch
        )
    if as_json:
        print_json(found.to_json())
        return
    for sentence in applied_sentences(found):
        new_console().print(sentence, highlight=False)


def _print_recipe(study: Path, out: Path | None) -> None:
    from quantopsy.core.recipe import RECIPE

    new_console().print(f"Recipe: {out or study / RECIPE}", highlight=False)
    print_next(out or study, "export")
