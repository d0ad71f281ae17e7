"""Parameters over time: update ratios beside the healthy band, and heat maps in the model's order.

Colours are told apart by the colour-blind: viridis for magnitudes, blue to orange around the healthy band for update
ratios, with a step at the ends of the band. What is not finite is checked black and white, in front of everything: no
scale alternates between the two. Exact zeros, which a logarithm lacks, are counted in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from builder.report.figures import (
    GREY,
    LINES,
    Drawing,
    Floats,
    axes,
    brief,
    decimal,
    finite,
    in_base64,
    line,
    log_range,
    log_ticks,
)
from builder.report.history import Histograms, History, Matrix
from builder.report.worst import HEALTHY

_MAPS = {
    "update_ratio": "update ratio",
    "gradient_rms": "gradient rms",
    "rms": "weight rms",
    "distance": "distance from the initial value",
}
_MOST_OWN_LINES = 8
_BLUE = LINES[0]
_CHECKED = [(0, "#000000"), (1, "#ffffff")]
_RATIO_RANGE = (-6.0, 0.0)  # decimal logarithms; the healthy band is the middle third
_RATIO_COLOURS = (
    (0.0, "#0a2f6b"),
    (1 / 3, "#6ba3d6"),
    (1 / 3, "#cfdfee"),
    (1 / 2, "#f4f1e6"),
    (2 / 3, "#fadfba"),
    (2 / 3, "#f0953f"),
    (1.0, "#7a2403"),
)
_DIGITS = 900  # values of three digits in a decade: 1.00 to 9.99
_LOWEST = -44  # the decade of the first code; the smallest float32 is 1.4e-45, gradients grow up to 1e28
_LAST, _NOTHING, _ZERO, _BAD = 64_799, 65_533, 65_534, 65_535


def ratio_band(found: History) -> Drawing | None:
    """Update ratios of all parameters over time: a line each where they are few, else how they are spread.

    None where there is no line to draw: not measured, or nothing but zeros and what is not finite.
    """
    matrix = found.matrices.get("update_ratio")
    if matrix is None or not (positive := _positive(matrix)).any():
        return None
    values = numpy.where(positive, matrix.values, numpy.nan)
    if len(found.names) <= _MOST_OWN_LINES:
        data = [line(matrix.steps, values[place], name, place) for place, name in enumerate(found.names)]
    else:
        data = _spread(matrix.steps, values)
    layout = axes("step", "update ratio", log_y=True)
    low, high = HEALTHY
    band = {
        "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": low, "y1": high, "layer": "below",
        "line": {"width": 0}, "fillcolor": "rgba(26,156,114,.15)",
    }  # fmt: skip
    words = {
        "text": f"healthy: {brief(low)} to {brief(high)}", "showarrow": False,
        "xref": "paper", "x": 1, "xanchor": "right", "yref": "y", "y": float(numpy.log10(high)), "yanchor": "top",
    }  # fmt: skip
    layout |= {"shapes": [band], "annotations": [words]}
    return Drawing("ratio", "Update ratio of all parameters", _band_words(matrix), data, layout)


def _spread(steps: Floats, values: Floats) -> list[dict[str, Any]]:
    """Lowest, 5 %, median, 95 % and highest over the parameters, with the middle filled."""
    low, few, middle, many, high = _quantiles(values, (0, 0.05, 0.5, 0.95, 1))
    outer, inner = {"color": GREY, "width": 1, "dash": "dot"}, {"color": _BLUE, "width": 1}
    return [
        line(steps, high, "highest", line=outer),
        line(steps, few, "5 %", line=inner, showlegend=False),
        line(steps, many, "5 % to 95 %", line=inner, fill="tonexty", fillcolor="rgba(59,130,196,.25)"),
        line(steps, middle, "median", line={"color": _BLUE, "width": 3}),
        line(steps, low, "lowest", line=outer),
    ]


def _positive(matrix: Matrix) -> Floats:
    return (matrix.values > 0) & numpy.isfinite(matrix.values)


def _rows_with_zeros(matrix: Matrix) -> int:
    return int((matrix.values == 0).any(axis=1).sum())


def _band_words(matrix: Matrix) -> str:
    middle = _quantiles(finite(matrix.values).T, (0.5,))[0]
    known = middle[numpy.isfinite(middle)]
    inside = ((known >= HEALTHY[0]) & (known <= HEALTHY[1])).sum()
    zeros = _rows_with_zeros(matrix)
    still = int((known == 0).sum())
    left_out = f" Zeros have no place on a log axis: {zeros:,} have some, {still:,} a median of 0." if zeros else ""
    return (
        "How far an update moves a weight, in proportion to the weight's own rms. "
        f"Over time, the median of {inside:,} of {known.size:,} parameters lies in the band around 1e-3.{left_out}"
    )


def _quantiles(values: Floats, at: Sequence[float]) -> Floats:
    """Quantiles down the columns, NaN left out; NaN where a column has nothing else."""
    found = numpy.full((len(at), values.shape[1]), numpy.nan)
    some = ~numpy.isnan(values).all(axis=0)
    if some.any():
        found[:, some] = numpy.nanquantile(values[:, some], at, axis=0)
    return found


def heat_maps(found: History) -> list[Drawing]:
    """A heat map for each measure, parameters down in the model's order and time across."""
    return [_heat_map(found, measure) for measure in _MAPS if measure in found.matrices]


