"""Every (site, spec) scored to first order from one forward and one backward per probe.

A quantizer Q at a site with tensor t perturbs it by d = Q(t) - t; to first order the output moves by
J d. With a probe v of random signs, E[(v . J d)^2] = ||J d||^2 and g = J^T v comes for all sites from
one backward pass, so e = <g, d> per image gives noise = mean(e^2). With the probe e_top1 - e_top2 the
same e is the change of the image's margin (DESIGN, section 5; Zhou et al. 2017).

B images of a tile, P probes, K specs at a site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantopsy.calibrate import quantized_weight
from quantopsy.core import Site, Spec
from quantopsy.engine.allocator import keep_freed_memory
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.weight_gradients import per_sample_gradient, supported
from quantopsy.graph.execute import Overlay, Program, Step, Values
from quantopsy.quant import QParams, fake_quantize

Candidates = Mapping[Site, Sequence[Spec]]
Scores = dict[tuple[Site, Spec], Tensor]

# A per-sample gradient costs about two layer forwards a probe, a candidate's forward with its dot
# products about one and a third: from so many candidates on, gradients are the cheaper way.
GRADIENT_FORWARDS, CANDIDATE_FORWARDS = 2.0, 1.3


@dataclass(frozen=True)
class Screened:
    """A tile's scores: ``e`` (B, P) float64 by site and spec, and the float network's outputs.

    The first ``noise_probes`` columns are random probes; where ``margin`` (B,) is given, the last is
    the change of the margin between the two largest outputs.
    """

    e: Scores
    outputs: tuple[Any, ...]
    noise_probes: int
    margin: Tensor | None


@dataclass
class _Local:
    """One step of the forward pass with what its backward needs."""

    step: Step
    inputs: Values
    raw: Any
    result: Any


class ScreenEngine:
    """Scores candidates tile by tile. Holds the program, the ranges and the perturbed weights."""

    def __init__(
        self, program: Program, calibration: Calibration, *, noise_probes: int = 1, margin: bool = True, seed: int = 0
    ) -> None:
        keep_freed_memory()
        self.program = program
        self.calibration = calibration
        self.noise_probes = noise_probes
        self.margin = margin
        self.seed = seed
        self._weights: dict[tuple[Site, tuple[Spec, ...]], Tensor] = {}
        self._readers = Counter(name for step in program.steps for name in step.reads)

    def run_tile(self, inputs: Any, images: np.ndarray, candidates: Candidates) -> Screened:
        """Score every spec of ``candidates`` on one tile; ``images`` (B,) seed their own probes."""
        with torch.enable_grad():
            trace, outputs = self._forward(self.program.place(inputs))
        with torch.no_grad():
            gradients, margin = self._probes(outputs, images)
        return Screened(self._backward(trace, gradients, candidates), tuple(outputs), self.noise_probes, margin)

    def _forward(self, values: Values) -> tuple[list[_Local], list[Any]]:
        """Every step on detached inputs, so that each can be differentiated on its own."""
        trace: list[_Local] = []
        for step in self.program.steps:
            inputs = {name: _leaf(values[name]) for name in step.reads}
            raw = step.operation(Overlay(inputs, self.program.constants))
            result = raw if step.activate is None else step.activate(self.program.constants, raw)
            trace.append(_Local(step, inputs, raw, result))
            values[step.writes] = result.detach() if isinstance(result, Tensor) else result
            for name in step.reads:
                if self.program.last_reader[name] == step.index:
                    del values[name]
        return trace, [values[name] for name in self.program.outputs]

    def _probes(
        self, outputs: Sequence[Any], images: np.ndarray
    ) -> tuple[dict[str, list[Tensor | None]], Tensor | None]:
        """Gradients that start at the outputs, by value; one entry a probe."""
        started: dict[str, list[Tensor | None]] = {}
        for position, (name, output) in enumerate(zip(self.program.outputs, outputs, strict=True)):
            if isinstance(output, Tensor) and output.is_floating_point():
                started[name] = [
                    _signs(output, images, self.seed + 7919 * (probe + 101 * position))
                    for probe in range(self.noise_probes)
                ]
        margin = None
        scores = outputs[0]
        if self.margin and isinstance(scores, Tensor) and scores.dim() == 2 and scores.shape[1] > 1:
            top = scores.topk(2, dim=1)
            probe = torch.zeros_like(scores).scatter_(
                1, top.indices, scores.new_tensor([[1.0, -1.0]]).expand(len(scores), 2)
            )
            margin = (top.values[:, 0] - top.values[:, 1]).double()
            for name, probes in started.items():
                probes.append(probe if name == self.program.outputs[0] else None)
        return started, margin

    def _backward(
        self, trace: list[_Local], gradients: dict[str, list[Tensor | None]], candidates: Candidates
    ) -> Scores:
        """Walk back once; at every layer score its sites with the gradients that pass through it."""
        scores: Scores = {}
        moved: dict[tuple[str, int], Tensor] = {}  # Q(x) - x by value and grid, until its producer is passed
        known: dict[tuple[str, int], Tensor] = {}  # e at a value that one layer alone reads
        while trace:
            local = trace.pop()
            step, layer = local.step, local.step.layer
            arriving = gradients.pop(step.writes, None)
            if arriving is None or not isinstance(local.result, Tensor) or not local.result.requires_grad:
                continue
            if layer is not None:
                for spec in candidates.get(Site(layer.name, "output"), ()):
                    qparams = self.calibration.qparams(layer.output, spec)
                    key = (layer.output, id(qparams))
                    found = known.pop(key, None)
                    if found is None:
                        found = _dots(arriving, self._moved(moved, local.result.detach(), key, qparams))
                    scores[Site(layer.name, "output"), spec] = found
            for key in [key for key in moved if key[0] == step.writes]:
                del moved[key]
            through = self._through(local, arriving, scores, candidates)
            for name, passed in through.items():
                if layer is not None and name in layer.inputs:
                    self._score_input(local, name, passed, scores, candidates, moved, known)
                gradients[name] = _added(gradients.get(name), passed)
        return scores

    def _through(
        self, local: _Local, arriving: list[Tensor | None], scores: Scores, candidates: Candidates
    ) -> dict[str, list[Tensor | None]]:
        """Gradients at the step's inputs; scores its weight on the way."""
        step, layer = local.step, local.step.layer
        wanted = {name: x for name, x in local.inputs.items() if isinstance(x, Tensor) and x.requires_grad}
        behind: list[Tensor | None] = []
        for position, gradient in enumerate(arriving):
            if gradient is None or step.activate is None:
                behind.append(gradient)
            else:
                keep = position < len(arriving) - 1
                behind.append(torch.autograd.grad(local.result, local.raw, gradient, retain_graph=keep)[0])
        if layer is not None and layer.weight is not None:
            specs = tuple(candidates.get(Site(layer.name, "weight"), ()))
            if specs:
                self._score_weight(local, behind, specs, scores)
        through: dict[str, list[Tensor | None]] = {name: [] for name in wanted}
        names = [
            name for name in wanted if name not in self.program.network.input_names or self._scored(layer, candidates)
        ]
        for position, gradient in enumerate(behind):
            found: Sequence[Tensor | None] = [None] * len(names)
            if gradient is not None and names:
                found = torch.autograd.grad(
                    local.raw,
                    [wanted[name] for name in names],
                    gradient,
                    retain_graph=position < len(behind) - 1,
                    allow_unused=True,
                )
            for name, value in zip(names, found, strict=True):
                through[name].append(value)
        return {name: values for name, values in through.items() if values}

    @staticmethod
    def _scored(layer: Any, candidates: Candidates) -> bool:
        return layer is not None and Site(layer.name, "input") in candidates

    def _score_input(
        self,
        local: _Local,
        name: str,
        passed: list[Tensor | None],
        scores: Scores,
        candidates: Candidates,
        moved: dict[tuple[str, int], Tensor],
        known: dict[tuple[str, int], Tensor],
    ) -> None:
        layer = local.step.layer
        assert layer is not None
        site = Site(layer.name, "input")
        for spec in candidates.get(site, ()):
            qparams = self.calibration.qparams(name, spec)
            key = (name, id(qparams))
            found = _dots(passed, self._moved(moved, local.inputs[name].detach(), key, qparams))
            scores[site, spec] = found if (site, spec) not in scores else scores[site, spec] + found
            if self._readers[name] == 1 and name not in self.program.outputs:
                known[key] = found  # the producer's output moves on this one way only
                moved.pop(key, None)

    def _score_weight(
        self, local: _Local, gradients: list[Tensor | None], specs: tuple[Spec, ...], scores: Scores
    ) -> None:
        step, layer = local.step, local.step.layer
        assert layer is not None
        assert step.weight is not None
        site = Site(layer.name, "weight")
        change = self._weight_change(site, specs, layer)  # (K, *W.shape)
        over = Overlay(local.inputs, self.program.constants)
        arguments = step.arguments(over)
        images = local.raw.shape[0]
        with torch.no_grad():
            by_gradient = supported(step.target, arguments, images) and (
                GRADIENT_FORWARDS * len(gradients) <= CANDIDATE_FORWARDS * len(specs)
            )
            if by_gradient:
                flat = change.flatten(1).T
                columns = [
                    torch.zeros(images, len(specs))
                    if gradient is None
                    else per_sample_gradient(step.target, arguments, arguments[0], gradient).flatten(1) @ flat
                    for gradient in gradients
                ]
                for k, spec in enumerate(specs):
                    scores[site, spec] = torch.stack([column[:, k] for column in columns], 1).double()
                return
            for k, spec in enumerate(specs):
                parts = [change[k] if a is arguments[1] else a for a in arguments]
                if layer.bias is not None and len(parts) > 2:
                    parts[2] = None
                scores[site, spec] = _dots(gradients, step.target(*parts))

    def _weight_change(self, site: Site, specs: tuple[Spec, ...], layer: Any) -> Tensor:
        if (site, specs) not in self._weights:
            weight = self.program.network.tensors[layer.weight]
            moved = [quantized_weight(spec, weight, axis=layer.weight_axis) - weight for spec in specs]
            self._weights[site, specs] = torch.stack(moved).to(self.program.device)
        return self._weights[site, specs]

    @staticmethod
    def _moved(moved: dict[tuple[str, int], Tensor], x: Tensor, key: tuple[str, int], qparams: QParams) -> Tensor:
        if key not in moved:
            moved[key] = fake_quantize(x, qparams).sub_(x)
        return moved[key]


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_()
    return value


