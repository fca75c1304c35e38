"""A comparison in sentences, the whole network first; layer names and studies stand between backticks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from quantopsy.analysis.change import verdict_on
from quantopsy.analysis.comparison import NOISE_TOLERANCE_DB, Compared, Difference, View
from quantopsy.report.wording import Writer, count, fixed, interval, predicted

_NAMED = 3
"""Layers that a sentence names; the table has the rest."""


def called(view: View, compared: Compared) -> str:
    """What a view is called beside the others: its study, its bit-width, or both."""
    if len({other.label for other in compared.views}) == 1:
        return f"{view.bits} bits"
    return view.label if len({other.bits for other in compared.views}) == 1 else view.name


def heading(difference: Difference, compared: Compared) -> str:
    """What is held against what."""
    same = difference.before.bits == difference.after.bits and len({view.bits for view in compared.views}) == 1
    names = f"{called(difference.after, compared)} against {called(difference.before, compared)}"
    return f"{names}, weights at {difference.before.bits} bits" if same else names


def statements(difference: Difference, compared: Compared) -> list[str]:
    """What changed: the whole network, layers by their degradation, by their noise, and how alike the profiles are."""
    return [
        *_whole_sentences(difference, compared),
        *_layer_sentences(difference, compared),
        *_noise_sentences(difference),
        *_profile_sentences(difference),
    ]


def cautions(difference: Difference, compared: Compared) -> list[str]:
    """What limits it: other images, other settings, layers without a partner, what is screened or missing."""
    return [
        *_setting_cautions(difference, compared),
        *_partner_cautions(difference, compared),
        *_method_cautions(difference),
    ]


def worst_first(difference: Difference) -> pd.DataFrame:
    """The layers, those that certainly changed first and the greatest change of them first; the rest by noise.

    With ``screened_before`` and ``screened_after``, and ``rough_*`` where no prediction of noise is believed.
    """
    layers = difference.layers
    certain = layers["verdict"].isin(["worse", "better"])
    layers = layers.assign(
        screened_before=layers["method_before"] == "screened",
        screened_after=layers["method_after"] == "screened",
        order=layers["degradation_change"].abs().where(certain),
        loudness=layers["sqnr_change_db"].abs(),
    )
    return layers.sort_values(["order", "loudness", "layer"], ascending=[False, False, True], na_position="last").drop(
        columns=["order", "loudness"]
    )


def before_to_after(row: pd.Series, name: str, text: Callable[[float], str]) -> str:
    """``58.5 -> 0.6`` of a layer's column in ``text``, either marked where it is predicted."""
    before, after = (predicted(text(row[f"{name}_{s}"]), row[f"method_{s}"] == "screened") for s in ("before", "after"))
    return f"{before} \N{RIGHTWARDS ARROW} {after}"


def in_decibels(value: float) -> str:
    """An SQNR, with as many decimals as a comparison needs."""
    return fixed(value, 1)


def _writer(view: View, compared: Compared) -> Writer:
    return replace(Writer.of(view.results), level=compared.level)


def _whole_sentences(difference: Difference, compared: Compared) -> Iterator[str]:
    write, metric = _writer(difference.before, compared), difference.before.results.metric
    told = [_whole_view(view, compared) for view in (difference.before, difference.after)]
    if difference.whole is None:
        yield f"The whole network: {told[0]}; {told[1]}."
        return
    change = difference.whole.degradation
    if not difference.same_metric:
        yield f"The whole network: {told[0]}; {told[1]}. Losses of different metrics are not compared."
        return
    span = write.between(change.low, change.high)
    paired = difference.whole.images
    over = f"over the same {count(paired, 'image')}" if paired else "each over its own images"
    verdict = verdict_on(change, compared.tolerance)
    found = {
        "worse": f"{write.amount(change.value)} more of {metric} is lost",
        "better": f"{write.amount(-change.value)} less of {metric} is lost",
        "unchanged": f"they are within {write.amount(compared.tolerance)}, by {write.amount(change.value)}",
        "undecided": f"no difference can be told, it is {write.amount(change.value)}",
    }[verdict]
    if verdict == "better":
        span = write.between(-change.high, -change.low)
    yield f"The whole network: {told[0]}; {told[1]}; {found} ({span}, {over})."


def _whole_view(view: View, compared: Compared) -> str:
    name, write, whole = f"`{called(view, compared)}`", _writer(view, compared), view.whole
    if whole is None:
        return f"{name} was not measured"
    verb = "gains" if whole["degradation"] < 0 else "loses"
    return (
        f"{name} {verb} {write.amount(abs(whole['degradation']))} of {view.results.metric} "
        f"({write.value(view.results.float_value)} in float, {write.value(whole['value'])} quantized)"
    )


