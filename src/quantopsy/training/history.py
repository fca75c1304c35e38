"""What happened in a training, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """The network behind an epoch; number 0 is the one that training starts from.

    ``loss``: mean of the epoch's steps. ``value``: the metric on the validation images. ``within`` the target.
    ``bits`` and ``errors`` (||W_q - W||^2 / ||W||^2) of every layer's weight; ``input_bits`` of what it reads.
    ``scales_kept``: step sizes that were put back so far; ``frozen``: weights that were frozen so far.
    """

    number: int
    step: int
    loss: float
    value: float
    within: bool
    bits: Mapping[str, int]
    input_bits: Mapping[str, int]
    errors: Mapping[str, float]
    scales_kept: int
    frozen: int
    seconds: float


@dataclass
class History:
    """All epochs, ``best`` the position of the one that was kept, ``stopped`` why it ended before its time.

    ``losses``: (step, loss) now and then.
    """

    epochs: list[Epoch] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    stopped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> History:
        """The inverse of :meth:`to_json`."""
        return cls(
            [Epoch(**epoch) for epoch in data["epochs"]],
            [(int(step), float(loss)) for step, loss in data["losses"]],
            data["best"],
            data["stopped"],
        )