def _heat_map(found: History, measure: str) -> Drawing:
    matrix, words = found.matrices[measure], _MAPS[measure]
    ratio = measure == "update_ratio"
    positive = matrix.values[_positive(matrix)]  # without any, a scale would be invented
    low, high = _RATIO_RANGE if ratio else log_range(positive)
    ticks = log_ticks(low, high)
    texts = ["1e-3 healthy" if ratio and tick == -3 else decimal(tick) for tick in ticks]
    if len(ticks) < 2:
        ticks = [low, high]
        texts = [brief(10.0**tick, digits=3) for tick in ticks]
    bar = {
        "orientation": "h", "thickness": 12, "len": 1, "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
        "xpad": 0, "ypad": 4, "outlinewidth": 0, "ticks": "outside", "tickangle": 0, "tickvals": ticks,
        "ticktext": texts,
    }  # fmt: skip
    shared = {"type": "heatmap", "hoverongaps": False, "hoverinfo": "none"}
    colours = _RATIO_COLOURS if ratio else "Viridis"
    scale = {"colorbar": bar} if positive.size or ratio else {"showscale": False}
    data: list[dict[str, Any]] = [{**shared, "zmin": low, "zmax": high, "colorscale": colours, **scale}]
    if numpy.isinf(matrix.values).any():
        data.append({**shared, "zmin": 0, "zmax": 1, "colorscale": _CHECKED, "showscale": False})
    title = words[0].upper() + words[1:]
    return Drawing(f"map-{measure}", title, _map_words(found, measure), data, axes("step"), found.names, measure)


def _map_words(found: History, measure: str) -> str:
    matrix, parts = found.matrices[measure], []
    known = finite(matrix.values[:, -1])
    if not numpy.isnan(known).all():
        low, high = int(numpy.nanargmin(known)), int(numpy.nanargmax(known))
        rows = int((~numpy.isnan(known)).sum())
        here = f"At step {matrix.steps[-1]:,} the {_MAPS[measure]} is"
        lowest, highest = (f"{found.names[row]} ({brief(known[row])})" for row in (low, high))
        alike = known[low] == known[high]
        words = (
            f"{brief(known[low])} in all of {rows:,} parameters"
            if alike
            else f"lowest in {lowest} and highest in {highest}"
        )
        parts.append(f"{here} {words}.")
    if measure == "update_ratio":
        parts.append(f"Pale: the healthy band from {brief(HEALTHY[0])} to {brief(HEALTHY[1])}.")
    zeros = _rows_with_zeros(matrix)
    if zeros:
        parts.append(f"Exact zeros, in {zeros:,} of {len(found.names):,} parameters, have the lowest colour.")
    bad = int(numpy.isinf(matrix.values).any(axis=1).sum())
    if bad:
        parts.append(f"Checked black and white: NaN or inf, in {bad:,} of {len(found.names):,} parameters.")
    if numpy.isnan(matrix.values).any():
        parts.append("Blank: nothing was measured.")
    if matrix.per_column > 1:
        parts.append(f"Each column holds the highest of {matrix.per_column} logged steps.")
    return " ".join(parts)


def sent(matrix: Matrix) -> dict[str, Any]:
    """A matrix as the browser gets it: 16 bits a value, base64, row after row.

    A code counts the numbers of three digits from 1.00e-44 on, so that the digits shown are those of the value. What is
    outside of 1e-44 to 9.99e27 has the code of that end.
    """
    values = matrix.values
    with numpy.errstate(divide="ignore", invalid="ignore", over="ignore"):
        power = numpy.floor(numpy.log10(values))
        digits = numpy.round(values / 10.0**power * 100)  # 100 to 1000, the last of which is the next decade's first
        codes = numpy.clip((power - _LOWEST) * _DIGITS + digits - 100, 0, _LAST)
    for value, code in ((values == 0, _ZERO), (numpy.isinf(values), _BAD), (numpy.isnan(values), _NOTHING)):
        codes = numpy.where(value, code, codes)
    return {"steps": matrix.steps.tolist(), "codes": in_base64(codes.astype("<u2"))}


def sent_histograms(found: Histograms) -> dict[str, Any]:
    """Histograms as the browser gets them: a byte a bin, and the share of each tensor that was looked at."""
    return {
        "steps": found.steps.tolist(),
        "bins": found.roots.shape[2],
        "roots": in_base64(found.roots),
        "looked_at": found.looked_at.tolist(),
    }