def _layer_sentences(difference: Difference, compared: Compared) -> Iterator[str]:
    layers = worst_first(difference)
    if layers.empty or not difference.same_metric:
        return
    write, metric = _writer(difference.before, compared), difference.before.results.metric
    sure = f"certain at {write.confidence}, corrected for {count(compared.looks, 'look')}"
    tally = layers["verdict"].value_counts()
    better, worse, same, open_ = (int(tally.get(name, 0)) for name in ("better", "worse", "unchanged", "undecided"))
    if not better and not worse:
        reach = layers[["degradation_change_low", "degradation_change_high"]].abs().to_numpy()
        reach = reach[np.isfinite(reach)]
        limit = (
            f": a change above {write.amount(reach.max())} is ruled out for each, at {write.confidence}"
            if reach.size
            else ""
        )
        yield (
            f"Of {count(len(layers), 'layer')} quantized alone none is certain to lose more {metric} than before, "
            f"or less ({sure}){limit}; {same} unchanged within {write.amount(compared.tolerance)}."
        )
        return
    changed = layers[layers["verdict"].isin(["better", "worse"])]
    listed = "; ".join(
        f"`{row['name']}` {before_to_after(row, 'degradation', write.number)}{write.behind} (difference "
        f"{write.number(row['degradation_change'])}, {write.confidence} interval "
        f"{interval(row['degradation_change_low'], row['degradation_change_high'], write.decimals)})"
        for _, row in changed.head(_NAMED).iterrows()
    )
    more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    yield (
        f"{count(better, 'layer')} got better, {worse} worse, quantized alone ({sure}): {listed}{more}. "
        f"{same} unchanged within {write.amount(compared.tolerance)}, {open_} cannot be told."
    )


def _noise_sentences(difference: Difference) -> Iterator[str]:
    layers = difference.layers
    if layers.empty:
        return
    parts = []
    for verdict, what, ascending in (("better", "quieter", False), ("worse", "louder", True)):
        found = layers[layers["noise_verdict"] == verdict].sort_values("sqnr_change_db", ascending=ascending)
        if len(found):
            first = found.iloc[0]
            most = ", most of all " if len(found) > 1 else ": "
            parts.append(
                f"{count(len(found), 'layer')} {'is' if len(found) == 1 else 'are'} {what}{most}`{first['name']}` "
                f"(SQNR {before_to_after(first, 'sqnr_db', in_decibels)} dB)"
            )
    tally = layers["noise_verdict"].value_counts()
    parts.append(f"{tally.get('unchanged', 0)} unchanged within {NOISE_TOLERANCE_DB:g} dB")
    if open_ := int(tally.get("undecided", 0)):
        parts.append(f"{open_} cannot be told")
    yield f"By noise against the signal {'; '.join(parts)}."


def _profile_sentences(difference: Difference) -> Iterator[str]:
    rank = difference.rank_correlation
    if np.isfinite(rank):
        yield (
            f"The layers' order by SQNR is shared at a rank correlation of {fixed(rank, 2)} "
            f"over {count(len(difference.layers), 'layer')}."
        )


def _setting_cautions(difference: Difference, compared: Compared) -> Iterator[str]:
    settings = difference.differing_settings()
    if settings:
        listed = "; ".join(f"{name} ({before}, {after})" for name, (before, after) in settings.items())
        yield f"They were made with other settings: {listed}."
    if not difference.same_data:
        yield "They were measured on different images: some of a difference may be the images'."
    for view in (difference.before, difference.after):
        if not view.results.complete:
            yield f"The analysis of `{called(view, compared)}` was stopped before it was complete."


def _partner_cautions(difference: Difference, compared: Compared) -> Iterator[str]:
    if not difference.matching.pairs:
        yield (
            "The networks are of different architecture: no layer of one can be held against one of the other, "
            "and their profiles only stand side by side."
        )
        return
    for view, names in zip((difference.before, difference.after), difference.partnerless(), strict=True):
        if names:
            listed = ", ".join(f"`{name}`" for name in names[:_NAMED])
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            have = "has" if len(names) == 1 else "have"
            yield f"{count(len(names), 'layer')} of `{called(view, compared)}` {have} no partner: {listed}{more}."
    if by_shape := sum(pair.by == "shape" for pair in difference.matching.pairs):
        yield (
            f"{count(by_shape, 'layer')} {'was' if by_shape == 1 else 'were'} matched by operation, shape and order, "
            "the names being different."
        )


def _method_cautions(difference: Difference) -> Iterator[str]:
    layers = difference.layers
    screened = (layers[["method_before", "method_after"]] == "screened").any(axis=1)
    if n := int(screened.sum()):
        yield (
            f"Of {n} of {count(len(layers), 'layer')} one side or both are screened: predicted, not run. Their "
            "intervals hold whatever a measurement may turn out to be."
        )
    unbelieved = int((screened & layers["sqnr_change_db"].isna()).sum())
    if unbelieved:
        yield (
            f"Of {unbelieved} of these the noise is beyond the linear regime, where no prediction of it is believed: "
            "analyze with --mode exact."
        )
    for view in (difference.before, difference.after):
        if (missing := len(view.results.layers) - len(view.cells)) > 0:
            were = "was" if missing == 1 else "were"
            yield f"{count(missing, 'layer')} of `{view.name}` {were} neither run nor screened."
