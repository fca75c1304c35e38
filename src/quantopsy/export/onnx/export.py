"""From a plan to a verified file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from quantopsy.core import Plan, QuantopsyError
from quantopsy.data import Batch
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.check import Verified, verify
from quantopsy.export.onnx.graph import FLOAT_WEIGHTS, OPSET, to_onnx
from quantopsy.export.onnx.runtime import Kernels, kernels
from quantopsy.graph.network import Network
from quantopsy.metrics import Metric


@dataclass(frozen=True)
class Exported:
    """A file on disk, and what running it showed.

    ``bytes_float`` is the size of the same network in ONNX without a plan. ``float_weights`` are layers whose weight
    is quantized but not stored as integers, with the reason.
    """

    path: Path
    bytes: int
    bytes_float: int
    verified: Verified
    kernels: Kernels
    float_weights: dict[str, str]

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
) -> Exported:
    """Write ``network`` under ``plan`` to ``path`` as ONNX QDQ, check it, and compare it on ``batches``.

    The file is written once the checker and the runtime have taken it. ``opset`` and ``integer_convolutions`` as of
    :func:`to_onnx`. Raises :class:`QuantopsyError` as
    :func:`to_onnx` and :func:`verify` do, and where the file cannot be written.
    """
    if not plan.sites:
        raise QuantopsyError("plan", "it quantizes nothing", "give it sites, or export the float network from PyTorch")
    model = to_onnx(network, plan, calibration, opset=opset, integer_convolutions=integer_convolutions)
    verified = verify(model, network, plan, calibration, batches, metric, threads=threads)
    running = kernels(model, network)
    target, content = Path(path), model.SerializeToString()
    try:
        target.write_bytes(content)
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise QuantopsyError(f"file {str(target)!r}", reason, "give another") from error
    return Exported(
        path=target,
        bytes=len(content),
        bytes_float=to_onnx(network, Plan(), calibration, opset=opset).ByteSize(),
        verified=verified,
        kernels=running,
        float_weights=json.loads(_metadata(model)[FLOAT_WEIGHTS]),
    )


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
