"""Every (site, spec) scored to first order from one forward and one backward per probe.

A quantizer Q at a site with tensor t perturbs it by d = Q(t) - t; to first order the output moves by
J d. With a probe v of random signs, E[(v . J d)^2] = ||J d||^2, and g = J^T v comes for all sites from
one backward pass, so e = <g, d> per image gives noise = mean(e^2) (DESIGN, section 5; M. Hutchinson,
Communications in Statistics 19 (1990) 433-450). A last probe is of the decision instead: see
:mod:`quantopsy.engine.probes`.

B images of a tile, P probes, K specs at a site, S columns of scores.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from quantopsy.core import Role, Site, Spec
from quantopsy.engine.allocator import keep_freed_memory
from quantopsy.engine.calibration import Calibration, tensors_at
from quantopsy.engine.probes import Kind, Loss, decision_probe, loss_probe, random_signs
from quantopsy.engine.tensor_cache import WEIGHT_CACHE_BYTES, TensorCache
from quantopsy.engine.weight_gradients import per_sample_gradients, supported
from quantopsy.graph.execute import Overlay, Program, Step, Values
from quantopsy.graph.images import ImageAxis, image_axis
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import CONVOLUTIONS, LINEARS, SIZES, STEPWISE, Clip, pads_with
from quantopsy.graph.outputs import is_measured
from quantopsy.quant import QParams

Candidates = Mapping[Site, Sequence[Spec]]
"""What is scored at each site. Where a layer without weights has as many specs at its input as at its output,
they belong together in order: see :class:`Column`."""

Gradients = list[Tensor | None]  # of one value, one entry a probe; None where it is zero

# Which way a weight's candidates are scored, in products per element of the weight and image; a forward
# takes as many as it has output pixels. A per-sample gradient costs about two forwards and then a dot
# product a candidate, a candidate's own forward with the dot products of its output one and a third.
GRADIENT_FORWARDS, CANDIDATE_FORWARDS, DOT_PRODUCTS = 2.0, 1.3, 4.0

# Values that are put on a grid and multiplied at a time on a CPU: they stay in cache.
_CACHED = 2**19

# Elements of a layer's candidate weights in memory at a time.
_LARGEST_CHANGE = 2**26

# Images of a tile that are asked where every value holds them.
_FEW = 3

_LINEAR = {*CONVOLUTIONS, *LINEARS}
_TINY = torch.finfo(torch.float32).tiny
_PRIME = 7919  # keeps the seeds of probes apart
_ROLES: tuple[Role, ...] = ("input", "weight", "output")


class Column(NamedTuple):
    """What a column of scores is of: one value put on its grid at one site.

    ``value`` is the weight's tensor, or the activation (see :attr:`Network.grid_sources`).
    A layer with two inputs has two columns a spec. Columns of equal spec and value are the very same
    perturbation, once leaving its producer and once entering a reader.

    A layer with weights makes of an input on a grid an output anywhere. One without (pooling, add, concat)
    makes one on a grid again, or nearly: rounding that is anything but rounding the float output. Its
    output is scored a second time, ``given`` its inputs on a grid: d = Q(op(Q(x))) - op(Q(x)).
    """

    site: Site
    spec: Spec
    value: str
    given: Spec | None = None


@dataclass(frozen=True)
class Screened:
    """A tile's scores.

    ``e`` (S, B, P) float32: by column, the change of what every probe looks at; the first probes are
    random, the last is the decision's where ``margins`` has columns. NaN in columns of layers that
    ``hidden`` names, with the operator that lets no gradient through to them, or mixes images.
    ``margins`` (B, M) float64: see :class:`quantopsy.engine.probes.DecisionProbe`. ``moved`` (S,): of a weight
    ||d||^2 / ||W||^2, the share of its energy that its quantizer moves; 0 of activations.
    """

    columns: tuple[Column, ...]
    e: np.ndarray
    moved: tuple[float, ...]
    margins: np.ndarray
    kind: Kind
    outputs: tuple[Any, ...]
    hidden: Mapping[str, str]


@dataclass
class _Local:
    """One step of the forward pass with what its backward needs.

    ``clip`` where the activation has been applied in place: ``raw`` then only carries the tape.
    """

    step: Step
    inputs: Values
    raw: Any
    result: Any
    clip: Clip | None


@dataclass
class _Walk:
    """What the walk back has found so far, by value where nothing else is said."""

    candidates: Candidates
    gradients: dict[str, Gradients]
    probes: int
    images: int
    reached: set[str]  # the outputs, and what they are computed from
    blocked: dict[str, str] = field(default_factory=dict)  # the operator behind it that has no gradient
    owned: set[str] = field(default_factory=set)  # its gradients may be overwritten
    hidden: dict[str, str] = field(default_factory=dict)  # by layer
    scores: dict[Column, Tensor] = field(default_factory=dict)  # (B, P)
    # e of a value on a grid, from the readers that have been passed: <g, d> is linear in g, so that
    # the sum over all readers is what the value's producer would find.
    passed: dict[tuple[str, Spec], Tensor] = field(default_factory=dict)
    readers: dict[tuple[str, Spec], set[int]] = field(default_factory=dict)

    def add(self, column: Column, e: Tensor) -> None:
        e = self._of_images(e)
        self.scores[column] = self.scores[column] + e if column in self.scores else e

    def pass_on(self, name: str, spec: Spec, e: Tensor, reader: int) -> None:
        key, e = (name, spec), self._of_images(e)
        self.passed[key] = self.passed[key] + e if key in self.passed else e
        self.readers.setdefault(key, set()).add(reader)

    def _of_images(self, e: Tensor) -> Tensor:
        """(B, P), where an image has several rows in a value."""
        return e if len(e) == self.images else e.unflatten(0, (self.images, -1)).sum(1)


def columns(network: Network, candidates: Candidates) -> tuple[Column, ...]:
    """The columns of ``candidates``, layer by layer in topological order."""
    found: dict[Column, None] = {}
    for layer in network.layers:
        for role in _ROLES:
            site = Site(layer.name, role)
            for spec in candidates.get(site, ()):
                for value in tensors_at(network, site, spec):
                    found[Column(site, spec, value)] = None
        for spec, given in _pairs(layer, candidates):
            found[Column(Site(layer.name, "output"), spec, layer.output, given)] = None
    return tuple(found)


def _pairs(layer: Layer, candidates: Candidates) -> Iterator[tuple[Spec, Spec]]:
    """(output, input): the specs that belong together at a layer without weights."""
    leaving = candidates.get(Site(layer.name, "output"), ())
    entering = candidates.get(Site(layer.name, "input"), ())
    if layer.weight is None and len(leaving) == len(entering):
        yield from zip(leaving, entering, strict=True)


class ScreenEngine:
    """Scores candidates tile by tile. Holds the program, the ranges and the perturbed weights.

    ``noise_probes`` random probes, and one of the decision unless ``decision`` is false: the margin, or
    a user's ``loss``. ``seed`` is of the random ones. With ``half`` the float network runs forward and back in
    bfloat16, where autocast takes it for safe; grids, changes of weights and sums of products are float32 all the same.
    """

    def __init__(
        self,
        program: Program,
        calibration: Calibration,
        *,
        noise_probes: int = 1,
        decision: bool = True,
        loss: Loss | None = None,
        half: bool = False,
        seed: int = 0,
    ) -> None:
        keep_freed_memory()
        self.program = program
        self.half = half
        self.calibration = calibration
        self.noise_probes = noise_probes
        self.decision = decision
        self.loss = loss
        self.seed = seed
        self._weights = TensorCache[tuple[Site, tuple[Spec, ...]]](WEIGHT_CACHE_BYTES)
        self._layouts: dict[bool, dict[str, ImageAxis | None]] = {}  # of tiles with several images, and with one
        self._axes: dict[str, ImageAxis | None] = {}  # that of the tile at hand
        self._moved: dict[Column, float] = {}
        self._readers: dict[str, set[int]] = {}
        for step in program.steps:
            for name in step.reads:
                self._readers.setdefault(name, set()).add(step.index)

    def run_tile(
        self, inputs: Any, images: np.ndarray, candidates: Candidates, labels: Tensor | None = None
    ) -> Screened:
        """Score every spec of ``candidates`` on one tile; ``images`` (B,) seed their own probes."""
        placed = self.program.place(inputs)
        several = len(images) > 1
        if several not in self._layouts:
            self._layouts[several] = self._find_images(placed, len(images))
        trace, outputs = self._forward(placed)
        self._axes = self._layouts[several]
        walk, margins, kind = self._start(outputs, images, labels, candidates)
        with torch.no_grad():
            while trace:
                self._back(trace.pop(), walk)
        wanted = columns(self.program.network, candidates)
        nothing = torch.zeros(len(images), walk.probes, device=self.program.device)
        e = torch.stack([walk.scores.get(column, nothing) for column in wanted]).cpu().numpy()
        for row, column in enumerate(wanted):
            if column.site.layer in walk.hidden:
                e[row] = np.nan
        moved = tuple(self._moved.get(column, 0.0) for column in wanted)
        return Screened(wanted, e, moved, margins.double().cpu().numpy(), kind, tuple(outputs), walk.hidden)

    def _forward(self, values: Values) -> tuple[list[_Local], list[Any]]:
        """Every step on detached inputs, so that each can be differentiated on its own.

        But for the parts of what an operator gives several of, such as a split: they are differentiated through it.
        """
        trace: list[_Local] = []
        behind: dict[str, Values] = {}  # by a tuple's name what it is computed from: its elements keep their tape
        with torch.enable_grad(), torch.autocast(self.program.device.type, torch.bfloat16, enabled=self.half):
            for step in self.program.steps:
                inputs = {name: _leaf(values[name]) for name in step.reads}
                for name in step.reads:
                    inputs |= behind.get(name, {})
                raw = step.operation(Overlay(inputs, self.program.constants))
                clip = _clip(step)
                result = step.activated(self.program.constants, raw) if clip is None else clip.apply(raw.detach())
                trace.append(_Local(step, inputs, raw, result, clip))
                values[step.writes] = result.detach() if isinstance(result, Tensor) else result
                if isinstance(result, tuple | list):
                    behind[step.writes] = inputs
                self.program.release(step, values)
        return trace, [_single(values[name]) for name in self.program.outputs]

    def _find_images(self, inputs: Values, images: int) -> dict[str, ImageAxis | None]:
        """Where every value holds its images, as few of them tell: :func:`quantopsy.graph.images.image_axis`."""
        few = min(images, _FEW)
        values, alone = ({name: value[:count] for name, value in inputs.items()} for count in (few, 1))
        with torch.no_grad():
            self.program.forward(values, keep=True)
            self.program.forward(alone, keep=True)
        return {
            name: image_axis(value, alone[name], few) for name, value in values.items() if isinstance(value, Tensor)
        }

    def _start(
        self, outputs: Sequence[Any], images: np.ndarray, labels: Tensor | None, candidates: Candidates
    ) -> tuple[_Walk, Tensor, Kind]:
        """The gradients that start at the outputs, and the margins."""
        kind: Kind = "none"
        last: tuple[Tensor | None, ...] = ()
        margins = torch.empty(len(images), 0)
        if self.loss is not None:
            leaves = [_leaf(output) for output in outputs]
            with torch.enable_grad():
                found = loss_probe(self.loss, self.program.network.unflatten(leaves), leaves, labels)
            kind, last, margins = found.kind, found.gradients, found.margins
        elif self.decision:
            found = decision_probe(outputs, images, self.seed + _PRIME * (self.noise_probes + 1))
            kind, last, margins = found.kind, found.gradients, found.margins
        started: dict[str, Gradients] = {}
        for position, (name, output) in enumerate(zip(self.program.outputs, outputs, strict=True)):
            if is_measured(output):
                probes: Gradients = [
                    random_signs(output, images, self.seed + _PRIME * (probe + 101 * position))
                    for probe in range(self.noise_probes)
                ]
                started[name] = _added(started.get(name), probes + ([] if kind == "none" else [last[position]]))
        walk = _Walk(candidates, started, self.noise_probes + (kind != "none"), len(images), set(started))
        return walk, margins, kind

    def _back(self, local: _Local, walk: _Walk) -> None:
        """Walk back over one step; score the sites of its layer with the gradients that pass."""
        step, layer = local.step, local.step.layer
        if step.writes not in walk.reached:
            return
        arriving = walk.gradients.pop(step.writes, None)
        blocked = walk.blocked.pop(step.writes, None)
        differentiable = isinstance(local.raw, Tensor) and local.raw.requires_grad
        moving = [name for name, value in local.inputs.items() if isinstance(value, Tensor) and value.requires_grad]
        hides = moving and (not differentiable or step.target in STEPWISE) and step.target not in SIZES
        if blocked is None and hides and isinstance(local.result, Tensor):
            blocked = self._operator(step)
        walk.reached.update(local.inputs)
        if blocked is not None:
            walk.blocked.update(dict.fromkeys(step.reads, blocked))
            if layer is not None:
                walk.hidden[layer.name] = blocked
            return
        if arriving is None or not differentiable:
            return
        if layer is None:
            self._pass_through(step, walk)
        elif any(self._mixed(name) for name in (step.writes, *layer.inputs)):
            walk.hidden[layer.name] = self._operator(step)
            layer = None
        else:
            self._score_output(local, arriving, walk)
        behind = _behind_activation(local, arriving, step.writes in walk.owned)
        if layer is not None and layer.weight is not None:
            self._score_weight(local, layer, behind, walk)
        try:
            through = self._through(local, layer, moving, behind, walk)
        except RuntimeError as error:
            # That it has no derivative, an operator may tell only when it is asked for one.
            if "derivative" not in str(error) and "autograd formula" not in str(error):
                raise
            walk.blocked.update(dict.fromkeys(step.reads, self._operator(step)))
            return
        for name, gradients in through.items():
            if layer is not None and name in layer.inputs:
                self._score_input(local, layer, name, gradients, walk)
            there = walk.gradients.get(name)
            # New memory that nothing else reads: what a linear operation makes, and sums.
            new = step.target in _LINEAR if there is None else None not in (*there, *gradients)
            (walk.owned.add if new else walk.owned.discard)(name)
            walk.gradients[name] = _added(there, gradients)

    def _mixed(self, name: str) -> bool:
        """Whether images cannot be told apart in a value, so that nothing can be said by image."""
        axis = self._axes[name]
        return axis is None or axis.rows == 0

    def _outermost(self, name: str) -> bool:
        """Whether a value holds its images outermost, the rows of each together."""
        axis = self._axes[name]
        return axis is not None and axis.dim == 0 and not axis.apart

    def _images_first(self, t: Tensor, name: str) -> Tensor:
        axis = self._axes[name]
        assert axis is not None
        return axis.first(t)

    def _operator(self, step: Step) -> str:
        """The operator's name; of a tuple's element that of the operator that gives the tuple."""
        if step.target is operator.getitem:
            step = self.program.steps[self.program.producer[step.reads[0]]]
        return str(step.target.__name__).partition(".")[0]

    def _score_output(self, local: _Local, arriving: Gradients, walk: _Walk) -> None:
        layer = local.step.layer
        assert layer is not None
        site = Site(layer.name, "output")
        for spec in walk.candidates.get(site, ()):
            e = self._known(layer.output, spec, walk)
            if e is None:
                e = self._on_grid(local.result.detach(), layer.output, spec, arriving)
            walk.add(Column(site, spec, layer.output), e)
        for spec, given in _pairs(layer, walk.candidates):
            walk.add(Column(site, spec, layer.output, given), self._on_grid_again(local, layer, spec, given, arriving))

    def _score_input(self, local: _Local, layer: Layer, name: str, gradients: Gradients, walk: _Walk) -> None:
        site = Site(layer.name, "input")
        for spec in walk.candidates.get(site, ()):
            e = self._on_grid(local.inputs[name].detach(), name, spec, gradients)
            walk.add(Column(site, spec, self._source(name, spec)), e)
            walk.pass_on(name, spec, e, local.step.index)

    def _pass_through(self, step: Step, walk: _Walk) -> None:
        """A value that is only re-arranged moves on its origin's grid: what readers found holds before it."""
        if step.writes not in self.program.network.origins:
            return
        for name, spec in [key for key in walk.passed if key[0] == step.writes]:
            e = self._known(name, spec, walk)
            if e is not None and self._source(name, spec) == self._source(step.reads[0], spec):
                walk.pass_on(step.reads[0], spec, e, step.index)

    def _source(self, name: str, spec: Spec) -> str:
        """The value whose grid ``name`` has with ``spec``."""
        return self.program.network.grid_sources.of(name, spec)

    def _known(self, name: str, spec: Spec, walk: _Walk) -> Tensor | None:
        """e of a value on a grid where every way it takes has been scored already."""
        key = name, spec
        e, readers = walk.passed.pop(key, None), walk.readers.pop(key, set())
        silent = {index for index in self._readers.get(name, ()) if not self._carries(index, walk)}
        whole = name not in self.program.outputs and readers | silent >= self._readers.get(name, set())
        return e if whole else None

    def _carries(self, index: int, walk: _Walk) -> bool:
        """Whether a step leads to the outputs with more than sizes."""
        writes = self.program.steps[index].writes
        return writes in walk.reached and self.program.steps[index].target not in SIZES

    def _through(
        self, local: _Local, layer: Layer | None, moving: Sequence[str], behind: Gradients, walk: _Walk
    ) -> dict[str, Gradients]:
        """Gradients at the step's inputs. Those that nothing precedes are passed only where a forward is dearer.

        ``layer`` is the one to be scored, if any.
        """
        step, network = local.step, self.program.network
        names = [name for name in moving if network.origin(name) not in network.input_names]
        for name in moving:
            if name not in names and layer is not None and name in layer.inputs:
                specs = walk.candidates.get(Site(layer.name, "input"), ())
                if step.target in _LINEAR and len(specs) <= len(behind):
                    self._score_input_forward(local, layer, name, specs, behind, walk)
                elif specs:
                    names.append(name)
        through: dict[str, Gradients] = {name: [] for name in names}
        arguments = step.arguments(Overlay(local.inputs, self.program.constants))
        pad = arguments[1] if pads_with(step.target, arguments) is not None and min(arguments[1]) >= 0 else None
        for position, gradient in enumerate(behind):
            found: Sequence[Tensor | None] = [None] * len(names)
            if gradient is not None and pad is not None and names:
                found = [_unpadded(gradient, pad)]
            elif gradient is not None and names:
                found = torch.autograd.grad(
                    local.raw,
                    [local.inputs[name] for name in names],
                    gradient.to(local.raw.dtype),
                    # Other parts may have been made by the same operator.
                    retain_graph=position < len(behind) - 1 or step.target is operator.getitem,
                    allow_unused=True,
                )
            for name, value in zip(names, found, strict=True):
                through[name].append(value)
        return through

    def _score_input_forward(
        self, local: _Local, layer: Layer, name: str, specs: Sequence[Spec], behind: Gradients, walk: _Walk
    ) -> None:
        """<g, op(d, W)>: of a network's input one forward a spec, where no gradient is wanted further back."""
        x = local.inputs[name].detach()
        site = Site(layer.name, "input")
        for spec in specs:
            moved = _moved(self.calibration.qparams(name, spec), x)
            over = Overlay({name: moved}, Overlay(local.inputs, self.program.constants))
            e = self._products(behind, self._linear(local.step, layer, over), local.step.writes)
            walk.add(Column(site, spec, self._source(name, spec)), e)

    def _score_weight(self, local: _Local, layer: Layer, gradients: Gradients, walk: _Walk) -> None:
        step = local.step
        site = Site(layer.name, "weight")
        specs = tuple(walk.candidates.get(site, ()))
        present = [gradient for gradient in gradients if gradient is not None]
        if not specs or not present:
            return
        assert step.weight is not None
        assert layer.weight is not None
        over = Overlay(local.inputs, self.program.constants)
        arguments = step.arguments(over)
        if step.target in LINEARS:
            arguments = [self._images_first(arguments[0], layer.inputs[0]), *arguments[1:]]
        first = [self._images_first(gradient, step.writes) for gradient in present]
        arguments = _of_type(arguments, first[0].dtype)
        images = len(first[0])
        pixels = layer.macs / prod(layer.weight_shape or ())
        gradient_cost = len(present) * (GRADIENT_FORWARDS * pixels + DOT_PRODUCTS * len(specs))
        # A convolution takes its images where they are: turned to the front, they would be no images to it.
        fits = step.target in LINEARS or (self._outermost(layer.inputs[0]) and self._outermost(step.writes))
        by_gradient = (
            fits
            and supported(step.target, arguments, images)
            and gradient_cost <= CANDIDATE_FORWARDS * pixels * len(specs)
        )
        flat = (
            [_single(gradient.flatten(1)) for gradient in per_sample_gradients(step.target, arguments, first)]
            if by_gradient
            else []
        )
        for some in self._pieces(layer, specs):
            change = self._weight_change(site, some, layer)  # (K, *W.shape)
            if by_gradient:
                found = torch.stack([gradient @ change.flatten(1).T for gradient in flat], 2)
            else:
                moved = [
                    self._products(
                        present, self._linear(step, layer, Overlay({step.weight: change[k]}, over)), step.writes
                    )
                    for k in range(len(some))
                ]
                found = torch.stack(moved, 1)
            if len(present) < len(gradients):
                kept = [p for p, gradient in enumerate(gradients) if gradient is not None]
                found = found.new_zeros(*found.shape[:2], len(gradients)).index_copy_(2, torch.tensor(kept), found)
            for k, spec in enumerate(some):
                if spec.corrects_bias:
                    found[:, k] -= self._shifted(layer, spec, change[k], gradients)
                column = Column(site, spec, layer.weight)
                walk.add(column, found[:, k])
                if column not in self._moved:
                    weight = self.program.network.tensors[layer.weight]
                    self._moved[column] = float(change[k].square().sum() / weight.square().sum().clamp(min=_TINY))

    def _shifted(self, layer: Layer, spec: Spec, change: Tensor, gradients: Gradients) -> Tensor:
        """(B, P): <g, the shift of every channel's mean>, which the bias takes away again."""
        shift = self.calibration.shift(layer, spec, change).to(change.device)
        places = next(g for g in gradients if g is not None)
        everywhere = shift.reshape(-1, *(1,) * (places.dim() - 1 - layer.channel_axis % places.dim()))
        return self._products(gradients, everywhere.expand_as(places), layer.output)

    @staticmethod
    def _linear(step: Step, layer: Layer, values: Overlay) -> Tensor:
        """The step's operation without its bias: what is linear in input and weight."""
        parts = list(step.arguments(values))
        if layer.bias is not None and len(parts) > 2:
            parts[2] = None
        result: Tensor = step.target(*_of_type(parts, parts[0].dtype))
        return result

    @staticmethod
    def _pieces(layer: Layer, specs: tuple[Spec, ...]) -> list[tuple[Spec, ...]]:
        size = max(1, _LARGEST_CHANGE // prod(layer.weight_shape or ()))
        return [specs[start : start + size] for start in range(0, len(specs), size)]

    def _weight_change(self, site: Site, specs: tuple[Spec, ...], layer: Layer) -> Tensor:
        def change() -> Tensor:
            assert layer.weight is not None
            weight = self.program.network.tensors[layer.weight]
            moved = [self.calibration.quantized_weight(layer, spec, weight) - weight for spec in specs]
            return torch.stack(moved).to(self.program.device)

        return self._weights.get((site, specs), change)

    def _on_grid(self, x: Tensor, name: str, spec: Spec, gradients: Gradients) -> Tensor:
        """(B, P): <g, Q(x) - x>."""
        qparams = self.calibration.qparams(name, spec)
        if not self._outermost(name):
            return self._products(gradients, _moved(qparams, x), name)
        return _in_pieces(lambda part: _moved(qparams, x[part]), gradients, x.numel())

    def _on_grid_again(self, local: _Local, layer: Layer, spec: Spec, given: Spec, gradients: Gradients) -> Tensor:
        """(B, P): <g, Q(y) - y>, y what the layer makes of its inputs on the grids of ``given``."""
        leaving = self.calibration.qparams(layer.output, spec)
        entering = {name: self.calibration.qparams(name, given) for name in layer.inputs}

        def change(part: slice) -> Tensor:
            over = {
                name: qparams.snap(_single(local.inputs[name].detach()[part])) for name, qparams in entering.items()
            }
            y = local.step.compute(Overlay(over, Overlay(local.inputs, self.program.constants)))
            return _moved(leaving, y)

        by_image = set(local.step.reads) == set(layer.inputs) and all(
            len(local.inputs[name]) == len(local.result) and self._outermost(name) for name in layer.inputs
        )
        if not by_image:
            return self._products(gradients, change(slice(None)), layer.output)
        size = sum(local.inputs[name].numel() for name in layer.inputs)
        return _in_pieces(change, gradients, max(size, local.result.numel()))

    def _products(self, gradients: Sequence[Tensor | None], change: Tensor, name: str) -> Tensor:
        """(B k, P): <g, change> of the value ``name``, whichever dimension its images are in."""
        first = [None if gradient is None else self._images_first(gradient, name) for gradient in gradients]
        return _inner(first, self._images_first(change, name))


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_()
    return value


def _single(value: Any) -> Any:
    """A tensor of a half precision in float32."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


def _of_type(arguments: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """An operation's arguments with its tensors of one type: under autocast some are halved and some are not."""
    return [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


def _moved(qparams: QParams, x: Tensor) -> Tensor:
    """Q(x) - x."""
    x = _single(x)
    return qparams.snap(x).sub_(x)


def _clip(step: Step) -> Clip | None:
    """The step's activation, where it can be applied in place without hiding anything from the tape."""
    return step.clip if step.target in _LINEAR else None


def _behind_activation(local: _Local, arriving: Gradients, owned: bool) -> Gradients:
    """Gradients at the operation's result, before the activation function."""
    if local.step.activate is None:
        return arriving
    if local.clip is not None:
        y = local.result
        return [g if g is None else local.clip.back(g if owned else g.clone(), y) for g in arriving]
    # The tape is needed for the next probe, and for the operation in front.
    kind = local.result.dtype
    return [
        g if g is None else torch.autograd.grad(local.result, local.raw, g.to(kind), retain_graph=True)[0]
        for g in arriving
    ]


def _unpadded(t: Tensor, pad: Sequence[int]) -> Tensor:
    """The part of ``t`` that is not padding, as a view: autograd would copy it."""
    for dim, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        size = t.shape[-dim]
        t = t.narrow(-dim, before, size - before - after)
    return t


def _inner(gradients: Sequence[Tensor | None], change: Tensor) -> Tensor:
    """(B, P): <g, change> of every image for every probe, or of every row of an image."""
    flat = _single(_flat(change))
    found = []
    for gradient in gradients:
        if gradient is None:
            found.append(flat.new_zeros(len(flat)))
        elif len(flat) == 1:
            # One pass less than a product and its sum.
            found.append(torch.dot(_single(_flat(gradient)[0]), flat[0]).reshape(1))
        else:
            found.append((_single(_flat(gradient)) * flat).sum(1))
    return torch.stack(found, 1)


def _in_pieces(change: Callable[[slice], Tensor], gradients: Gradients, elements: int) -> Tensor:
    """(B, P): <g, change>, of so many images at a time that their share of ``elements`` stays in cache."""
    first = next(gradient for gradient in gradients if gradient is not None)
    images = len(first)
    size = images if first.device.type != "cpu" else max(1, _CACHED * images // elements)
    parts = [slice(start, start + size) for start in range(0, images, size)]
    return torch.cat([_inner([None if g is None else g[part] for g in gradients], change(part)) for part in parts])


def _flat(t: Tensor) -> Tensor:
    """(B, N) in channels-last order, a view where the tensor lies so."""
    return t.movedim(1, -1).flatten(1) if t.dim() > 2 else t.reshape(len(t), -1)


def _added(into: Gradients | None, passed: Gradients) -> Gradients:
    if into is None:
        return list(passed)
    return [b if a is None else a if b is None else a + b for a, b in zip(into, passed, strict=True)]
