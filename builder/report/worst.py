"""Which parameters to look at first, and why, from their whole history.

Non-finite values come before everything, then parameters that never moved though they are trained, then those whose
update is large or small for their weight. The measure of the last is the ratio of update to weight: most weights train
well within a decade of 1e-3. This band is narrower than that of a verdict: it says what to look at, and condemns
nothing. A median over time is judged, so that a warm-up, or the end of a decay to zero, is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import polars

from builder.report.figures import brief

HEALTHY = (1e-4, 1e-2)  # of update_ratio: a decade to each side of 1e-3
BAND = f"{brief(HEALTHY[0])} to {brief(HEALTHY[1])}"
SUMMARISED = ("rms", "gradient_rms", "update_ratio", "update_rms", "nonfinite", "gradient_nonfinite")


@dataclass(frozen=True)
class Summary:
    """One parameter's history in a few numbers; None where nothing was measured.

    Attributes:
        name: Its label.
        rms: Of the weight, at the last logged step.
        gradient_rms: At the last logged step that had a gradient.
        update_ratio: At the last logged step that had an update.
        median_ratio: Median of the finite update ratios.
        moved: Whether any logged step moved it; None where no update was measured.
        nonfinite: The most values of it that were NaN or inf at a logged step.
        gradient_nonfinite: The same of its gradient.
        first_nonfinite: The first logged step with any of either.
    """

    name: str
    rms: float | None = None
    gradient_rms: float | None = None
    update_ratio: float | None = None
    median_ratio: float | None = None
    moved: bool | None = None
    nonfinite: int = 0
    gradient_nonfinite: int = 0
    first_nonfinite: int | None = None


@dataclass(frozen=True)
class Worst:
    """A parameter that stands out, and the sentence that says how."""

    name: str
    why: str
    rank: tuple[int, float]


def summaries(rows: polars.DataFrame) -> dict[str, Summary]:
    """A summary by label, of the rows that `builder.report.history.taken` returns."""
    missing = [polars.lit(None, polars.Float64).alias(name) for name in SUMMARISED if name not in rows.columns]
    counts = ("nonfinite", "gradient_nonfinite")
    bad = polars.any_horizontal(
        *(polars.col(name) > 0 for name in counts), *(~polars.col(name).is_finite() for name in ("rms", "gradient_rms"))
    )
    ratio, update = polars.col("update_ratio"), polars.col("update_rms").drop_nulls()
    found = (
        rows.with_columns(missing)
        .sort("step", maintain_order=True)
        .group_by(name="label", maintain_order=True)
        .agg(
            *(polars.col(name).drop_nulls().last() for name in ("rms", "gradient_rms", "update_ratio")),
            *(polars.col(name).max().fill_null(0).cast(polars.Int64) for name in counts),
            median_ratio=ratio.filter(ratio.is_finite()).median(),
            moved=polars.when(update.len() > 0).then((update != 0).any()),
            first_nonfinite=polars.col("step").filter(bad).min(),
        )
    )
    return {row["name"]: Summary(**row) for row in found.iter_rows(named=True)}


def worst(summarised: Sequence[Summary]) -> list[Worst]:
    """Those that stand out, the gravest first."""
    found = [entry for summary in summarised if (entry := _judge(summary)) is not None]
    return sorted(found, key=lambda entry: entry.rank)


def all_clear(summarised: Sequence[Summary]) -> str:
    """What is true of parameters of which none stands out.

    >>> all_clear([Summary("frozen")])
    'None stands out: all are finite; no update ratio was measured.'
    """
    updated = sum(summary.median_ratio is not None for summary in summarised)
    if not updated:
        return "None stands out: all are finite; no update ratio was measured."
    ratios = f"of each with updates ({updated:,}) the median update ratio over the run is {BAND}"
    return f"None stands out: all are finite, and {ratios}."


def _judge(summary: Summary) -> Worst | None:
    if summary.first_nonfinite is not None:
        what = [
            f"{count:,} of its {kind} are NaN or inf"
            for count, kind in ((summary.nonfinite, "values"), (summary.gradient_nonfinite, "gradient's values"))
            if count
        ]
        since, words = summary.first_nonfinite, " and ".join(what) or "its rms or its gradient's is NaN or inf"
        return Worst(summary.name, f"{words}, first at step {since:,}", (0, since))
    if summary.moved is False:
        return Worst(summary.name, f"no logged step moved it, {_why_still(summary.gradient_rms)}", (1, 0))
    ratio = summary.median_ratio
    if ratio is None or HEALTHY[0] <= ratio <= HEALTHY[1]:
        return None
    away = math.inf if ratio == 0 else abs(math.log10(ratio / 1e-3))
    direction = "large" if ratio > HEALTHY[1] else "small"
    return Worst(
        summary.name, f"updates are {direction} for its size: median ratio {brief(ratio)} over the run", (2, -away)
    )


def _why_still(gradient_rms: float | None) -> str:
    if gradient_rms is None:
        return "and none had a gradient of it: the loss may not reach it"
    return f"though it had a gradient, of rms {brief(gradient_rms)} at last"
