"""Made-up results with planted facts, so that every figure and sentence has a known answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from quantopsy.analysis.additivity import (
    ADDITIVITY_COLUMNS,
    Additivity,
    Interaction,
    geometric_ratio,
    relation,
    typical_factor,
)
from quantopsy.analysis.results import CELL_COLUMNS, WHOLE_COLUMNS, Check, Distribution, Results
from quantopsy.analysis.significance import Interval

NASTY = "</script><script>alert(1)</script>&\"'`x`"
SIGNAL = 400.0
TOLERANCE = 1.0


def layer_table(count: int) -> pd.DataFrame:
    """``count`` layers: the first a stem, then blocks of expand, depthwise, project, add; a linear last."""
    rows = []
    for index in range(count):
        kind = ("conv", "depthwise", "conv", "add")[(index - 1) % 4]
        op = "linear" if index == count - 1 else "conv" if index == 0 else kind
        block, part = divmod(max(index - 1, 0), 4)
        name = "classifier" if op == "linear" else f"features.{block}.block.{part}.{op}"
        weighted = op != "add"
        channels = 8 * (1 + index // 8)
        rows.append(
            {
                "layer": index,
                "name": "features.stem.conv" if index == 0 else name,
                "op": op,
                "activation": "relu6" if weighted and op != "linear" else None,
                "source": f"models/mobilenet.py:{30 + index}" if index % 7 else None,
                "weight_shape": (channels, channels, 3, 3) if weighted else None,
                "output_shape": (1000,) if op == "linear" else (channels, 28, 28),
                "macs": 1.2e6 * (1 + index % 5) if weighted else 0.0,
                "parameters": 9.0 * channels * channels if weighted else 0.0,
            }
        )
    return pd.DataFrame(rows)


def cell_table(layers: pd.DataFrame, bits: tuple[int, ...], seed: int = 0) -> pd.DataFrame:
    """Noise that quadruples a bit, and degradations inside their intervals down to 6 bits; all run, none screened."""
    random = np.random.default_rng(seed)
    spread = random.lognormal(-4.5, 1.0, len(layers))
    rows = []
    for layer, scale in zip(layers.itertuples(), spread, strict=True):
        for width in bits:
            noise = scale * (4.0 ** (8 - width) if layer.weight_shape is not None else 1.0)
            degradation = 0.002 * noise * 10 + (random.normal(0, 0.05) if width > 5 else 0.4 * noise**0.5)
            half = 0.3 + 0.1 * abs(degradation)
            rows.append(
                (
                    layer.layer, layer.name, layer.op, width, noise, 0.05 * noise,
                    10 * np.log10(SIGNAL / noise), degradation, degradation - half, degradation + half,
                    max(0.0, 1 - abs(degradation) / 100), 512, "exact",
                    "harmless" if degradation + half <= TOLERANCE else "undecided", width, None, np.nan,
                    np.nan, np.nan, 0.8,
                )
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(CELL_COLUMNS))


def set_cell(results: Results, layer: int, bits: int, **values: object) -> Results:
    """``results`` with one cell changed."""
    cells = results.cells.copy()
    row = (cells["layer"] == layer) & (cells["bits"] == bits)
    for name, value in values.items():
        cells.loc[row, name] = value
    return replace(results, cells=cells)


def whole_table(cells: pd.DataFrame, loss: dict[int, float]) -> pd.DataFrame:
    """The whole network: noise 1.1 times the sum, degradation as given, intervals of 4 points each way."""
    rows = []
    for bits, part in cells.groupby("bits"):
        lost = loss[int(bits)]
        half = 0.4 + 0.05 * abs(lost)
        total = float(part["noise"].sum())
        rows.append(
            {
                "bits": bits, "noise": 1.1 * total, "noise_sum": total, "noise_stderr": 0.05 * total,
                "sqnr_db": 10 * np.log10(SIGNAL / total), "value": 97.0 - lost,
                "float_value": 97.0, "degradation": lost,
                "degradation_low": lost - half, "degradation_high": lost + half,
                "degradation_sum": float(part["degradation"].sum()), "degradation_sum_stderr": 2.0,
                "noise_predicted": np.nan,
                "agreement": 0.9, "samples": 512, "seconds": 2.5,
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(WHOLE_COLUMNS))


def distributions(layers: pd.DataFrame, outlier: int | None) -> dict[str, Distribution]:
    """Bell-shaped weights; the ``outlier`` layer has one channel that reaches twenty times as far."""
    random = np.random.default_rng(1)
    made = {}
    for layer in layers.itertuples():
        activations = {"input_ranges": ((0.0, 6.0),) * (2 if layer.op == "add" else 1)}
        output = (0.0, 6.0) if layer.activation == "relu6" else (-8.5, 11.25)
        if layer.weight_shape is None:
            made[layer.name] = Distribution(**activations, output_range=output)
            continue
        weight = random.normal(0, 0.1, (layer.weight_shape[0], 200))
        if layer.layer == outlier:
            weight[3] *= 20
        counts, edges = np.histogram(weight, bins=64)
        made[layer.name] = Distribution(
            edges, counts, weight.min(axis=1), weight.max(axis=1), **activations, output_range=output
        )
    return made


def make_results(count: int = 20, bits: tuple[int, ...] = (3, 4, 5, 6, 7, 8)) -> Results:
    """A network in which layer 5 is guilty at every bit-width and layer 9 improves at 8 bits."""
    layers = layer_table(count)
    results = Results(
        model="zoo:mobilenet_v2_10",
        data="shared/data/crops",
        metric="top-1",
        unit="points",
        float_value=97.0,
        float_low=95.1,
        float_high=98.2,
        samples=512,
        bits=bits,
        layers=layers,
        cells=cell_table(layers, bits),
        whole=pd.DataFrame(columns=list(WHOLE_COLUMNS)),
        unquantized=(
            {"name": "flatten", "operator": "aten.softmax.int", "source": "models/mobilenet.py:88"},
            {"name": "scale", "operator": "aten.pow.Tensor_Scalar", "source": None},
        ),
        coverage={"layers": 20.0, "weighted_layers": 16.0, "macs": 300e6, "macs_share": 0.998},
        distributions=distributions(layers, outlier=5),
        settings={
            "scheme": "per-tensor",
            "mode": "exact",
            "bits": list(bits),
            "activation_bits": 8,
            "changes": {"range": "min_max"},
        },
        provenance={
            "quantopsy": "0.1.0",
            "torch": "2.13.0",
            "model_hash": "9f8a1c" * 8,
            "machine": "2 cores, AVX2",
        },
        warnings=("Ranges were estimated on the evaluation images: --calibration names others.",),
        tolerance=TOLERANCE,
        passes=61.3,
        seconds=247.0,
    )
    for width in bits:
        noise = 30.0 * 4.0 ** (8 - width)
        results = set_cell(
            results, 5, width, noise=noise, noise_stderr=0.04 * noise, sqnr_db=10 * np.log10(SIGNAL / noise),
            degradation=54.1, degradation_low=50.2, degradation_high=58.0, verdict="hurts",
        )  # fmt: skip
    if 8 in bits:
        results = set_cell(results, 9, 8, degradation=-0.9, degradation_low=-1.5, degradation_high=-0.3)
        results = set_cell(results, 9, 8, verdict="harmless")
    return replace(results, whole=whole_table(results.cells, {b: 72.1 if b > 4 else 96.5 for b in bits}))


def quiet_results(count: int = 20) -> Results:
    """Nothing measurable at 8 bits, neither in a layer nor in the whole."""
    layers = layer_table(count)
    cells = cell_table(layers, (8,))
    cells["degradation"], cells["degradation_low"], cells["degradation_high"] = 0.05, -0.3, 0.4
    cells["verdict"] = "harmless"
    loud = make_results(count, (8,))
    whole = whole_table(cells, {8: 0.2})
    return replace(
        loud,
        cells=cells,
        whole=whole.assign(degradation_sum=0.5),
        distributions=distributions(layers, None),
        warnings=(),
    )


def screened_results(count: int = 20) -> Results:
    """Every cell screened, those at 8 bits run besides: three of them on images that were drawn by risk.

    Predicted noise is 0.9 of the measured one. Below 6 bits the screen is beyond its linear regime. Layer 5
    hurts everywhere, below 8 bits by prediction; two predictions have no degradation.
    """
    results = make_results(count)
    cells = results.cells.copy()
    screened = cells["bits"] < 8
    cells["screened_noise"] = cells["noise"].where(screened, 0.9 * cells["noise"])
    cells["screened_degradation"] = cells["degradation"]
    cells["linear"] = cells["bits"] >= 6
    cells.loc[screened, "method"] = "screened"
    cells.loc[screened, "agreement"] = np.nan
    cells.loc[screened & (cells["layer"] != 5), "verdict"] = "undecided"
    cells.loc[~screened & cells["layer"].isin([10, 11, 12]), "samples"] = 60
    cells.loc[screened & cells["layer"].isin([2, 3]), ["degradation", "degradation_low", "degradation_high"]] = np.nan
    return replace(
        results,
        cells=cells,
        whole=results.whole.assign(noise_predicted=1.3 * results.whole["noise_sum"]),
        settings={**results.settings, "mode": "auto"},
        check=Check(
            cells=20,
            random=6,
            noise_ratio=(0.85, 0.98, 1.12),
            noise_rank=0.99,
            degradation_error=0.6,
            random_degradation_error=0.2,
            covered=0.9,
        ),
        open_cells=37,
    )


def additive_results(
    noise_factor: float = 1.05,
    loss_factor: float = 1.0,
    spread: float = 0.3,
    breaks_at: float = np.inf,
    screened: int = 0,
    below_signal: bool = True,
) -> Results:
    """Subsets of 1 to 20 layers: measured noise is ``noise_factor`` times the sum, degradation ``loss_factor`` times.

    Beyond ``breaks_at`` points it is twice that. ``spread``: standard error of degradations, in points.
    """
    random = np.random.default_rng(4)
    count = 12
    sizes = np.linspace(1, 20, count).round().astype(int)
    noise, loss = 2.0 * sizes, 0.8 * sizes
    wobble = np.vstack([np.ones(count), 1 + 0.03 * random.normal(size=(300, count))])
    measured_loss = loss * np.where(loss > breaks_at, 2.0, 1.0) * loss_factor
    losses = np.vstack([measured_loss, measured_loss + spread * random.normal(size=(300, count))])
    expected = (noise * wobble[:, ::-1], np.vstack([loss] * 301))
    measured = (noise_factor * noise * wobble, losses)
    relations = relation(expected[0], measured[0]), relation(expected[1], measured[1], tolerance=TOLERANCE)
    table = pd.DataFrame(
        {
            "layers": [tuple(range(size)) for size in sizes],
            "low_layers": sizes,
            "screened": screened,
            "noise_expected": noise,
            "noise_expected_stderr": 0.03 * noise,
            "noise_measured": measured[0][0],
            "noise_measured_stderr": 0.03 * noise,
            "noise_predicted": 1.02 * measured[0][0],
            "noise_predicted_stderr": 0.1 * noise,
            "degradation_expected": loss,
            "degradation_expected_low": loss - 2,
            "degradation_expected_high": loss + 2,
            "degradation_measured": measured_loss,
            "degradation_measured_low": measured_loss - 2 * spread,
            "degradation_measured_high": measured_loss + 2 * spread,
            "degradation_predicted": measured_loss + 0.4,
            "below_signal": below_signal,
            "noise_holds": relations[0].holds,
            "degradation_holds": relations[1].holds,
        }
    )
    found = Additivity(
        low_bits=4,
        high_bits=8,
        samples=512,
        wanted=512,
        signal=SIGNAL if below_signal else 1.0,
        table=table[list(ADDITIVITY_COLUMNS)],
        noise=relations[0],
        degradation=relations[1],
        noise_ratio=geometric_ratio(measured[0], expected[0]),
        sum_error=typical_factor(measured[0][0], expected[0][0]),
        screen_error=0.02,
        interaction=Interaction(Interval(1.3, 1.2, 1.4), "features.1.block.0.conv", "features.1.block.2.conv", 0.11),
    )
    return replace(make_results(), additivity=found)


def nasty_results() -> Results:
    """Hostile and very long names, in every field that a user's model or command line can fill."""
    results = make_results()
    names = results.layers["name"].tolist()
    long = "backbone." + ".".join(f"stage_{i}.residual_branch" for i in range(8)) + ".conv"
    renamed = {names[5]: NASTY, names[6]: long}
    return replace(
        results,
        model=NASTY,
        data=NASTY,
        metric=NASTY,
        layers=results.layers.assign(
            name=results.layers["name"].replace(renamed),
            source=[NASTY, *results.layers["source"].tolist()[1:]],
        ),
        cells=results.cells.assign(name=results.cells["name"].replace(renamed)),
        distributions={renamed.get(name, name): value for name, value in results.distributions.items()},
        unquantized=({"name": NASTY, "operator": NASTY, "source": NASTY},),
        settings={NASTY: NASTY},
        provenance={NASTY: {NASTY: NASTY}},
        warnings=(NASTY,),
    )
