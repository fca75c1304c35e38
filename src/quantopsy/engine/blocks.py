"""AdaRound over blocks of layers: roundings of several layers together, so that the block's output stays.

As :mod:`quantopsy.engine.adaround`, with the loss behind the block instead of behind each layer (block reconstruction:
Li et al., BRECQ, 2021, section 3.2): errors of one layer can make good those of another. Gradients pass the grids of
activations straight through.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.adaround import Effort, SoftRounding, can_round, rounding_asked_for, weight_grid
from quantopsy.engine.exact import ExactEngine, LayerQuantizers
from quantopsy.graph.execute import Lookup, Overlay, Program, Step, Values
from quantopsy.quant.qparams import fake_quantize_ste

MOST = 4
"""Layers with weights in a block that is put together of single ones."""

ROWS = 16
"""Images of a step."""

RATE = 2e-2

Block = tuple[Step, ...]


def blocks(program: Program, layers: Container[str]) -> list[Block]:
    """The steps in stretches behind which a single value is alive, in order.

    A residual block is one; where single layers follow one another, :data:`MOST` with a weight of ``layers`` are
    taken together.
    """
    found: list[list[Step]] = []
    now: list[Step] = []
    alive = set(program.network.input_names)
    for step in program.steps:
        now.append(step)
        alive.add(step.writes)
        alive = {name for name in alive if name in program.outputs or program.last_reader.get(name, -1) > step.index}
        if len(alive) == 1 or step is program.steps[-1]:
            found.append(now)
            now = []
    merged: list[list[Step]] = []
    for stretch in found:
        weights = _weights(stretch, layers)
        if merged and weights <= 1 and _weights(merged[-1], layers) + weights <= MOST and not _joins(merged[-1]):
            merged[-1] += stretch
        else:
            merged.append(stretch)
    return [tuple(stretch) for stretch in merged]


def _weights(stretch: Sequence[Step], layers: Container[str]) -> int:
    return sum(step.weight is not None and step.layer is not None and step.layer.name in layers for step in stretch)


def _joins(stretch: Sequence[Step]) -> bool:
    """Whether branches come together in it: a block that the network itself has."""
    return any(step.layer is not None and step.layer.op in ("add", "concat") for step in stretch)


def round_blocks(
    engine: ExactEngine,
    plan: Plan,
    batches: Sequence[Any],
    layers: Container[str],
    effort: Effort = Effort(),
    advance: Callable[[int], None] = lambda _: None,
    over: Callable[[], bool] = lambda: False,
) -> Plan:
    """``plan`` with roundings found for ``layers`` block by block, each behind the ones before it.

    Begins from the plan's own roundings, such as :func:`quantopsy.engine.adaround.round_weights` finds layer by layer,
    and keeps them where a block's output does not come nearer on the last of several batches, which is only looked at.
    Shifts of biases stay. ``advance`` hears of every step. Blocks that are reached when ``over`` says that time is up
    stay as they are.
    """
    program, specs, prepared = engine.program, dict(plan), engine.prepare(plan)
    quantizers = dict(prepared.quantizers)
    with torch.no_grad():
        exact = [program.place(batch) for batch in batches]
        moved: list[Values] = [{} for _ in exact]
        for block in blocks(program, layers):
            entries = [dict(own) for own in moved], [dict(values) for values in exact]
            for values in exact:
                for step in block:
                    values[step.writes] = step.compute(Overlay(values, program.constants))
            able = [step for step in block if _able(step, quantizers.get(step.index), layers)]
            if len(able) > 1 and not over():
                problem = _Problem(engine, block, quantizers, entries, [values[block[-1].writes] for values in exact])
                for step, spec in problem.solved(able, effort).items():
                    assert step.layer is not None
                    specs[Site(step.layer.name, "weight")] = spec
                    quantizers[step.index] = replace(quantizers[step.index], weight=spec)
            for own, values in zip(moved, exact, strict=True):
                for step in block:
                    mine = quantizers.get(step.index)
                    if mine is not None:
                        own[step.writes] = engine.quantized(step, mine, own, values)
                    elif any(name in own for name in step.reads):
                        own[step.writes] = step.compute(Overlay(own, Overlay(values, program.constants)))
                for name in [name for name in values if _over(program, name, block[-1])]:
                    del values[name]
                    own.pop(name, None)
            advance(len(block))
    return Plan.of(specs)


def _able(step: Step, quantizers: LayerQuantizers | None, layers: Container[str]) -> bool:
    layer = step.layer
    return layer is not None and layer.name in layers and quantizers is not None and can_round(layer, quantizers)


def _over(program: Program, name: str, step: Step) -> bool:
    return name not in program.outputs and program.last_reader.get(name, -1) <= step.index


@dataclass(frozen=True)
class _Problem:
    """One block's reconstruction: by tile what is known in front of it, and its float output."""

    engine: ExactEngine
    block: Block
    quantizers: Mapping[int, LayerQuantizers]
    entries: tuple[list[Values], list[Values]]  # of the quantized network where it differs, of the float one
    wanted: list[Tensor]

    def solved(self, able: Sequence[Step], effort: Effort) -> dict[Step, Spec]:
        """The specs that mean what was found; none where the block's output comes no nearer."""
        soft = {step: self._soft(step) for step in able}
        before = self._error({})
        if before <= 0.0:
            return {}
        generator = torch.Generator().manual_seed(effort.seed)
        with torch.enable_grad():
            optimizer = torch.optim.Adam([rounding.v for rounding in soft.values()], lr=RATE)
            count = sum(rounding.v.numel() for rounding in soft.values())
            for number in range(effort.steps):
                inputs, wanted = self._drawn(generator)
                weights = {step: rounding.weight() for step, rounding in soft.items()}
                apart = self._forward(inputs, weights) - wanted
                # In units of what the block's error is now: lambda then suits blocks of any scale.
                loss = apart.square().sum() / (len(wanted) * before)
                beta = rounding_asked_for(number / effort.steps)
                if beta is not None:
                    loss = loss + effort.weight * sum(part.undecided(beta) for part in soft.values()) / count
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        hard = {step: rounding.hard() for step, rounding in soft.items()}
        if self._error(hard) >= before:
            return {}
        give = self.engine.calibration.give
        return {step: replace(self._spec(step), rounding=give(soft[step].up)) for step in able}

    def _spec(self, step: Step) -> Spec:
        spec = self.quantizers[step.index].weight
        assert spec is not None
        return spec

    def _soft(self, step: Step) -> SoftRounding:
        layer, spec = step.layer, self._spec(step)
        assert layer is not None
        assert layer.weight is not None
        program = self.engine.program
        weight = program.network.tensors[layer.weight].detach().float().to(program.device)
        return SoftRounding.of(weight, weight_grid(self.engine, layer, spec), self.engine.quantized_weight(layer, spec))

    def _drawn(self, generator: torch.Generator) -> tuple[Lookup, Tensor]:
        """Some images of one tile: what the block reads, and what it should give."""
        tile = int(torch.randint(max(len(self.wanted) - 1, 1), (1,), generator=generator))
        wanted = self.wanted[tile]
        rows = torch.randperm(len(wanted), generator=generator)[:ROWS].to(wanted.device)

        def some(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == len(wanted) else value

        own, values = self.entries[0][tile], self.entries[1][tile]
        read = {name for step in self.block for name in step.reads}
        return {name: some(own[name] if name in own else values[name]) for name in read if name in values}, wanted[rows]

    def _error(self, weights: Mapping[Step, Tensor]) -> float:
        """Mean over the last batch's images of the squared distance of the block's output."""
        own, values, wanted = self.entries[0][-1], self.entries[1][-1], self.wanted[-1]
        return float((self._forward(Overlay(own, values), weights) - wanted).square().sum()) / len(wanted)

    def _forward(self, inputs: Lookup, weights: Mapping[Step, Tensor]) -> Tensor:
        """The block's output on its grids; weights that are not given are as the plan has them."""
        constants = self.engine.program.constants
        local: Values = {}
        for step in self.block:
            quantizers = self.quantizers.get(step.index)
            over: Values = {}
            lookup = Overlay(over, Overlay(local, Overlay(inputs, constants)))
            shift = output = None
            if quantizers is not None:
                shift, output = quantizers.shift, quantizers.output
                over |= {name: fake_quantize_ste(lookup[name], qparams) for name, qparams in quantizers.inputs}
                if quantizers.weight is not None:
                    assert step.layer is not None
                    assert step.weight is not None
                    given = weights.get(step)
                    over[step.weight] = (
                        self.engine.quantized_weight(step.layer, quantizers.weight) if given is None else given
                    )
            y = step.operation(lookup)
            y = y if shift is None else y - shift
            y = step.activated(lookup, y)
            local[step.writes] = y if output is None else fake_quantize_ste(y, output)
        result: Tensor = local[self.block[-1].writes]
        return result
