"""A comparison as a page: the whole networks, profiles over one another, every layer with what became of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from quantopsy.analysis.comparison import Compared, Difference, View
from quantopsy.report import sheet
from quantopsy.report.chart import Section, Table
from quantopsy.report.compared.profile import profile_chart
from quantopsy.report.compared.words import (
    before_to_after,
    called,
    cautions,
    heading,
    in_decibels,
    statements,
    worst_first,
)
from quantopsy.report.sheet import Sheet
from quantopsy.report.wording import (
    PREDICTED,
    Writer,
    confidence,
    degradation_unit,
    fixed,
    interval,
    percent,
    predicted,
    signed,
    significant,
)


def write(compared: Compared, path: str | Path) -> Path:
    """Write the page of ``compared`` to ``path``."""
    return sheet.write(page(compared), path)


def page(compared: Compared) -> Sheet:
    """What stands on the page."""
    first = compared.views[0]
    whole = [sentence for difference in compared.differences for sentence in statements(difference, compared)[:1]]
    limits = [sentence for difference in compared.differences for sentence in cautions(difference, compared)]
    names = [called(view, compared) for view in compared.views]
    one_study = len({view.label for view in compared.views}) == 1
    return Sheet(
        heading=f"{first.label}: {', '.join(names)}" if one_study else " beside ".join(dict.fromkeys(names)),
        facts=(f"metric {first.results.metric}", f"intervals at {_level(compared)}", f"{compared.looks} looks"),
        lead=whole[0] if whole else f"There is one profile and nothing to hold it against: `{first.name}`.",
        statements=tuple(whole[1:]),
        cautions=tuple(dict.fromkeys(limits)),
        sections=(
            Section(
                "profiles",
                "Profiles",
                "Each layer quantized alone, the rest in float. Layers in topological order; partners stand in one "
                "place. What is screened (predicted, not run) is hollow.",
                charts=(profile_chart(compared, "degradation"), profile_chart(compared, "noise")),
            ),
            *(_section(f"difference-{index}", found, compared) for index, found in enumerate(compared.differences)),
            Section("studies", "Studies", table=_studies(compared)),
        ),
    )


def _level(compared: Compared) -> str:
    return f"{100 * compared.level:g} %"


def _section(key: str, difference: Difference, compared: Compared) -> Section:
    told = statements(difference, compared)[1:]
    for view, names in zip((difference.before, difference.after), difference.partnerless(), strict=True):
        if names and difference.matching.pairs:
            told.append(f"Only in `{called(view, compared)}`: {', '.join(f'`{name}`' for name in names)}.")
    return Section(
        key,
        heading(difference, compared),
        "Layers that certainly changed come first, the rest by how much their noise changed. A verdict is worse or "
        "better where that is certain, corrected for all that was looked at; unchanged where no more than the "
        "tolerance is possible; else undecided: it cannot be told from these images."
        if not difference.layers.empty
        else "",
        statements=tuple(told),
        table=None if difference.layers.empty else _layers(difference, compared),
    )


def _layers(difference: Difference, compared: Compared) -> Table:
    write = Writer.of(difference.before.results)
    level = _level(compared)
    return Table(
        heading(difference, compared),
        (
            "layer", "op", f"degradation{degradation_unit(difference.before.results)}", "change", f"{level} interval",
            "verdict", "SQNR (dB)", "change", f"{level} interval", "verdict", "noise",
        ),
        tuple(_row(row, write) for _, row in worst_first(difference).iterrows()),
    )  # fmt: skip


def _row(row: pd.Series, write: Writer) -> tuple[str, ...]:
    screened = bool(row["screened_before"] or row["screened_after"])
    renamed = row["name"] != row["name_after"]
    return (
        f"{row['name']} = {row['name_after']}" if renamed else str(row["name"]),
        str(row["op"]),
        before_to_after(row, "degradation", write.number),
        predicted(signed(row["degradation_change"], write.decimals), screened),
        interval(row["degradation_change_low"], row["degradation_change_high"], write.decimals),
        str(row["verdict"]),
        before_to_after(row, "sqnr_db", in_decibels),
        predicted(signed(row["sqnr_change_db"], 1), screened),
        interval(row["sqnr_change_db_low"], row["sqnr_change_db_high"], 1),
        str(row["noise_verdict"]),
        before_to_after(row, "noise", significant),
    )


def _studies(compared: Compared) -> Table:
    first = compared.views[0].results
    return Table(
        "The studies",
        (
            "study", "bits", "model", "data", "scheme", "images", "float", "quantized",
            f"degradation{degradation_unit(first)}", f"{confidence(first)} interval", "cells run",
        ),
        tuple(_study(view) for view in compared.views),
    )  # fmt: skip


def _study(view: View) -> tuple[str, ...]:
    results, whole, write = view.results, view.whole, Writer.of(view.results)
    measured = ("", "", "")
    if whole is not None:
        measured = (
            fixed(whole["value"], write.decimals),
            fixed(whole["degradation"], write.decimals),
            interval(whole["degradation_low"], whole["degradation_high"], write.decimals),
        )
    run = view.cells["method"] == "exact"
    return (
        view.label,
        str(view.bits),
        results.model,
        results.data,
        str(results.settings.get("scheme", "")),
        str(results.samples),
        fixed(results.float_value, write.decimals),
        *measured,
        percent(float(run.mean())) if len(run) else PREDICTED,
    )
