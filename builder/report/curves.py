"""Curves of what a run logged, one figure for each metric over all parts of the data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import polars

from builder.report.figures import Drawing, Floats, axes, finite, line

MOST_POINTS = 1_000  # of a line
_MOST_FIGURES = 12
_MOST_MARKED = 40
_MOST_IN_WORDS = 4
_MOST_IN_LEGEND = 24
_PARTS = ("train", "val", "test")


def curves(metrics: polars.DataFrame) -> list[Drawing]:
    """A figure for each metric: `train/loss` and `val/loss` are one; loss first, learning rates last."""
    groups: dict[str, list[str]] = {}
    for name in logged(metrics):
        groups.setdefault(_measured(name), []).append(name)
    ranked = sorted(groups, key=lambda group: (group == "learning rate") - (group == "loss"))
    drawings = []
    for group in ranked[:_MOST_FIGURES]:
        lines = {name: (place, *_points(metrics, name)) for place, name in _by_part(groups[group])}
        lines = {name: entry for name, entry in lines.items() if entry[1].size}
        drawings += [_drawing(group, lines)] if lines else []
    return drawings


def compared(metric: str, runs: Mapping[str, polars.DataFrame]) -> Drawing | None:
    """One metric of several runs over one another; None where none has logged it more than once."""
    lines = {name: _points(rows, metric) for name, rows in runs.items() if metric in rows.columns}
    lines = {name: points for name, points in lines.items() if points[0].size}
    if not any(points[0].size > 1 for points in lines.values()):
        return None
    drawing = _drawing(metric, {name: (place, *points) for place, (name, points) in enumerate(lines.items())})
    legend = len(lines) <= _MOST_IN_LEGEND
    layout = {**(drawing.layout or {}), "showlegend": legend, "height": 360 + (10 * len(lines) if legend else 0)}
    return replace(drawing, layout=layout, summary=_ends(lines))


def logged(metrics: polars.DataFrame) -> list[str]:
    """The names of the metrics."""
    return [name for name in metrics.columns if name not in ("step", "epoch")]


def _measured(name: str) -> str:
    """What a metric measures, whichever part of the data it is of.

    >>> _measured("train/loss"), _measured("val/loss_epoch"), _measured("lr-AdamW/no_decay")
    ('loss', 'loss', 'learning rate')
    """
    if re.match(r"lr-|lr$|learning_rate", name):
        return "learning rate"
    return re.sub(r"_(step|epoch)$", "", name.rpartition("/")[2])


def _by_part(names: Sequence[str]) -> list[tuple[int, str]]:
    """Names with their places: a part of the data has the same colour in every figure.

    >>> _by_part(["val/loss", "loss", "train/loss"])
    [(0, 'train/loss'), (1, 'val/loss'), (3, 'loss')]
    """
    known = {part: place for place, part in enumerate(_PARTS)}
    others = [name for name in names if name.partition("/")[0] not in known]
    placed = [(known[part], name) for name in names if (part := name.partition("/")[0]) in known]
    return sorted([*placed, *((len(_PARTS) + place if placed else place, name) for place, name in enumerate(others))])


def _points(metrics: polars.DataFrame, name: str) -> tuple[Floats, Floats]:
    """Steps and values of a metric, where it was logged."""
    step = polars.col("step") if "step" in metrics.columns else polars.int_range(polars.len())
    rows = metrics.select(step=step.cast(polars.Float64), value=polars.col(name)).drop_nulls()
    return rows["step"].to_numpy(), rows["value"].to_numpy()


def _drawing(title: str, lines: Mapping[str, tuple[int, Floats, Floats]]) -> Drawing:
    data = [_trace(name, *_thinned(*points), place) for name, (place, *points) in lines.items()]
    words = "; ".join(_course(name, *points) for name, (_, *points) in list(lines.items())[:_MOST_IN_WORDS])
    more = f"; and {len(lines) - _MOST_IN_WORDS} more" if len(lines) > _MOST_IN_WORDS else ""
    key = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return Drawing(f"curve-{key}", title, f"{words}{more}.", data, axes("step", title))


def _trace(name: str, steps: Floats, values: Floats, place: int) -> dict[str, Any]:
    alone = steps.size == 1
    marker = {"size": 10 if alone else 5, "symbol": "diamond" if alone else "circle"}
    mode = "lines" if steps.size > _MOST_MARKED else "lines+markers"
    return line(steps, values, name, place, mode=mode, marker=marker)


def _thinned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """At most `MOST_POINTS` points, each the mean of some consecutive ones; NaN where one of them is not finite."""
    each = math.ceil(steps.size / MOST_POINTS)
    starts = numpy.arange(0, steps.size, each)
    sizes = numpy.diff(numpy.append(starts, steps.size))
    return steps[starts + sizes - 1], numpy.add.reduceat(finite(values), starts) / sizes


def _ends(lines: Mapping[str, tuple[Floats, Floats]]) -> str:
    """Which line ends lowest and which highest, in words."""
    ends = sorted((float(values[-1]), name) for name, (_, values) in lines.items() if numpy.isfinite(values[-1]))
    if not ends:
        return "No run ends with a finite value."
    (low, lowest), (high, highest) = ends[0], ends[-1]
    if len(lines) == 1:
        return f"{lowest}: {low:.4g} at the end."
    lost = f" {len(lines) - len(ends)} end with a value that is not finite." if len(ends) < len(lines) else ""
    return f"{len(lines)} runs. Lowest at the end: {low:.4g} in {lowest}; highest: {high:.4g} in {highest}.{lost}"


def _course(name: str, steps: Floats, values: Floats) -> str:
    """A line in words.

    >>> _course("loss", numpy.array([1, 2, 3]), numpy.array([3.0, 1.0, 2.0]))
    'loss from 3 to 2, lowest 1 at step 2, highest 3 at step 1'
    """
    good = numpy.isfinite(values)
    if not good.any():
        return f"{name} is not finite"
    bad = ""
    if not good.all():
        bad = f", not finite at {(~good).sum():,} of {good.size:,} points, first at step {steps[good.argmin()]:,.0f}"
    seen, at = values[good], steps[good]
    low, high = seen.argmin(), seen.argmax()
    if seen.size == 1 and name.startswith("test/"):
        return (
            f"{name} {seen[0]:.4g}, of the weights that were tested, which need not be those of step {at[0]:,.0f}{bad}"
        )
    if seen.size == 1:
        return f"{name} {seen[0]:.4g} at step {at[0]:,.0f}{bad}"
    if seen[low] == seen[high]:
        return f"{name} {seen[0]:.4g} throughout{bad}"
    return (
        f"{name} from {seen[0]:.4g} to {seen[-1]:.4g}, lowest {seen[low]:.4g} at step {at[low]:,.0f}, "
        f"highest {seen[high]:.4g} at step {at[high]:,.0f}{bad}"
    )
