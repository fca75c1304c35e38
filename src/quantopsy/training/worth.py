"""What open gates are worth: the noise that closing them adds, screened before the first step.

What the loss says of a gate in one step is mostly noise, and by far most of it of the levels as they are: that merging
them in pairs costs something is an effect of second order, which the gradient behind a straight-through estimate shows
only on the average of very many steps. The screen gives it beforehand, for every layer and bit-width, at the price of
a few passes. Gates begin at what they are worth, so that a price on memory alone closes those first that cost least
for each bit they free, as a greedy allocation would; the loss then has a say as in DDQ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch

from quantopsy.analysis.screening import Scores
from quantopsy.core import Plan, Site, Spec
from quantopsy.data import Batch
from quantopsy.engine.calibration import Calibration
from quantopsy.training.footprint import Limit
from quantopsy.training.network import TrainableNetwork
from quantopsy.training.quantizers.gates import START, Gates


def noises(
    network: TrainableNetwork, calibration: Calibration, batches: Iterable[Batch]
) -> dict[Gates, dict[int, float]]:
    """The screened noise of the outputs with what is behind each of the ``network``'s gates at s bits, by s.

    s goes from the fewest bits of the gates to the most; grids are uniform, of the range that ``calibration`` finds.
    Of layers that no gradient reaches it is NaN.
    """
    behind = _behind(network)
    candidates: dict[Site, list[Spec]] = {}
    for gates, sites in behind.items():
        for site in sites:
            uniform = replace(network.plan[site], kind="uniform", options=())
            candidates[site] = [uniform.with_bits(bits) for bits in range(gates.minimum, len(gates.logits) + 1)]
    scores = Scores.of_batches(network.program, calibration, batches, candidates, decision=False)
    found: dict[Gates, dict[int, float]] = {}
    for gates, sites in behind.items():
        for spec in zip(*(candidates[site] for site in sites), strict=True):
            plan = Plan.of(dict(zip(sites, spec, strict=True)))
            found.setdefault(gates, {})[spec[0].bits] = scores.predicted(plan)[0]
    return found


def _behind(network: TrainableNetwork) -> dict[Gates, list[Site]]:
    """The sites whose bits each of the gates sets; of an activation where it leaves, if that is on the grid already."""
    found: dict[Gates, list[Site]] = {}
    for site, quantizers in network.sites.items():
        for gates in (quantizer.gates for quantizer in quantizers):
            if gates is not None:
                found.setdefault(gates, []).append(site)
    for gates, sites in found.items():
        found[gates] = [site for site in sites if site.role == "output"] or sites
    return found


@torch.no_grad()
def start_gates(limit: Limit, noise: Mapping[Gates, Mapping[int, float]]) -> None:
    """Start the gates of ``limit``'s footprint so that its price alone closes them in the order of noise per bit.

    Let d_s be what closing gate s adds to the noise and f_s what it takes off the footprint. The price pulls at a gate
    as strongly as f_s, and at one gate of a layer at a time; gate s closes when the pull has amounted to d_s / f_s
    (made non-decreasing from the last gate to the first) where it starts at f_s times the difference between its own
    d_s / f_s and that of the gate before it. Only proportions matter: the mean start is :data:`START`.
    """
    freed = {gates: limit.footprint.freed(gates) for gates in noise}
    worth = {}
    for gates, at in noise.items():
        of_a_bit = np.array([max(at[bits - 1] - at[bits], 0.0) / freed[gates][bits] for bits in gates.closable])
        worth[gates] = np.diff(np.maximum.accumulate(of_a_bit), prepend=0.0)
    known = [value for values in worth.values() for value in values if np.isfinite(value)]
    usual = float(np.mean(known)) if known else 1.0
    starts = {
        gates: np.where(np.isfinite(values), values, usual) * [freed[gates][bits] for bits in gates.closable]
        for gates, values in worth.items()
    }
    mean = float(np.mean(np.concatenate(list(starts.values())))) or 1.0
    for gates, values in starts.items():
        for bits, value in zip(gates.closable, values, strict=True):
            gates.logits[bits - 1] = START * value / mean
