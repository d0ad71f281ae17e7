"""Outputs of the layers by depth: whether signals fade or grow from the first layer to the last, and what is dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
        words = _spread_words(found, matrix)
        drawings.append(by_depth("outputs", "Spread of outputs", lines, found.names, words, "std of the output"))
    shares = {name: found.matrices[name] for name in ("dead", "saturated") if name in found.matrices}
    if shares:
        lines = {f"{name} at step {matrix.steps[-1]:,}": matrix.values[:, -1] for name, matrix in shares.items()}
        words = " ".join(
            share_words(name, matrix.values[:, -1], found.names, f" at step {matrix.steps[-1]:,}")
            for name, matrix in shares.items()
        )
        drawings.append(shares_by_depth("dead", "Dead and saturated units", lines, found.names, words))
    return drawings


def by_depth(
    key: str, title: str, lines: Mapping[str, Floats], names: Sequence[str], words: str, measure: str
) -> Drawing:
    """Lines over the layers, the first of which is at the top, on a log scale.

    Args:
        key: Names the figure in the page.
        title: Its heading.
        lines: By name, a value for each layer; NaN where there is none.
        names: Of the layers.
        words: What it shows, in words.
        measure: Of the values.
    """
    return Drawing(key, title, words, _lines(lines, names, "%{x:.3g}"), axes(measure, log_x=True), tuple(names))


def shares_by_depth(key: str, title: str, lines: Mapping[str, Floats], names: Sequence[str], words: str) -> Drawing:
    """`by_depth` for shares of units, from none to all."""
    layout = axes("share of units")
    layout["xaxis"] |= {"range": [-0.02, 1.02], "tickformat": ".0%"}
    return Drawing(key, title, words, _lines(lines, names, "%{x:.1%}"), layout, tuple(names))


def share_words(what: str, shares: Floats, names: Sequence[str], when: str = "") -> str:
    """The layer with the greatest share of such units.

    >>> share_words("dead", numpy.array([numpy.nan, 0.5, 0.25]), ["a", "b", "c"], " at step 7")
    'Most dead units at step 7: 50% in b.'
    """
    known = numpy.where(numpy.isfinite(shares), shares, 0)
    most = int(known.argmax())
    if known[most] == 0:
        return f"No layer has {what} units{when}."
    return f"Most {what} units{when}: {known[most]:.0%} in {names[most]}."


def _lines(lines: Mapping[str, Floats], names: Sequence[str], hover: str) -> list[dict[str, Any]]:
    depth = numpy.arange(len(names))
    style = {"mode": "lines+markers" if depth.size <= _MOST_MARKED else "lines", "connectgaps": True}
    return [
        line(finite(values), depth, name, place, hovertemplate=hover, **style)
        for place, (name, values) in enumerate(lines.items())
    ]


def _spread_words(found: History, matrix: Matrix) -> str:
    good = numpy.flatnonzero(numpy.isfinite(matrix.values[:, -1]))
    if not good.size:
        return "No finite output at the last logged step."
    (begins, first), (ends, last) = ((matrix.values[at, -1], found.names[at]) for at in (good[0], good[-1]))
    return (
        f"The first layer is at the top. At step {matrix.steps[-1]:,} the std of the output is {begins:.3g} in {first} "
        f"and {ends:.3g} in {last}."
    )
