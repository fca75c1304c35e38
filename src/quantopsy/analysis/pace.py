"""What a float pass takes at the moment, on a machine that others use too."""

from __future__ import annotations

from statistics import median
from typing import Any

from quantopsy.engine.exact import ExactEngine

WORK_PER_PASS = 33.0
"""Float passes' worth of work before the next pass is timed: 3 % of what is measured."""

FIRST = 3
"""Passes that are timed at first: a process's very first takes several times as long as those that follow."""


class Pace:
    """Seconds an image of a float pass, timed again and again beside the work that is counted in passes.

    Other processes slow both alike, by a factor of two within a minute: what was timed at another moment
    tells nothing of how many passes the work was.
    """

    def __init__(self, engine: ExactEngine) -> None:
        self._engine = engine
        self._pass: float | None = None  # seconds of the last one
        self._pace = float("nan")
        self._worked = 0.0  # seconds since

    def beside(self, inputs: Any, images: int) -> float:
        """Seconds an image now; a pass over ``inputs``, which are ``images`` images, is timed where it is due."""
        if self._pass is None or self._worked >= WORK_PER_PASS * self._pass:
            repeats = FIRST if self._pass is None else 1
            self._pass = median(self._engine.float_pass(inputs)[1] for _ in range(repeats))
            self._pace = self._pass / images
            self._worked = 0.0
        return self._pace

    def worked(self, seconds: float) -> None:
        """Note that so much has been done since."""
        self._worked += seconds
