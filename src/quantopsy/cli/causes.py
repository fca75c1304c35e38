"""Why layers hurt: diagnose and additivity."""

from __future__ import annotations

from typing import Annotated

import typer

from quantopsy.cli.arguments import Json, StudyFolder, StudyMetric
from quantopsy.cli.terminal import kept_clean, print_next, show, stopped, watched


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
    show(found, as_json, print_findings)
    if not as_json:
        print_next(study, "repair")


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

    with watched(as_json) as watch, kept_clean(as_json):
        found = api.additivity(
            study, low=low, high=high, subsets=subsets, samples=samples, seed=seed, metric=metric, progress=watch
        )
    show(found, as_json, print_additivity)
    done = found.results.additivity
    if done is None or done.samples < done.wanted:
        raise stopped()
