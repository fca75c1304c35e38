"""The verdict in words: sentences that hold by their intervals, for page and terminal alike.

Layer names stand between backticks. Every sentence says only what its numbers support: the whole network
loses where the interval excludes zero; a layer hurts where the analysis is certain of it, corrected for all
cells that it looked at. What is screened, not run, is called so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from quantopsy.analysis.reference import reference_doubt
from quantopsy.analysis.results import Results
from quantopsy.report.additivity import additivity_headlines
from quantopsy.report.tables import headline_bits, ranked, verdicts_given, whole_network, with_marks
from quantopsy.report.wording import (
    Writer,
    confidence,
    count,
    fixed,
    interval,
    percent,
    significant,
)

_NAMED = 3
"""Layers that a sentence names; the table has the rest."""

_MOST_NOISE = 0.8
"""Share of the noise that "most of it" stands for."""

_FEW_SCREENED = 0.1
"""Share of the cells that may be screened before their sum says nothing: what single predictions miss adds up."""

_SPREAD_FROM = 10
"""Cells from which the check tells how far its ratios spread."""


def statements(results: Results) -> list[str]:
    """What was found: which layers hurt, the whole network, where the noise is, whether layers add up."""
    bits = headline_bits(results)
    cells = ranked(results, bits)
    whole = _whole_at(results, bits)
    sentences = list(_hurting_sentences(results, bits, cells, whole))
    sentences.append(_whole_sentence(results, bits, whole) if whole is not None else _float_sentence(results))
    sentences += _noise_sentences(bits, cells)
    sentences += _improving_sentences(results, bits, cells)
    if whole is not None:
        sentences += _additivity_sentences(results, bits, cells, whole)
    sentences += _other_bits_sentences(results, bits)
    sentences += additivity_headlines(results)
    sentences += _check_sentences(results)
    return sentences


def cautions(results: Results) -> list[str]:
    """What limits the findings: a stopped run, screened, open or missing cells, a useless baseline, warnings."""
    return [*_progress_cautions(results), *_baseline_cautions(results), *results.warnings]


def _whole_at(results: Results, bits: int) -> Any | None:
    table = whole_network(results)
    rows = table[table["bits"] == bits]
    return None if rows.empty or not math.isfinite(rows["degradation"].iloc[0]) else rows.iloc[0]


def _has_interval(row: Any) -> bool:
    return bool(math.isfinite(row["degradation_low"]) and math.isfinite(row["degradation_high"]))


def _quantization(results: Results, bits: int) -> str:
    """``8-bit per-tensor quantization``."""
    scheme = results.settings.get("scheme")
    return " ".join(word for word in (f"{bits}-bit", scheme, "quantization") if isinstance(word, str) and word)


def _float_sentence(results: Results) -> str:
    write = Writer.of(results)
    span = interval(results.float_low, results.float_high, write.decimals)
    known = f" ({write.confidence} interval {span})" if span else ""
    return (
        f"Float {results.metric} is {write.value(results.float_value)}{known} "
        f"on {count(results.samples, 'image')}; the whole network was not measured quantized."
    )


def _whole_sentence(results: Results, bits: int, whole: Any) -> str:
    write = Writer.of(results)
    what, lost = _quantization(results, bits), whole["degradation"]
    levels = (
        f"{write.value(results.float_value)} in float, {write.value(whole['value'])} quantized, "
        f"on {count(int(whole['samples']), 'image')}"
    )
    if not _has_interval(whole):
        return f"{what} changes {results.metric} by {write.amount(-lost)} (no interval is known): {levels}."
    span = write.between(whole["degradation_low"], whole["degradation_high"])
    if whole["degradation_low"] > 0:
        return f"{what} costs {write.amount(lost)} of {results.metric} ({span}): {levels}."
    if whole["degradation_high"] < 0:
        mirrored = write.between(-whole["degradation_high"], -whole["degradation_low"])
        return f"{what} improves {results.metric} by {write.amount(-lost)} ({mirrored}): {levels}."
    return (
        f"{what} costs no measurable {results.metric}: the degradation is {write.amount(lost)} and its "
        f"{span} includes zero ({levels})."
    )


def _layer(cell: Any) -> str:
    where = [str(cell["op"])]
    if isinstance(cell["source"], str) and cell["source"]:
        where.append(cell["source"])
    return f"`{cell['name']}` ({', '.join(where)})"


def _hurting_sentences(results: Results, bits: int, cells: pd.DataFrame, whole: Any | None) -> Iterator[str]:
    if cells.empty:
        yield f"No layer has been run or screened at {bits} bits, so none can be judged."
        return
    write = Writer.of(results)
    guilty = cells[cells["guilty"]]
    if guilty.empty:
        yield _nothing_hurts(results, bits, cells, whole)
    else:
        listed = "; ".join(_listed(cell, write, bits) for _, cell in guilty.head(_NAMED).iterrows())
        more = f"; and {len(guilty) - _NAMED} more" if len(guilty) > _NAMED else ""
        hurt = "hurts" if len(guilty) == 1 else "hurt"
        unit = f", in{write.behind}" if write.unit else ""
        sure = f"certain at {confidence(results)}, corrected for {verdicts_given(results)} different cells"
        yield (
            f"{len(guilty)} of {count(len(cells), 'layer')} {hurt} {results.metric} at {bits} bits when quantized "
            f"alone ({sure}){unit}: {listed}{more}."
        )
    if screened := int(guilty["screened"].sum()):
        which = "It is" if len(guilty) == 1 else "All of these are" if screened == len(guilty) else None
        which = which or f"{screened} of these {'is' if screened == 1 else 'are'}"
        yield f"{which} screened: not run, because the prediction or a higher bit-width leaves no doubt of a loss."
    harmless = int((cells["verdict"] == "harmless").sum())
    rest = len(cells) - len(guilty) - harmless
    undecided = f"{count(rest, 'layer')} {'is' if rest == 1 else 'are'} undecided"
    if harmless:
        yield (
            f"{count(harmless, 'layer')} {'is' if harmless == 1 else 'are'} harmless at {bits} bits: losses above "
            f"{write.amount(results.tolerance)} are ruled out" + (f"; {undecided}." if rest else ".")
        )
    elif rest and not guilty.empty:
        yield (
            f"{undecided} at {bits} bits: a loss is neither certain nor, above "
            f"{write.amount(results.tolerance)}, ruled out."
        )


def _listed(cell: Any, write: Writer, bits: int) -> str:
    elsewhere = f", as at {int(cell['verdict_bits'])} bits" if cell["verdict_bits"] != bits else ""
    return f"{_layer(cell)} {write.lost(cell)}{elsewhere}"


def _nothing_hurts(results: Results, bits: int, cells: pd.DataFrame, whole: Any | None) -> str:
    """That no layer is guilty, and how large a loss could have been missed."""
    write = Writer.of(results)
    sentence = f"No layer is certain to hurt {results.metric} at {bits} bits when quantized alone"
    run = cells[~cells["screened"]]
    reach = run["degradation_high"].max()
    if run.empty:
        sentence += "; none was run, all are screened"
    elif math.isfinite(reach) and reach > 0:
        images = count(int(run["samples"].max()), "image")
        which = "" if len(run) == len(cells) else f" for the {count(len(run), 'layer')} run"
        sentence += (
            f": {images} can only rule out losses above {write.amount(reach)}{which}, each at {confidence(results)}"
        )
    if len(run) == len(results.layers) and whole is not None and whole["degradation_low"] > 0:
        sentence += "; the whole network's loss shows only when layers are quantized together"
    return sentence + "."


def _noise_sentences(bits: int, cells: pd.DataFrame) -> Iterator[str]:
    by_noise = cells[cells["noise"] > 0].sort_values("noise", ascending=False)
    if len(by_noise) < 2:
        return
    screened = _screened_among(by_noise)
    reached = by_noise["noise_share"].cumsum().to_numpy()
    needed = int(np.searchsorted(reached, _MOST_NOISE)) + 1
    if needed <= max(_NAMED, len(by_noise) // 10):
        names = ", ".join(f"`{name}`" for name in by_noise["name"].head(min(needed, _NAMED)))
        listed = names if needed <= _NAMED else f"{names} and {needed - _NAMED} more"
        accounts = "accounts" if needed == 1 else "account"
        yield (
            f"{count(needed, 'layer')} of {len(by_noise)}{screened} {accounts} for {percent(reached[needed - 1])} "
            f"of the summed noise at {bits} bits: {listed}."
        )
        return
    yield (
        f"The noise at {bits} bits is spread out: it takes {needed} of {len(by_noise)} layers{screened} to account for "
        f"{percent(reached[needed - 1])} of its sum, and the loudest, `{by_noise['name'].iloc[0]}`, "
        f"has {percent(reached[0])}."
    )


def _improving_sentences(results: Results, bits: int, cells: pd.DataFrame) -> Iterator[str]:
    """Where quantizing improves the metric, or noise says nothing of the loss, float is not the optimum
    (layer-wise paper, section 4.3)."""
    improving = cells[cells["improves"]].sort_values("degradation")
    doubt = reference_doubt(cells)
    if not improving.empty:
        write = Writer.of(results)
        best = improving.iloc[0]
        span = write.between(-best["degradation_high"], -best["degradation_low"])
        one = len(improving) == 1
        subject = f"{_layer(best)} alone" if one else f"{len(improving)} layers alone"
        most = "by" if one else f"most of all {_layer(best)}, by"
        chance = "" if doubt else ": chance may do that"
        yield (
            f"Quantizing {subject} improves {results.metric} at {bits} bits, {most} "
            f"{write.amount(-best['degradation'])} ({span}){chance}."
        )
    if doubt:
        other = f"{bits - 1} bits" if bits > 2 else "another bit-width"
        yield (
            f"{doubt.capitalize()}: the float network does not seem to be at its best, as after fine-tuning with "
            "quantization. It is then the wrong reference, and what single layers lose says little. Repair "
            f"the network from before that training, or analyze at a bit-width it was not trained for, such as {other}."
        )


def _screened_among(cells: pd.DataFrame) -> str:
    """How many of ``cells`` are screened, in brackets; empty where none is."""
    screened = int(cells["screened"].sum())
    return f" ({'all' if screened == len(cells) else screened} screened)" if screened else ""


def _additivity_sentences(results: Results, bits: int, cells: pd.DataFrame, whole: Any) -> Iterator[str]:
    write = Writer.of(results)
    total, screened = whole["degradation_sum"], _screened_among(cells)
    if math.isfinite(total) and math.isfinite(whole["degradation"]):
        reach = float(norm.isf((1.0 - results.level) / 2.0)) * whole["degradation_sum_stderr"]
        sums = f"their degradations{screened} sum to {write.amount(total)}"
        images = count(int(whole["samples"]), "image")
        predictions = int(cells["screened"].sum())
        if predictions > _FEW_SCREENED * len(cells):
            if results.additivity is None:
                yield (
                    f"Whether single layers add up at {bits} bits is not told by predictions, whose errors add up too "
                    f"({predictions} of {count(len(cells), 'layer')} {'is' if predictions == 1 else 'are'} screened): "
                    "`quantopsy additivity` tells."
                )
        elif not math.isfinite(reach):
            yield f"The degradations of single layers{screened} sum to {write.amount(total)} at {bits} bits."
        elif abs(total - whole["degradation"]) <= reach:
            yield (
                f"Single layers add up at {bits} bits as far as {images} can tell: {sums}, which is known within "
                f"{write.amount(reach)} of the whole network's."
            )
        else:
            beyond = whole["degradation"] - total
            side = "less" if beyond > 0 else "more"
            low, high = sorted((abs(beyond) - reach, abs(beyond) + reach))
            yield (
                f"Single layers do not add up at {bits} bits: {sums}, {fixed(abs(beyond), write.decimals)} {side} than "
                f"the whole network loses ({write.between(low, high)})."
            )
    if whole["noise_sum"] > 0 and math.isfinite(whole["noise"]):
        ratio = whole["noise"] / whole["noise_sum"]
        if not 0.5 <= ratio <= 2:
            yield (
                f"The whole network's noise at {bits} bits is {significant(ratio, 2)} times the sum of its "
                f"layers'{_screened_among(cells)}."
            )


def _other_bits_sentences(results: Results, headline: int) -> Iterator[str]:
    write = Writer.of(results)
    table = whole_network(results)
    rows = table[(table["bits"] != headline) & table["degradation"].notna()]
    parts = [f"{int(row['bits'])} bits {_lost_elsewhere(results, row)}" for _, row in rows.iterrows()]
    if parts:
        unit = f", in{write.behind}" if write.unit else ""
        yield f"Degradation of the whole network at other bit-widths{unit}: {', '.join(parts)}."


def _lost_elsewhere(results: Results, row: Any) -> str:
    """``-2.7 (-10.0 to 3.7, 75 images)``: the images where they are not all."""
    write = Writer.of(results)
    some = count(int(row["samples"]), "image") if row["samples"] < results.samples else ""
    span = interval(row["degradation_low"], row["degradation_high"], write.decimals)
    known = ", ".join(part for part in (span, some) if part)
    return f"{write.number(row['degradation'])} ({known})" if known else write.number(row["degradation"])


def _check_sentences(results: Results) -> Iterator[str]:
    """What became of predictions where they could be held against measurements."""
    check, write = results.check, Writer.of(results)
    if check is None:
        return
    parts = []
    low, middle, high = check.noise_ratio
    if check.cells and math.isfinite(middle):
        many = check.cells >= _SPREAD_FROM
        spread = f" ({fixed(low, 2)} to {fixed(high, 2)} for eight in ten)" if many else ""
        rank = f", rank correlation {fixed(check.noise_rank, 2)}" if many and math.isfinite(check.noise_rank) else ""
        parts.append(
            f"on {count(check.cells, 'cell')} in the linear regime that {'was' if check.cells == 1 else 'were'} also "
            f"run, predicted noise is {fixed(middle, 2)} of the measured one{spread}{rank}"
        )
    if math.isfinite(check.degradation_error):
        drawn = check.random and math.isfinite(check.random_degradation_error)
        part = f"predicted degradation is off by {write.amount(check.degradation_error)} on average of all cells run"
        if drawn:
            part += f", {fixed(check.random_degradation_error, write.decimals)} on {check.random} drawn at random"
        parts.append(part)
    if parts:
        yield f"Check of the screen: {'; '.join(parts)}."


def _progress_cautions(results: Results) -> Iterator[str]:
    cells, mode = with_marks(results.cells), results.settings.get("mode")
    wanted = len(results.layers) * len(results.bits)
    known = cells["noise"].notna() | cells["degradation"].notna()
    missing = wanted - int(known.sum())
    # In the other modes it is by design that some cells are run on fewer images.
    every_image = mode == "exact"
    if not results.complete:
        end = "every cell had every image" if every_image else "every cell was screened"
        sentence = f"The run was stopped before {end}"
        if missing > 0:
            sentence += f"; {missing} of {wanted} cells are missing"
        short = cells[known & ~cells["screened"] & (cells["samples"] < results.samples)]
        if every_image and not short.empty:
            sentence += (
                f"; {count(len(short), 'cell')} {'has' if len(short) == 1 else 'have'} fewer than the "
                f"{results.samples} images, the least {int(short['samples'].min())}"
            )
        yield sentence + ". The same command again goes on from there."
    elif missing > 0:
        yield f"{missing} of {wanted} cells were not measured; shares and sums leave them out."
    screened, rough = int(cells["screened"].sum()), int(cells["rough"].sum())
    if screened:
        which = f"All {screened}" if screened == len(cells) else f"{screened} of {len(cells)}"
        how = f"; {rough} of them beyond the linear regime, where noise is predicted only roughly" if rough else ""
        yield f"{which} cells are screened: predicted from gradients, not run{how}."
    told = screened == 0 or bool(cells.loc[cells["screened"], "degradation"].notna().any())
    if not told:
        other = "--loss, or " if cells["loss_change"].isna().all() else ""
        yield f"This metric is not predicted, only noise is: give {other}--mode exact."
    # An exact run that is not finished has said so above.
    if results.open_cells and not every_image:
        them = "it" if results.open_cells == 1 else "them"
        way = "--mode exact" if not told else "--mode auto" if mode == "screen" else "more --budget"
        how = f"{way} would settle {them}"
        yield f"{count(results.open_cells, 'verdict')} {'is' if them == 'it' else 'are'} open: {how}."


def _baseline_cautions(results: Results) -> Iterator[str]:
    if results.float_low <= 0 <= results.float_high:
        write = Writer.of(results)
        yield (
            f"The float network's own {results.metric} is {write.value(results.float_value)} "
            f"({write.between(results.float_low, results.float_high)}): there is nothing to lose, so "
            "degradations say nothing. Check labels and preprocessing."
        )
