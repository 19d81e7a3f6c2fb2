"""Colours of ratios and of lines, the same in pictures and pages."""

from __future__ import annotations

import math
from collections.abc import Iterable

Colour = tuple[float, float, float]

#: Ratio at which the scale ends, unless a table's own values go further.
SCALE_TOP = 3.0

# From the speed of a copy to far from it. Lightness changes along with hue, for those who do not tell the hues apart.
_STOPS: tuple[Colour, ...] = (
    (0.16, 0.60, 0.46),
    (0.72, 0.85, 0.62),
    (0.98, 0.92, 0.66),
    (0.93, 0.62, 0.36),
    (0.72, 0.25, 0.20),
)
_DARK, _LIGHT = "#16211d", "#ffffff"

#: Lines by implementation; others take the remaining colours in turn.
LINES = {"copy": "#8a8f98", "hadacore": "#12805c", "hadacore_inplace": "#7cc4a4"}
OTHER_LINES = ("#d1603d", "#4464ad", "#9b5094", "#b08900")


def scale_top(ratios: Iterable[float]) -> float:
    """Where a scale for these ratios ends."""
    return max(SCALE_TOP, max(ratios, default=SCALE_TOP))


def ratio_colour(ratio: float, top: float = SCALE_TOP) -> Colour:
    """The colour of a time over that of a copy: logarithmic from 1 to ``top``, clipped."""
    place = min(1.0, max(0.0, math.log(max(ratio, 1e-9)) / math.log(top))) * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    part = place - index
    r, g, b = (a + (b - a) * part for a, b in zip(_STOPS[index], _STOPS[index + 1], strict=True))
    return r, g, b


def text_colour(background: Colour) -> str:
    """Dark or light, whichever is easier to read on ``background``."""
    r, g, b = background
    return _DARK if 0.299 * r + 0.587 * g + 0.114 * b > 0.5 else _LIGHT


def hexadecimal(colour: Colour) -> str:
    """As ``#rrggbb``."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def line_colour(name: str, names: Iterable[str]) -> str:
    """The colour of an implementation's line among ``names``."""
    if name in LINES:
        return LINES[name]
    others = [other for other in names if other not in LINES]
    return OTHER_LINES[others.index(name) % len(OTHER_LINES)]
