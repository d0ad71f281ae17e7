"""Outputs of the layers by depth: whether signals fade or grow from the first layer to the last, and what is dead."""

from __future__ import annotations

from collections.abc import Mapping

import numpy

from builder.report.figures import Drawing, Floats, axes, finite, line
from builder.report.history import History, Matrix

_MOST_MARKED = 60


def outputs_by_depth(found: History) -> list[Drawing]:
    """Spread of the outputs at the first and the last logged step, and the shares that are dead or saturated."""
    drawings = []
    if "std" in found.matrices:
        matrix = found.matrices["std"]
        lines = {f"step {matrix.steps[at]:,}": matrix.values[:, at] for at in sorted({0, matrix.steps.size - 1})}
        drawings.append(_by_depth("outputs", "Spread of outputs", lines, found, _spread_words(found, matrix)))
    shares = {name: found.matrices[name] for name in ("dead", "saturated") if name in found.matrices}
    if shares:
        lines = {f"{name} at step {matrix.steps[-1]:,}": matrix.values[:, -1] for name, matrix in shares.items()}
        words = " ".join(_share_words(found, name, matrix) for name, matrix in shares.items())
        drawings.append(_by_depth("dead", "Dead and saturated units", lines, found, words, share=True))
    return drawings


def _by_depth(
    key: str, title: str, lines: Mapping[str, Floats], found: History, words: str, *, share: bool = False
) -> Drawing:
    layout = axes("share of units" if share else "std of the output", log_x=not share)
    if share:
        layout["xaxis"] |= {"range": [-0.02, 1.02], "tickformat": ".0%"}
    else:
        del layout["xaxis"]["dtick"]  # often less than a decade
    depth = numpy.arange(len(found.names))
    style = {"mode": "lines+markers" if depth.size <= _MOST_MARKED else "lines", "connectgaps": True}
    hover = "%{x:.1%}" if share else "%{x:.3g}"
    data = [
        line(finite(values), depth, name, place, hovertemplate=hover, **style)
        for place, (name, values) in enumerate(lines.items())
    ]
    return Drawing(key, title, words, data, layout, found.names)


def _spread_words(found: History, matrix: Matrix) -> str:
    good = numpy.flatnonzero(numpy.isfinite(matrix.values[:, -1]))
    if not good.size:
        return "No finite output at the last logged step."
    (begins, first), (ends, last) = ((matrix.values[at, -1], found.names[at]) for at in (good[0], good[-1]))
    return (
        f"The first layer is at the top. At step {matrix.steps[-1]:,} the std of the output is {begins:.3g} in {first} "
        f"and {ends:.3g} in {last}."
    )


def _share_words(found: History, name: str, matrix: Matrix) -> str:
    last = numpy.where(numpy.isfinite(matrix.values[:, -1]), matrix.values[:, -1], -1)
    most = int(last.argmax())
    if last[most] <= 0:
        return f"No layer has {name} units at step {matrix.steps[-1]:,}."
    return f"Most {name} units at step {matrix.steps[-1]:,}: {last[most]:.0%} in {found.names[most]}."