def _signs(like: Tensor, images: np.ndarray, seed: int) -> Tensor:
    """Random signs (B, ...), each image's from its own seed: tiles and order do not matter."""
    size = like[0].numel()
    words = (size + 63) // 64
    bits = [np.random.Philox(key=[seed, int(image)]).random_raw(words).view(np.uint8) for image in images]
    signs = np.unpackbits(np.stack(bits), axis=1, count=size).astype(np.float32) * 2 - 1
    return torch.from_numpy(signs).reshape(like.shape).to(like)


def _dots(gradients: Iterable[Tensor | None], change: Tensor) -> Tensor:
    """(B, P) float64: <g, change> of every image for every probe."""
    columns = []
    flat = _flat(change)
    for gradient in gradients:
        if gradient is None:
            columns.append(torch.zeros(len(change), dtype=torch.float64, device=change.device))
        else:
            columns.append(torch.linalg.vecdot(_flat(gradient), flat).double())
    return torch.stack(columns, 1)


def _flat(t: Tensor) -> Tensor:
    """(B, N) in channels-last order, a view where the tensor lies so."""
    return t.movedim(1, -1).flatten(1) if t.dim() > 2 else t.flatten(1)


def _added(into: list[Tensor | None] | None, passed: list[Tensor | None]) -> list[Tensor | None]:
    if into is None:
        return list(passed)
    return [b if a is None else a if b is None else a + b for a, b in zip(into, passed, strict=True)]
