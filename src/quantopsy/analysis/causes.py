"""Causes that a layer may suffer from: what speaks for each, and the change that puts it to the test.

Evidence alone names nobody: a suspect comes with counterfactual plans of its layer, and the engine says what
they remove. C output channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
from torch import Tensor

from quantopsy.calibrate import fit, fixed, quantized_weight
from quantopsy.core import Cause, Plan, Role, Site, Spec
from quantopsy.engine.layer_noise import Edge, Local
from quantopsy.graph.network import Layer
from quantopsy.graph.operators import WEIGHTED_SUMS

ORDER: tuple[Cause, ...] = get_args(Cause)
"""From the most to the least specific: of two causes that explain as much, the earlier is named first."""

FIXES: Mapping[Cause, tuple[str, ...]] = {
    "calibration_range": ("calibrate on images like those it will see", "a range estimator that fits them"),
    "dead_channel": ("zero the dead channels' weights", "scales per channel"),
    "weight_outlier": ("scales per channel", "split the outlier's channel (OCS)", "piecewise linear weights", "clip"),
    "channel_imbalance": ("scales per channel", "cross-layer equalization"),
    "double_rounding": ("one grid for its inputs and its output", "requantize the branches to the output's scale"),
    "branch_imbalance": ("one grid for all branches, equalized first", "16-bit activations there"),
    "wasted_range": ("an asymmetric grid", "clip the side that holds little"),
    "activation_outlier": ("clip (range estimator mse or percentile)", "cross-layer equalization", "16-bit there"),
    "bias_shift": ("bias correction",),
    "bias_overflow": ("raise the weight's or input's scale of that channel", "clip the bias", "equalization"),
    "amplification": ("more bits for this layer", "keep it float", "train with quantization"),
    "no_single_cause": ("more bits for this layer", "keep it float", "AdaRound", "train with quantization"),
}

# From where evidence is worth a test. Low on purpose: the test decides.
PEAK_RATIO = 2.0  # largest over typical weight channel; reach over body of an activation
LOUD_RATIO = 4.0  # reach of an activation over that of its typical channel
OUTLIER_RATIO = 2.5  # in-channel peak over its median, against that of the other channels
TAIL_RATIO = 1.5
BRANCH_RATIO = 3.0
SHIFT_SHARE = 0.1
BEYOND_SHARE = 1e-4
WIDE_RATIO = 1.3
SIDE_SHARE = 0.2
DOUBLE_RATIO = 1.3
LEAST_BITS_OF_PIECES = 4  # two regions of 4 levels each way
DEAD_VARIANCE = 1e-4  # of the typical channel's
INT32 = 2**31 - 1

_WITHOUT_WEIGHTS = ("concat", "add", "max_pool", "avg_pool", "adaptive_avg_pool", "mean", "upsample", "mul")


@dataclass(frozen=True)
class Suspect:
    """A cause that evidence speaks for, and ``changes``: by their words, plans without it."""

    cause: Cause
    sites: tuple[Role, ...]
    evidence: Mapping[str, float]
    changes: Mapping[str, Plan] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """One layer under examination: its plan (its own sites only), its weight, and what was seen there."""

    layer: Layer
    plan: Plan
    weight: Tensor | None
    bias: Tensor | None
    local: Local

    def spec(self, role: Role) -> Spec | None:
        """What the plan has at ``role``."""
        return self.plan.get(Site(self.layer.name, role))

    def changed(self, specs: Mapping[Role, Spec | None]) -> Plan:
        """The plan with other specs at some roles; None leaves a role float."""
        sites = {site: spec for site, spec in self.plan.sites if site.role not in specs}
        sites |= {Site(self.layer.name, role): spec for role, spec in specs.items() if spec is not None}
        return Plan.of(sites)


def wide_plans(plan: Plan) -> list[Plan]:
    """What suspects may ask of activations and weights, so that one pass over the images calibrates for all."""

    def with_fields(**fields: object) -> Plan:
        return Plan.of({site: replace(spec, **fields) for site, spec in plan.sites if site.role != "weight"})  # type: ignore[arg-type]

    corrected = Plan.of({site: replace(spec, correction="bias") for site, spec in plan.sites if site.role == "weight"})
    return [
        plan, with_fields(range_estimator="mse"), with_fields(granularity="per_channel"), corrected
    ]  # fmt: skip


def in_16_bits(scene: Scene) -> dict[Role, Plan]:
    """For every site of the plan, the plan with 16 bits there."""
    return {site.role: scene.changed({site.role: spec.wide}) for site, spec in scene.plan.sites}


def suspects(scene: Scene) -> list[Suspect]:
    """Every cause with something to say for it, in the order of :data:`ORDER`."""
    found = [*_of_weights(scene), *_of_activations(scene), *_of_rounding(scene), *_of_shift(scene)]
    return sorted(found, key=lambda suspect: ORDER.index(suspect.cause))


def _of_weights(scene: Scene) -> Iterator[Suspect]:
    """The range that few weights or channels take for themselves."""
    weight, spec = scene.weight, scene.spec("weight")
    if weight is None or spec is None:
        return
    axis = scene.layer.weight_axis
    rows = weight.detach().float().movedim(axis, 0).reshape(weight.shape[axis], -1).abs().numpy()
    reach = rows.max(1)
    typical = float(np.median(reach))
    peak = float(reach.max())
    if spec.granularity != "per_tensor" or peak < PEAK_RATIO * typical or typical <= 0:
        yield from _of_tails(scene, spec, rows if spec.granularity == "per_channel" else rows.reshape(1, -1))
        return
    wide = np.flatnonzero(reach > peak / 2)
    middle = np.maximum(np.median(rows, axis=1), 1e-30)
    spiky = reach / middle
    # Channels of the same layer have as many weights, so that their peaks compare.
    outlier = float(np.median(spiky[wide]) / np.median(np.delete(spiky, wide))) if len(wide) < len(reach) else 1.0
    variance = scene.local.variance
    alive = float(np.median(variance)) if len(variance) == len(reach) else 0.0
    dead = bool(alive > 0 and (variance[wide] < DEAD_VARIANCE * alive).all())
    evidence = {
        "peak": peak,
        "typical_channel_peak": typical,
        "peak_ratio": peak / typical,
        "wide_channels": float(len(wide)),
        "channels": float(len(reach)),
        "in_channel_outlier_ratio": outlier,
    }
    others = float(np.delete(reach, wide).max()) if len(wide) < len(reach) else peak
    clipped = replace(spec, range_estimator=fixed(-others, others) if others > 0 else "mse")
    per_channel = {"scales per channel": scene.changed({"weight": replace(spec, granularity="per_channel")})}
    if dead:
        changes = {"weights clipped to those of live channels": scene.changed({"weight": clipped}), **per_channel}
        yield Suspect(
            "dead_channel",
            ("weight",),
            {**evidence, "dead_channel_variance": float(variance[wide].max() / alive)},
            changes,
        )
    elif outlier >= OUTLIER_RATIO:
        yield Suspect("weight_outlier", ("weight",), evidence, {**_without_outliers(scene, spec), **per_channel})
    else:
        yield Suspect("channel_imbalance", ("weight",), evidence, per_channel)


def _of_tails(scene: Scene, spec: Spec, grids: np.ndarray) -> Iterator[Suspect]:
    """Grids (G, n) of absolute weights with a few values far from the rest; normal ones reach sqrt(2 ln n)."""
    rms = np.sqrt(np.square(grids).mean(1))
    reach = grids.max(1)[rms > 0] / rms[rms > 0]
    expected = float(np.sqrt(2 * np.log(max(grids.shape[1], 3))))
    if not len(reach) or reach.max() < TAIL_RATIO * expected:
        return
    evidence = {
        "peak_over_rms": float(reach.max()),
        "expected": expected,
        "tailed_grids": float((reach >= TAIL_RATIO * expected).sum()),
        "grids": float(len(grids)),
    }
    yield Suspect("weight_outlier", ("weight",), evidence, _without_outliers(scene, spec))


def _without_outliers(scene: Scene, spec: Spec) -> dict[str, Plan]:
    """Outliers clipped, by the weight's own error, which spares a far one, or whatever it costs there; or spared by a
    grid of as many codes that is dense where the others are (PWLQ)."""
    found = {
        "outliers clipped by their error": replace(spec, range_estimator="mse"),
        "outliers clipped at three deviations": replace(spec, range_estimator="sigma:3"),
    }
    if spec.kind == "uniform" and spec.bits >= LEAST_BITS_OF_PIECES:
        options = (("breakpoint", "pws"), ("convention", "pw_stor"))
        found["a grid of as many codes, dense inside"] = replace(spec, kind="piecewise", options=options)
    return {words: scene.changed({"weight": changed}) for words, changed in found.items()}


def _of_activations(scene: Scene) -> Iterator[Suspect]:
    local = scene.local
    edges: list[tuple[Role, Edge]] = [("input", edge) for edge in local.inputs]
    edges += [("output", local.output)] if local.output is not None else []
    roles = tuple(dict.fromkeys(role for role, _ in edges))
    specs = {role: spec for role in roles if (spec := scene.spec(role)) is not None}
    if not specs:
        return
    beyond = max(edge.beyond for _, edge in edges)
    wide = max(_span(edge.grid_low, edge.grid_high) / max(_span(edge.low, edge.high), 1e-30) for _, edge in edges)
    symmetric_waste = any(spec.symmetric for spec in specs.values())
    if beyond > BEYOND_SHARE or (wide > WIDE_RATIO and not symmetric_waste):
        # Of several inputs one range must do; the widest clips none.
        seen = {
            role: fixed(min(e.low for r, e in edges if r == role), max(e.high for r, e in edges if r == role))
            for role in specs
            if any(e.low < e.high for r, e in edges if r == role)
        }
        plan = scene.changed({role: replace(specs[role], range_estimator=text) for role, text in seen.items()})
        excess = max(_excess(edge) for _, edge in edges)
        yield Suspect(
            "calibration_range", roles, {"beyond_share": beyond, "excess": excess, "range_ratio": wide},
            {"ranges of the evaluation images": plan},
        )  # fmt: skip
    sides = {role: _wasted(edge) for role, edge in edges}
    worst = max(sides.values())
    if worst > SIDE_SHARE:
        plan = scene.changed(
            {
                role: replace(specs[role], symmetric=False, signed=None)
                if specs[role].symmetric
                else replace(specs[role], range_estimator=_one_side([e for r, e in edges if r == role]))
                for role, share in sides.items()
                if share > SIDE_SHARE
            }
        )
        yield Suspect("wasted_range", roles, {"wasted_share": worst}, {"the side that holds little cut off": plan})
    reaches = [(max(-edge.grid_low, edge.grid_high), edge) for _, edge in edges]
    tail = max(reach / max(edge.body, 1e-30) for reach, edge in reaches)
    loud = max(reach / edge.typical if edge.typical > 0 else 1.0 for reach, edge in reaches)
    if tail > PEAK_RATIO or loud > LOUD_RATIO:
        changes = {
            "activations clipped": scene.changed({r: replace(s, range_estimator="mse") for r, s in specs.items()}),
            "activation scales per channel": scene.changed(
                {r: replace(s, granularity="per_channel") for r, s in specs.items()}
            ),
        }
        evidence = {"reach_over_body": tail, "reach_over_channels": loud}
        yield Suspect("activation_outlier", roles, evidence, changes)


def _of_rounding(scene: Scene) -> Iterator[Suspect]:
    """Grids that do not fit each other at a layer without weights."""
    local, output = scene.local, scene.spec("output")
    if scene.layer.weight is not None or scene.layer.op not in _WITHOUT_WEIGHTS or output is None or not local.inputs:
        return
    if local.output is None:
        return
    apart = sum(local.by_role.values())
    if apart > 0 and local.noise > DOUBLE_RATIO * apart:
        yield Suspect(
            "double_rounding",
            ("input", "output"),
            {
                "noise_over_roundings_alone": local.noise / apart,
                **{f"step_ratio_{i}": local.output.step / edge.step for i, edge in enumerate(local.inputs)},
            },
            {"inputs left float": scene.changed({"input": None})},
        )
    if len(local.inputs) > 1:
        reaches = [max(-edge.low, edge.high) for edge in local.inputs]
        ratio = max(reaches) / max(min(reaches), 1e-30)
        if ratio > BRANCH_RATIO:
            changes = {
                "16 bits at its output": scene.changed({"output": output.wide}),
                "output scales per channel": scene.changed({"output": replace(output, granularity="per_channel")}),
            }
            yield Suspect("branch_imbalance", ("output",), {"branch_ratio": ratio}, changes)


def _of_shift(scene: Scene) -> Iterator[Suspect]:
    spec, local = scene.spec("weight"), scene.local
    knows = scene.layer.op in WEIGHTED_SUMS
    if spec is None or not knows or local.shift_share < SHIFT_SHARE:
        return
    plan = scene.changed({"weight": replace(spec, correction="bias")})
    yield Suspect(
        "bias_shift", ("weight",), {"shift_share": local.shift_share}, {"mean shift taken out of the bias": plan}
    )


def overflowing(scene: Scene) -> Suspect | None:
    """Biases that do not fit an int32 of scale s_x s_w (Jacob et al. 2017, section 2.4), by arithmetic alone."""
    steps = _weight_steps(scene)
    if (
        scene.bias is None
        or steps is None
        or len(scene.local.inputs) != 1
        or not np.isfinite(scene.local.inputs[0].step)
    ):
        return None
    codes = np.abs(scene.bias.detach().double().numpy()) / (scene.local.inputs[0].step * steps)
    if codes.max() <= INT32:
        return None
    return Suspect(
        "bias_overflow", ("weight",), {"bias_codes": float(codes.max()), "channels": float((codes > INT32).sum())}
    )


def left_by_error(scene: Scene, change: Plan) -> float:
    """Share of the weight's noise that ``change`` should leave, were errors of weights independent; 0 where unknown.

    Independent errors e_ci of the weights of output channel c give its values the noise n_c = sum_i e_ci^2 E[x_i^2].
    Channels count by noise over signal, since their readers make as much of a quiet one as of a loud one: the share
    is sum_c n'_c / v_c over sum_c n_c / v_c, n' with the change and v_c the variance of channel c. A change that
    leaves far less did not only make errors smaller: they had one sign, which no range is the cause of.
    """
    site = Site(scene.layer.name, "weight")
    others = any(change.get(other) != scene.plan[other] for other in scene.plan if other != site)
    if others or change.get(site) in (None, scene.plan.get(site)):
        return 0.0
    variance = scene.local.variance
    live = variance > DEAD_VARIANCE * np.median(variance)
    before, after = (_independent_noise(scene, plan[site]) for plan in (scene.plan, change))
    if before is None or after is None or len(before) != len(variance) or np.array_equal(before, after):
        return 0.0
    total = float((before[live] / variance[live]).sum())
    return float((after[live] / variance[live]).sum()) / total if total > 0.0 else 0.0


def _independent_noise(scene: Scene, spec: Spec) -> np.ndarray | None:
    """Noise (C,) of independent errors of the weight under ``spec``; None where it is no weight (C, I, ...)."""
    weight, heard = scene.weight, scene.local.heard
    if weight is None or scene.layer.weight_axis != 0 or len(heard) != weight.shape[1] * scene.layer.groups:
        return None
    error = (quantized_weight(spec, weight) - weight).detach().double().reshape(*weight.shape[:2], -1)
    rows = heard.reshape(scene.layer.groups, -1).repeat(len(weight) // scene.layer.groups, 0)
    return np.asarray((error.square().sum(2).numpy() * rows).sum(1))


def _weight_steps(scene: Scene) -> np.ndarray | None:
    """Steps (C,) or (1,) of the weight's grid; None where they are not one a channel."""
    spec = scene.spec("weight")
    if spec is None or scene.weight is None:
        return None
    scale = getattr(fit(spec, scene.weight, axis=scene.layer.weight_axis), "scale", None)
    if not isinstance(scale, Tensor) or scale.dim() > 1:
        return None
    return scale.double().reshape(-1).numpy()


def _span(low: float, high: float) -> float:
    return max(high, 0.0) - min(low, 0.0)


def _excess(edge: Edge) -> float:
    """How far values lie beyond the grid, in its width."""
    width = max(_span(edge.grid_low, edge.grid_high), 1e-30)
    return max(edge.grid_low - edge.low, edge.high - edge.grid_high, 0.0) / width


def _wasted(edge: Edge) -> float:
    """Share of a grid on the side of zero where hardly any value lies, or none."""
    width = max(_span(edge.grid_low, edge.grid_high), 1e-30)
    empty = (max(-edge.grid_low, 0.0) - max(-edge.low, 0.0)) / width if edge.low > edge.grid_low else 0.0
    few = max(-edge.grid_low, 0.0) / width if edge.negative < 0.01 else 0.0
    return max(empty, few, 0.0)


def _one_side(edges: Sequence[Edge]) -> str:
    return fixed(0.0, max(max(edge.grid_high for edge in edges), 1e-30))
