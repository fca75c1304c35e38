"""Colours, once for figures, page and terminal, and mixing them so that equal steps look equal.

Mixtures are straight lines in OKLab (B. Ottosson, 2020), where distance is close to perceived difference;
the page mixes in the same space by CSS ``color-mix(in oklab, ...)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Palette:
    """One colour scheme.

    ``zero`` is a cell that costs nothing. Numbers in cells are ``faint`` on pale colour and ``strong`` on
    full colour: black and white, because only they reach a contrast of 4.5 on every mixture between.
    """

    page: str
    surface: str
    ink: str
    muted: str
    line: str
    accent: str
    zero: str
    worse: str
    better: str
    noise: str
    faint: str
    strong: str


LIGHT = Palette(
    page="#fbfbfa",
    surface="#ffffff",
    ink="#1b1d21",
    muted="#5b626c",
    line="#e3e4e6",
    accent="#2a56b0",
    zero="#f3f3f1",
    worse="#b3001b",
    better="#2158c9",
    noise="#4b2a7b",
    faint="#000000",
    strong="#ffffff",
)
DARK = Palette(
    page="#121316",
    surface="#191b1f",
    ink="#e9eaec",
    muted="#a0a7b1",
    line="#2e3137",
    accent="#8fb2ff",
    zero="#25282d",
    worse="#ff6a5c",
    better="#6aa5ff",
    noise="#bd9bfa",
    faint="#ffffff",
    strong="#000000",
)

# Linear sRGB -> cone responses -> OKLab.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear_rgb(colour: str) -> np.ndarray:
    """``#rrggbb`` as linear sRGB, shape (3,), 0 to 1."""
    encoded = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _hexadecimal(linear: np.ndarray) -> str:
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * value):02x}" for value in encoded.tolist())


def mix(start: str, end: str, share: float) -> str:
    """The colour ``share`` of the way from ``start`` to ``end`` in OKLab."""
    lab = [_TO_LAB @ np.cbrt(_TO_CONES @ linear_rgb(colour)) for colour in (start, end)]
    between = (1 - share) * lab[0] + share * lab[1]
    return _hexadecimal(np.linalg.solve(_TO_CONES, np.linalg.solve(_TO_LAB, between) ** 3))


def ramp(*stops: str, steps: int = 8) -> list[tuple[float, str]]:
    """A plotly colour scale through ``stops``, evenly spaced, ``steps`` mixtures between any two."""
    segments = len(stops) - 1
    return [
        (
            index / (segments * steps),
            mix(
                stops[min(index // steps, segments - 1)],
                stops[min(index // steps, segments - 1) + 1],
                index / steps - min(index // steps, segments - 1),
            ),
        )
        for index in range(segments * steps + 1)
    ]


@dataclass(frozen=True)
class Tone:
    """A colour by its part in the palette, right in either scheme; or ``share`` of the way ``towards`` another.

    >>> Tone("accent").css, Tone("accent", "worse", 0.4).css
    ('var(--accent)', 'color-mix(in oklab,var(--worse) 40%,var(--accent))')
    """

    role: str
    towards: str = ""
    share: float = 0.0

    def __post_init__(self) -> None:
        known = {field.name for field in fields(Palette)}
        if not {self.role, self.towards or self.role} <= known:
            raise ValueError(f"{self} is not of the palette: {', '.join(sorted(known))}")

    @property
    def css(self) -> str:
        """As a style sheet writes it, over the variables of the page."""
        if not self.towards:
            return f"var(--{self.role})"
        return f"color-mix(in oklab,var(--{self.towards}) {100 * self.share:.3g}%,var(--{self.role}))"

    def of(self, palette: Palette) -> str:
        """``#rrggbb`` in ``palette``."""
        start: str = getattr(palette, self.role)
        return mix(start, getattr(palette, self.towards), self.share) if self.towards else start


def bit_tones(bits: Iterable[int]) -> dict[int, Tone]:
    """A colour for each bit-width, finest first: from ``accent`` to ``worse``, the coarsest."""
    order = sorted(bits, reverse=True)
    return {width: Tone("accent", "worse", index / max(1, len(order) - 1)) for index, width in enumerate(order)}


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two colours, 1 to 21."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    dark, light = sorted(float(weights @ linear_rgb(colour)) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


def strong_from(palette: Palette, full: str) -> float:
    """Share of the ``full`` colour from which ``strong`` text reads better than ``faint`` text."""
    shares = (step / 100 for step in range(101))
    return next(share for share in shares if _strong_wins(palette, mix(palette.zero, full, share)))


def _strong_wins(palette: Palette, colour: str) -> bool:
    return contrast(palette.strong, colour) >= contrast(palette.faint, colour)
