"""What a long computation tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Phases, each with a total amount of work that is advanced to its end."""

    def start(self, phase: str, total: float) -> None:
        """A phase begins."""

    def advance(self, amount: float) -> None:
        """Some of the phase's work is done."""

    def say(self, line: str) -> None:
        """A line worth keeping on the screen."""


class Silent:
    """Nobody watches."""

    def start(self, phase: str, total: float) -> None: ...

    def advance(self, amount: float) -> None: ...

    def say(self, line: str) -> None: ...
