"""What the figures of a report share: axes, lines, ticks, and how numbers travel to the browser.

A figure is the plain data that plotly.js reads. Sizes, labels of rows and the colours of a light or a dark page are
the browser's business (assets/report.js); here are data, axes and words. Lines differ in colour and in dashes. Text
from files is escaped, for plotly reads a small part of HTML in labels.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy
from numpy.typing import NDArray

LINES = ("#3b82c4", "#d9660b", "#1a9c72", "#b0589f", "#8a8f98", "#a9861b")  # at least 3 : 1 on white and on black
DASHES = ("solid", "dash", "dot", "dashdot", "12px,3px", "longdashdot")
GREY = LINES[4]
_AXIS = {"zeroline": False, "exponentformat": "e"}  # plotly's own are SI prefixes: 100μ, 1.2B
_LOG = {"type": "log", "nticks": 3, "tickformat": ".3~g"}  # each tick in full, and not 2, 5 between decades
_WHOLE = {"tickformat": ",.12~g"}

Floats = NDArray[Any]


@dataclass(frozen=True)
class Drawing:
    """A figure with its words.

    Attributes:
        key: Names it in the page.
        title: Its heading.
        summary: What it shows in a sentence or two with numbers: its caption, and what a screen reader gets of it.
        data: Plotly's traces.
        layout: Plotly's layout.
        rows: Labels of the rows of its y axis, where it has rows.
        matrix: The measure that it shows, where it is a heat map over parameters.
    """

    key: str
    title: str
    summary: str
    data: Sequence[Mapping[str, Any]] = ()
    layout: Mapping[str, Any] | None = None
    rows: Sequence[str] = ()
    matrix: str = ""


def axes(x: str, y: str = "", *, log_x: bool = False, log_y: bool = False) -> dict[str, Any]:
    """A layout with two titled axes and the legend above the plot."""
    return {
        "xaxis": {"title": {"text": escape(x)}, **_AXIS, **(_LOG if log_x else _WHOLE)},
        "yaxis": {"title": {"text": escape(y)}, **_AXIS, "automargin": True, **(_LOG if log_y else {})},
        "margin": {"l": 56, "r": 28, "t": 36, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "showlegend": True,
    }


def line(x: Floats, y: Floats, name: str, place: int = 0, **more: Any) -> dict[str, Any]:
    """A line; its place among others gives its colour and dashes."""
    turn = place // len(LINES) + place
    style = {"color": LINES[place % len(LINES)], "dash": DASHES[turn % len(DASHES)], "width": 2}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": packed(x),
        "y": packed(y),
        "name": escape(name),
        "line": style,
        **more,
    }


def packed(values: Floats) -> dict[str, str]:
    """Numbers as plotly reads them: float32 in base64. Whole numbers are exact up to 16 million."""
    return {"dtype": "f4", "bdata": in_base64(values.astype("<f4"))}


def in_base64(values: Floats) -> str:
    """The bytes of an array, row after row."""
    return base64.b64encode(numpy.ascontiguousarray(values).tobytes()).decode()


def finite(values: Floats) -> Floats:
    """NaN in place of what is not finite, which plotly leaves out."""
    return numpy.where(numpy.isfinite(values), values, numpy.nan)


def log_range(values: Floats) -> tuple[float, float]:
    """Decimal logarithms that hold all but the outermost of positive values, at least a tenth of a decade apart."""
    if not values.size:
        return -3.0, 0.0
    low, high = (float(value) for value in numpy.quantile(numpy.log10(values), (0.002, 0.998)))
    return (low, high) if high - low >= 0.1 else (low - 0.05, high + 0.05)


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Logarithms of round numbers within a range.

    >>> log_ticks(-3.2, -0.9)
    [-3.0, -2.0, -1.0]
    """
    ticks = [float(power) for power in range(math.ceil(low), math.floor(high) + 1)]
    for digits in ((1, 3), (1, 2, 5), range(1, 10)):
        if len(ticks) >= 2:
            break
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [tick for power in powers for digit in digits if low <= (tick := power + math.log10(digit)) <= high]
    return ticks[:: math.ceil(len(ticks) / most) or 1]


def decimal(log: float) -> str:
    """The text of a tick at a decimal logarithm.

    >>> decimal(-5), decimal(math.log10(0.02)), decimal(math.log10(3))
    ('1e-5', '0.02', '3')
    """
    return brief(10.0**log, digits=1)


def brief(value: float, digits: int = 2) -> str:
    """A number in few characters.

    >>> brief(0.97222), brief(0.0001234), brief(123456.0), brief(3.0), brief(float("nan"))
    ('0.97', '1.2e-4', '1.2e5', '3', 'nan')
    """
    if not math.isfinite(value) or value == 0 or 2e-3 <= abs(value) < 1e4:
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"
