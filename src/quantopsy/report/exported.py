"""Files that were exported, in words and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from quantopsy.core.recipe import Estimate
from quantopsy.report.wording import capital, count, fixed, percent, share_reached, significant, with_interval

if TYPE_CHECKING:
    from quantopsy.export.onnx.check import Departure, Run, Verified
    from quantopsy.export.onnx.recipe import Delivered, Timed
    from quantopsy.export.pt2.recipe import SavedProgram

_SLOWEST = 5
_NAMED = 5
_OTHER_WEIGHTS = "The weights are not those that the recipe was made for; layers and shapes are."


def export_statements(found: Delivered) -> Iterator[str]:
    """What the file is worth, how it was checked, and what it costs."""
    done = found.exported
    checked = done.verified
    run = checked.optimised
    yield _worth(checked, run.value, run.lost, run.departs, "in ONNX Runtime")
    yield f"{capital(_layers_told(run.layers))} {_decisions(run)}"
    yield (
        f"{percent(done.kernels.macs_share)} of the MACs run in integer kernels. {_size(done.bytes)} against "
        f"{_size(done.bytes_float)} in float ({percent(done.size_ratio)})."
    )
    yield (
        f"One image takes {_times(found.timed)}, {count(found.threads, 'thread')}, first quartile of interleaved runs)."
    )
    decimals, unit = _units(checked)
    for name, run in checked.also.items():
        yield (
            f"In {name} {fixed(run.value, decimals)}, {with_interval(*run.departs, decimals)}{unit} against the "
            f"simulation; {_layers_told(run.layers)} {_decisions(run)} "
            f"{percent(done.also[name].macs_share)} of the MACs run in integers; one image takes "
            f"{_times(found.also[name])})."
        )


def _layers_told(layers: Departure) -> str:
    if math.isnan(layers.equal):
        return "no layer's output is on a grid of the plan, so only the network's outputs are compared;"
    return (
        f"layer by layer, from the runtime's own inputs, {share_reached(layers.equal)} % of the elements equal the "
        f"simulation's, {share_reached(layers.within_step)} % are within a step;"
    )


def _decisions(run: Run) -> str:
    return f"{fixed(run.decisions, 1)} % of the decisions are the same."


def export_cautions(found: Delivered) -> Iterator[str]:
    """What limits the file."""
    done = found.exported
    verified = done.verified
    for run, where in ((verified.optimised, ""), *((run, f" in {name}") for name, run in verified.also.items())):
        apart = [layer for layer, departure in run.by_layer.items() if departure.within_step < 1]
        if apart:
            yield f"More than a step from the simulation{where}: {_some(apart)}."
    for kernels, where in ((done.kernels, ""), *((kernels, f" in {name}") for name, kernels in done.also.items())):
        if kernels.real:
            yield f"Computed in reals{where}: {_some(kernels.real)}."
    if done.between:
        functions = ",".join(done.between)
        yield (
            f"ONNX Runtime has no integer kernel for layers with {' or '.join(done.between)} behind them: "
            f"`analyze --unfused {functions}` rounds in between, `export --integer-convolutions` does not (slow)."
        )
    if done.saturating:
        yield (
            f"On this processor ONNX Runtime adds pairs of products up in 16 bits, which saturate: sums with the "
            f"signed 8-bit weights of {_some(done.saturating)} may be lost. Give weights 7 bits, or the session option "
            "session.x64quantprecision=1."
        )
    for layer, reason in list(done.float_weights.items())[:_NAMED]:
        yield f"The weight of `{layer}` is stored as reals: {reason}."
    if not found.same_model:
        yield _OTHER_WEIGHTS
    slower = [x for x in found.by_layer if x.layer and x.quantized > x.exact]
    if found.timed.faster < 1 and slower:
        worst = sorted(slower, key=lambda x: x.exact - x.quantized)[:_NAMED]
        yield f"Slower than in float: {_some([x.layer for x in worst])}."


def program_statements(found: SavedProgram) -> Iterator[str]:
    """What a program of torch.export is worth, and how near it is to the simulation."""
    yield _worth(found, found.runtime, found.lost, found.departs, "by the program as loaded")
    if found.equal == 1:
        yield "Every output element equals the simulation's to the bit."
    else:
        yield (
            f"{share_reached(found.equal)} % of the output elements equal the simulation's to the bit, the others are "
            f"within {significant(100 * found.largest, 2)} % of the outputs' range; {fixed(found.decisions, 1)} % of "
            "the decisions are the same."
        )
    share = percent(found.bytes / found.bytes_float)
    yield f"{_size(found.bytes)} against {_size(found.bytes_float)} in float ({share})."


def program_cautions(found: SavedProgram) -> Iterator[str]:
    """What limits it."""
    if found.to == "pt2e":
        yield (
            "Loads where the operators are known: ExecuTorch and torchao define them, so does "
            "`import torch.ao.quantization.fx._decomposed`."
        )
    if not found.same_model:
        yield _OTHER_WEIGHTS


def times_table(found: Delivered) -> Table:
    """The layers that take longest in the file, beside float."""
    table = Table(
        box=None, pad_edge=False, header_style="dim", title="Slowest layers, ms an image", title_justify="left"
    )
    for position, heading in enumerate(("layer", "float", "file")):
        table.add_column(heading, justify="right" if position else "left", overflow="fold")
    for layer in sorted(found.by_layer, key=lambda x: -x.quantized)[:_SLOWEST]:
        name = Text(layer.layer or "(changes of layout, quantizing)")
        table.add_row(name, significant(1e3 * layer.exact), significant(1e3 * layer.quantized))
    return table


def _worth(checked: Verified | SavedProgram, value: float, lost: Estimate, departs: Estimate, where: str) -> str:
    decimals, unit = _units(checked)
    return (
        f"{checked.metric} {fixed(value, decimals)} {where}, {fixed(checked.simulated, decimals)} "
        f"simulated, float {fixed(checked.float_network, decimals)} ({count(checked.images, 'image')}): it loses "
        f"{with_interval(*lost, decimals)}{unit} against float, "
        f"{with_interval(*departs, decimals)}{unit} against the simulation."
    )


def _units(checked: Verified | SavedProgram) -> tuple[int, str]:
    return (1, f" {checked.unit}") if checked.unit else (4, "")


def _times(timed: Timed) -> str:
    own, exact = (significant(1e3 * latency.low) for latency in (timed.quantized, timed.exact))
    return f"{own} ms against {exact} ms in float ({significant(timed.faster, 2)} times as fast"


def _some(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _size(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.0f} KB"
