"""A file that was exported, in words and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from quantopsy.report.wording import count, fixed, percent, share_reached, significant, with_interval

if TYPE_CHECKING:
    from quantopsy.export.onnx.recipe import Delivered, Timed

_SLOWEST = 5
_NAMED = 5


def export_statements(found: Delivered) -> Iterator[str]:
    """What the file is worth, how it was checked, and what it costs."""
    done = found.exported
    checked = done.verified
    decimals, unit = (1, f" {checked.unit}") if checked.unit else (4, "")
    deployed = checked.optimised
    yield (
        f"{checked.metric} {fixed(deployed.value, decimals)} in ONNX Runtime, {fixed(checked.simulated, decimals)} "
        f"simulated, float {fixed(checked.float_network, decimals)} ({count(checked.images, 'image')}): it loses "
        f"{with_interval(*deployed.lost, decimals)}{unit} against float, "
        f"{with_interval(*deployed.departs, decimals)}{unit} against the simulation."
    )
    layers = deployed.layers
    yield (
        f"Layer by layer, from the runtime's own inputs, {share_reached(layers.equal)} % of the elements equal the "
        f"simulation's, {share_reached(layers.within_step)} % are within a step; "
        f"{fixed(deployed.decisions, 1)} % of the decisions are the same."
    )
    yield (
        f"{percent(done.kernels.macs_share)} of the MACs run in integer kernels. {_size(done.bytes)} against "
        f"{_size(done.bytes_float)} in float ({percent(done.size_ratio)})."
    )
    yield (
        f"One image takes {_times(found.timed)}, {count(found.threads, 'thread')}, first quartile of interleaved runs)."
    )
    for name, run in checked.also.items():
        layers = run.layers
        yield (
            f"In {name} {fixed(run.value, decimals)}, {with_interval(*run.departs, decimals)}{unit} against the "
            f"simulation; layer by layer {share_reached(layers.equal)} % equal, {share_reached(layers.within_step)} % "
            f"within a step; {fixed(run.decisions, 1)} % of the decisions are the same. "
            f"{percent(done.also[name].macs_share)} of the MACs run in integers; one image takes "
            f"{_times(found.also[name])})."
        )


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
    if done.saturating:
        yield (
            f"On this processor ONNX Runtime adds pairs of products up in 16 bits, which saturate: sums with the "
            f"signed 8-bit weights of {_some(done.saturating)} may be lost. Give weights 7 bits, or the session option "
            "session.x64quantprecision=1."
        )
    for layer, reason in list(done.float_weights.items())[:_NAMED]:
        yield f"The weight of `{layer}` is stored as reals: {reason}."
    if not found.same_model:
        yield "The weights are not those that the recipe was made for; layers and shapes are."
    slower = [x for x in found.by_layer if x.layer and x.quantized > x.exact]
    if found.timed.faster < 1 and slower:
        worst = sorted(slower, key=lambda x: x.exact - x.quantized)[:_NAMED]
        yield f"Slower than in float: {_some([x.layer for x in worst])}."


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


def _times(timed: Timed) -> str:
    own, exact = (significant(1e3 * latency.low) for latency in (timed.quantized, timed.exact))
    return f"{own} ms against {exact} ms in float ({significant(timed.faster, 2)} times as fast"


def _some(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _size(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.0f} KB"
