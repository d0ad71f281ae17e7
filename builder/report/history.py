"""Statistics as matrices, parameters down and time across, thinned to what a screen shows.

A screen has a few hundred columns, a run any number of logged steps: a matrix column stands for some consecutive steps
and holds the highest of their values, so that a spike is not averaged away. A value that is not finite outweighs all
others. Rows are in the model's order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy
import polars
from numpy.typing import NDArray

from builder.stats.columns import BINS

MOST_COLUMNS = 240
MEASURES = ("rms", "gradient_rms", "clipped_gradient_rms", "update_ratio", "distance")
LAYER_MEASURES = ("std", "dead", "saturated")
_HISTOGRAM_BYTES = 2_500_000
_LEAST_HISTOGRAMS, _MOST_HISTOGRAMS = 8, 60


@dataclass(frozen=True)
class Matrix:
    """A measure over rows and time.

    Attributes:
        steps: The last step of each column, ascending, of shape (columns,).
        values: Of shape (rows, columns); NaN where nothing was measured, inf where a value was not finite.
        per_column: How many logged steps a column stands for.
    """

    steps: NDArray[numpy.int64]
    values: NDArray[numpy.float64]
    per_column: int


@dataclass(frozen=True)
class History:
    """What was measured of each row over time.

    Attributes:
        names: Of the rows, in the model's order; `name [3]` is member 3 of a stacked model.
        matrices: By measure; a measure that was never taken has none.
    """

    names: tuple[str, ...]
    matrices: dict[str, Matrix]


@dataclass(frozen=True)
class Histograms:
    """Distributions over powers of two.

    Attributes:
        steps: Those shown, ascending.
        roots: Square root of each bin's share of the values, times 255, of shape (names, steps, bins); 0 where there is
            no histogram.
        looked_at: The smallest share of each tensor's values that its histograms counted, of shape (names,).
    """

    steps: NDArray[numpy.int64]
    roots: NDArray[numpy.uint8]
    looked_at: NDArray[numpy.float64]


def taken(frame: polars.LazyFrame, measures: Sequence[str], by: str = "name") -> polars.DataFrame:
    """The rows of a store with `step`, `label` and those of the measures that it has.

    A step that a resumed run repeated is returned as it was measured last.

    Args:
        frame: One row for each step and name.
        measures: The columns wanted.
        by: The column that names a row.
    """
    columns = frame.collect_schema()
    present = [measure for measure in measures if measure in columns]
    label = polars.col(by)
    if "member" in columns:
        member = polars.format("{} [{}]", by, "member")
        label = polars.when(polars.col("member").is_null()).then(label).otherwise(member)
    rows = frame.select("step", *present, label=label).drop_nulls(["step", "label"]).collect()
    return rows.unique(["step", "label"], keep="last", maintain_order=True) if _repeats(rows) else rows


def _repeats(rows: polars.DataFrame) -> bool:
    """Whether a step may stand there twice; looking at each row for it takes seconds where there are millions."""
    widest = int(rows.group_by("step").len()["len"].to_numpy().max(initial=0))
    return not rows["step"].is_sorted() or widest > rows["label"].n_unique()


def history(
    rows: polars.DataFrame, order: Sequence[str], measures: Sequence[str] = MEASURES, most: int = MOST_COLUMNS
) -> History:
    """The matrices of the rows that were taken.

    Args:
        rows: As `taken` returns them; any of the measures may be missing.
        order: Names in the model's order; those that it lacks come last, in the order of the store.
        measures: Which to make matrices of.
        most: Columns of a matrix, at most.
    """
    names = ordered(rows["label"].unique(maintain_order=True), order)
    placed = rows.with_columns(row=_places(rows["label"], names))
    present = [measure for measure in measures if measure in rows.columns]
    found = {measure: _matrix(placed, len(names), measure, most) for measure in present}
    return History(tuple(names), {measure: matrix for measure, matrix in found.items() if matrix.steps.size})


def ordered(labels: Iterable[str], order: Sequence[str]) -> list[str]:
    """Labels in the model's order, others behind them as they come.

    >>> ordered(["b", "x", "a [1]", "a [0]"], ["a", "b"])
    ['a [1]', 'a [0]', 'b', 'x']
    """
    place = {name: index for index, name in enumerate(order)}
    return sorted(labels, key=lambda label: place.get(label.partition(" [")[0], len(place)))


def block(name: str) -> str:
    """The block that a parameter belongs to: its name up to the first number, or its layer.

    >>> block("encoder.layer.0.attention.self.query.weight"), block("head.weight"), block("gain")
    ('encoder.layer.0', 'head', 'gain')
    >>> block("transformer.wte.weight")
    'transformer.wte'
    """
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[:-1]) or name if number is None else ".".join(parts[: number + 1])


def histograms(frame: polars.LazyFrame, names: Sequence[str]) -> Histograms | None:
    """Distributions at steps evenly spread over those that have any, as many as a page can carry; None without any."""
    columns = frame.collect_schema()
    if "histogram" not in columns:
        return None
    sign = "histogram_share" if "histogram_share" in columns else "histogram"  # the smaller column, where there is one
    steps = (
        frame.filter(polars.col(sign).is_not_null()).select("step").unique().sort("step").collect()["step"].to_numpy()
    )
    most = min(max(_HISTOGRAM_BYTES // (BINS * len(names)), _LEAST_HISTOGRAMS), _MOST_HISTOGRAMS)
    shown = steps[numpy.unique(numpy.linspace(0, steps.size - 1, min(most, steps.size)).round().astype(int))]
    there = polars.col("step").is_in(shown.tolist()) & (polars.col("histogram").list.len() == BINS)
    rows = taken(frame.filter(there), ("histogram", "histogram_share"))
    if rows.is_empty():
        return None
    counts = rows["histogram"].explode().to_numpy().reshape(-1, BINS).astype(numpy.float64)
    total = counts.sum(axis=1, keepdims=True)
    roots = numpy.zeros((len(names), shown.size, BINS), numpy.uint8)
    where = _places(rows["label"], names).to_numpy(), numpy.searchsorted(shown, rows["step"].to_numpy())
    roots[where] = numpy.round(255 * numpy.sqrt(counts / numpy.maximum(total, 1)))
    looked_at = numpy.ones(len(names))
    if sign != "histogram":
        numpy.minimum.at(looked_at, where[0], rows["histogram_share"].fill_null(1.0).to_numpy())
    return Histograms(shown, roots, looked_at)


def _matrix(rows: polars.DataFrame, height: int, measure: str, most: int) -> Matrix:
    measured = rows.select("step", "row", value=polars.col(measure).cast(polars.Float64)).drop_nulls("value")
    steps = measured["step"].unique().sort().to_numpy()
    per_column = max(1, math.ceil(steps.size / most))
    values = numpy.full((height, math.ceil(steps.size / per_column)), -numpy.inf)
    column = numpy.searchsorted(steps, measured["step"].to_numpy()) // per_column
    given = measured["value"].to_numpy()
    given = numpy.where(numpy.isfinite(given), given, numpy.inf)
    numpy.maximum.at(values, (measured["row"].to_numpy(), column), given)
    values[numpy.isneginf(values)] = numpy.nan
    return Matrix(steps[_last_of_each(steps.size, per_column)], values, per_column)


def _last_of_each(count: int, per_column: int) -> NDArray[numpy.int64]:
    return numpy.minimum(numpy.arange(per_column - 1, count + per_column - 1, per_column), count - 1)


def _places(labels: polars.Series, names: Sequence[str]) -> polars.Series:
    """The row of each label."""
    return labels.cast(polars.Enum(names)).to_physical().cast(polars.Int64)
