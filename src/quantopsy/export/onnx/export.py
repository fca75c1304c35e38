"""From a plan to a verified file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from quantopsy.core import Plan, QuantopsyError
from quantopsy.core.files import write_file
from quantopsy.data import Batch
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.aten import clip_bounds
from quantopsy.export.onnx.check import Verified, verify
from quantopsy.export.onnx.graph import FLOAT_WEIGHTS, OPSET, WEIGHT_CODES_NAME, to_onnx
from quantopsy.export.onnx.runtime import SAFE_WEIGHT, Kernels, kernels, layer_of, saturates
from quantopsy.export.onnx.runtimes import Runtime
from quantopsy.graph.network import Network
from quantopsy.metrics import Metric


@dataclass(frozen=True)
class Exported:
    """A file on disk, and what running it showed.

    ``bytes_float`` is the size of the same network in ONNX without a plan. ``float_weights`` are layers whose weight
    is quantized but not stored as integers, with the reason. ``kernels`` are ONNX Runtime's, ``also`` those of further
    runtimes by name. ``saturating``: layers whose sums may saturate in ONNX Runtime on this processor
    (:func:`quantopsy.export.onnx.runtime.saturates`): those with signed weights beyond 7 bits. ``between``: activation
    functions by which layers are in reals in ONNX Runtime, having no place between product and function to round.
    """

    path: Path
    bytes: int
    bytes_float: int
    verified: Verified
    kernels: Kernels
    also: Mapping[str, Kernels]
    float_weights: dict[str, str]
    saturating: tuple[str, ...]
    between: tuple[str, ...]

    @property
    def size_ratio(self) -> float:
        """Size beside the float file's."""
        return self.bytes / self.bytes_float


def export_onnx(
    network: Network,
    plan: Plan,
    calibration: Calibration,
    path: str | Path,
    batches: Iterable[Batch],
    metric: Metric,
    *,
    opset: int = OPSET,
    integer_convolutions: bool = False,
    threads: int = 1,
    also: Sequence[Runtime] = (),
) -> Exported:
    """Write ``network`` under ``plan`` to ``path`` as ONNX QDQ, check it, and compare it on ``batches``.

    The file is written once the checker and the runtime have taken it. ``opset`` and ``integer_convolutions`` as of
    :func:`to_onnx`; ``also``: runtimes to run it in besides ONNX Runtime. Raises :class:`QuantopsyError` as
    :func:`to_onnx` and :func:`verify` do, and where the file cannot be written.
    """
    if not plan.sites:
        raise QuantopsyError("plan", "it quantizes nothing", "give it sites, or export the float network from PyTorch")
    model = to_onnx(network, plan, calibration, opset=opset, integer_convolutions=integer_convolutions)
    openers = {runtime.name: runtime.opener(threads=threads) for runtime in also}
    exact = to_onnx(network, Plan(), calibration, opset=opset)
    verified = verify(model, exact, network, plan, calibration, batches, metric, threads=threads, also=openers)
    running, elsewhere = kernels(model, network), {runtime.name: runtime.kernels(model, network) for runtime in also}
    content = model.SerializeToString()
    return Exported(
        path=write_file(path, content),
        bytes=len(content),
        bytes_float=exact.ByteSize(),
        verified=verified,
        kernels=running,
        also=elsewhere,
        float_weights=json.loads(_metadata(model)[FLOAT_WEIGHTS]),
        saturating=_wide_signed_weights(model, network) if saturates() else (),
        between=_between(network, plan, running),
    )


def _between(network: Network, plan: Plan, kernels: Kernels) -> tuple[str, ...]:
    """Activation functions, other than clips, of layers that are on grids and in reals all the same."""
    quantized = {site.layer for site, _ in plan.sites if site.role == "weight"}
    behind = (network.layer(name).activation for name in kernels.real if name in quantized)
    return tuple(sorted({name for name in behind if name is not None and clip_bounds(name, ()) is None}))


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _wide_signed_weights(model: onnx.ModelProto, network: Network) -> tuple[str, ...]:
    """Layers with signed 8-bit weights of which two, times 255 each, may leave 16 bits."""
    codes = {WEIGHT_CODES_NAME.format(layer.name) for layer in network.layers}
    wide = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.name in codes
        and tensor.data_type == onnx.TensorProto.INT8
        and np.abs(onnx.numpy_helper.to_array(tensor).astype(np.int16)).max() > SAFE_WEIGHT
    }
    # By who reads them: layers that share a weight share its codes.
    found = {layer_of(node.name) for node in model.graph.node if wide & set(node.input)}
    return tuple(name for name in network.names if name in found)
