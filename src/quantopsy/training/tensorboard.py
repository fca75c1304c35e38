"""Losses and grids while they are learned, in TensorBoard, for whoever has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantopsy.training.history import Epoch
from quantopsy.training.network import TrainableNetwork


class TensorBoard:
    """Writes what a training tells to ``folder``, for ``tensorboard --logdir``."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @classmethod
    def at(cls, folder: Path) -> TensorBoard | None:
        """None where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return cls(SummaryWriter(str(folder), flush_secs=10))

    def step(self, number: int, losses: dict[str, float]) -> None:
        """Losses of a step."""
        for name, value in losses.items():
            self._writer.add_scalar(f"loss/{name}", value, number)

    def epoch(self, network: TrainableNetwork, epoch: Epoch) -> None:
        """The metric, and bits and quantization error of every layer."""
        self._writer.add_scalar("validation", epoch.value, epoch.step)
        for layer, bits in epoch.bits.items():
            self._writer.add_scalar(f"bits/{layer}", bits, epoch.step)
        for layer, error in epoch.errors.items():
            self._writer.add_scalar(f"quantization error/{layer}", error, epoch.step)
        for site, quantizers in network.sites.items():
            if site.role != "weight":
                continue
            low, high = quantizers[0].qparams.ends
            self._writer.add_scalar(f"range/{site.layer}", float((high - low).max()), epoch.step)
        self._writer.flush()
