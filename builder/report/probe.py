"""The page of a probe: what it says of the model, outputs and gradients by depth, the weights beside their theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from builder.report.depth import by_depth, share_words, shares_by_depth
from builder.report.figures import Drawing, Floats
from builder.report.markup import Html, join, tag
from builder.report.page import Section, figure, page, quiet, verdict_list
from builder.report.tables import Column, sortable

if TYPE_CHECKING:
    from builder.probe import LayerScale, Probe


def probe_page(found: Probe, name: str) -> str:
    """A probe as HTML.

    Args:
        found: The probe.
        name: What was probed, for the heading.
    """
    drawings = _drawings(found.layers)
    grid = tag("div", *map(figure, drawings), class_="grid") if drawings else quiet("No layer gave out numbers.")
    sections = [
        Section("overview", "What matters", _verdicts(found)),
        Section("depth", "Outputs and gradients by depth", grid, drawings=drawings),
        Section("layers", "Layers", _layers(found)),
        Section("parameters", "Parameters", _weights(found)),
    ]
    header = tag("p", tag("span", found.batch), tag("span", f"loss {found.loss:.4g}"), class_="facts")
    return page(f"Probe of {name}", header, sections)


def _verdicts(found: Probe) -> Html:
    """What the numbers say, and what was not judged; that all is well only where the probe is healthy."""
    if found.verdicts or found.is_healthy:
        said = verdict_list(found.verdicts)
    else:
        said = join(tag("h3", "Verdicts"), quiet("All numbers are finite."))
    return join(said, *(quiet(f"Not judged: {what}.") for what in found.unjudged))


def _drawings(layers: Sequence[LayerScale]) -> list[Drawing]:
    names = [layer.layer for layer in layers]
    scales = {"output": _floats([layer.rms for layer in layers])}
    gradients = _floats([layer.gradient_rms for layer in layers])
    shares = {
        measure: _floats([getattr(layer, measure) for layer in layers])
        for measure in ("dead", "saturated")
        if any(getattr(layer, measure) is not None for layer in layers)
    }
    drawings = []
    if layers:
        drawings.append(by_depth("outputs", "Scale of outputs", scales, names, _words("output", layers, "rms"), "rms"))
    if numpy.isfinite(gradients).any():
        words = _words("gradient", layers, "gradient_rms")
        drawings.append(by_depth("gradients", "Scale of gradients", {"gradient": gradients}, names, words, "rms"))
    if shares:
        words = " ".join(share_words(measure, values, names) for measure, values in shares.items())
        drawings.append(shares_by_depth("dead", "Dead and saturated units", shares, names, words))
    return drawings


def _floats(values: Sequence[float | None]) -> Floats:
    return numpy.array([numpy.nan if value is None else value for value in values])


def _words(what: str, layers: Sequence[LayerScale], measure: str) -> str:
    given = [(layer.layer, value) for layer in layers if (value := getattr(layer, measure)) is not None]
    (first, begins), (last, ends) = given[0], given[-1]
    if len(given) == 1:
        return f"The rms of the {what} is {begins:.3g} in {first}."
    return f"The first layer is at the top. The rms of the {what} is {begins:.3g} in {first} and {ends:.3g} in {last}."


def _layers(found: Probe) -> Html:
    layers = found.layers
    columns = [
        Column("layer", [layer.layer for layer in layers]),
        Column("kind", [layer.kind for layer in layers]),
        Column("output mean", [layer.mean for layer in layers]),
        Column("output std", [layer.std for layer in layers]),
        Column("output rms", [layer.rms for layer in layers]),
        Column("gradient rms", [layer.gradient_rms for layer in layers]),
        Column("dead", [layer.dead for layer in layers]),
        Column("saturated", [layer.saturated for layer in layers]),
        Column("non-finite", [layer.nonfinite for layer in layers]),
    ]
    return sortable("layers", "Layers", columns, search="layers, kinds")


def _weights(found: Probe) -> Html:
    weights = found.weights
    columns = [
        Column("name", [weight.name for weight in weights]),
        Column("shape", [" × ".join(map(str, weight.shape)) or "1" for weight in weights]),
        Column("std in theory", [weight.predicted_std for weight in weights]),
        Column("std as drawn", [weight.std for weight in weights]),
        Column("gradient rms", [weight.gradient_rms for weight in weights]),
    ]
    return sortable("parameters", "Parameters", columns, search="names")
