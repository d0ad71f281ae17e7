"""The page of a sweep: its runs in one table, and their curves over one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import polars

from builder.report.curves import compared, logged
from builder.report.markup import Html, join, tag
from builder.report.page import REPORT, Section, curve_grid, page, quiet
from builder.report.read import read_metrics
from builder.report.tables import Column, sortable
from builder.report.words import duration, value_text
from builder.sweep.results import SEEDS, Run, read_runs, varied_keys

MOST_CURVES = 60  # runs in a figure
_MOST_METRICS = 8


def sweep_page(directory: Path) -> str:
    """The report of a sweep as HTML.

    Raises:
        BuilderError: There is no run under the directory.
    """
    runs = read_runs(directory)
    name = "/".join(directory.resolve().parts[-2:])
    sections = [_overview(runs), _table(directory, runs), _curves(directory, runs)]
    return page(f"sweep {name}", _header(runs), sections)


def _header(runs: Sequence[Run]) -> Html:
    failed = sum(run.error is not None for run in runs)
    state = tag("span", f"{failed} failed" if failed else "all finished", class_=f"badge {'bad' if failed else 'ok'}")
    seconds = sum(run.seconds for run in runs if run.seconds is not None)
    return tag("p", tag("span", f"{len(runs)} runs"), state, tag("span", f"{duration(seconds)} in all"), class_="facts")


def _overview(runs: Sequence[Run]) -> Section:
    rows = []
    for metric in _metrics(runs):
        known = [(run.metrics[metric], run.name) for run in runs if math.isfinite(run.metrics.get(metric, math.nan))]
        if known:
            (low, lowest), (high, highest) = min(known, key=itemgetter(0)), max(known, key=itemgetter(0))
            text = f"from {value_text(low)} (run {lowest}) to {value_text(high)} (run {highest})"
            rows.append(tag("li", tag("strong", metric), " ", text))
    failed = [
        tag("li", tag("strong", f"run {run.name}"), " ", run.error or "") for run in runs if run.error is not None
    ]
    found = join(tag("h3", "Metrics over the runs"), tag("ul", *rows)) if rows else tag("p", "No run left a metric.")
    lost = join(tag("h3", "Failed"), tag("ul", *failed, class_="failed")) if failed else Html("")
    return Section("overview", "What matters", found, lost)


def _table(directory: Path, runs: Sequence[Run]) -> Section:
    keys = [*varied_keys(runs), *(key for key in SEEDS if len({run.overrides.get(key) for run in runs}) > 1)]
    columns = [
        Column("run", [run.name for run in runs], [_link(directory, run) for run in runs]),
        *(Column(key, [run.overrides.get(key, "") for run in runs]) for key in keys),
        *(Column(metric, *_metric(runs, metric)) for metric in _metrics(runs)),
        Column(
            "seconds",
            [run.seconds for run in runs],
            ["" if run.seconds is None else f"{run.seconds:.1f}" for run in runs],
        ),
        Column("state", ["ok" if run.error is None else run.error.splitlines()[0] for run in runs]),
    ]
    return Section("runs", "Runs", sortable("runs", "Runs", columns, search="runs"))


def _curves(directory: Path, runs: Sequence[Run]) -> Section:
    keys = [*varied_keys(runs), *SEEDS]
    unread: list[str] = []
    read: dict[str, polars.DataFrame] = {}
    for run in runs:
        rows = read_metrics(directory / run.name / "metrics.csv", unread)
        if rows is not None:
            read[_label(run, keys)] = rows
    names = dict.fromkeys(name for rows in read.values() for name in logged(rows))
    wanted = sorted(names, key=lambda name: (not name.startswith("val/"), not name.startswith("train/")))[
        :_MOST_METRICS
    ]
    shown = dict(list(read.items())[:MOST_CURVES])
    drawings = [drawing for name in wanted if (drawing := compared(name, shown)) is not None]
    if not drawings:
        return Section("curves", "Curves", quiet("No run logged a metric over time."))
    notes = [f"{len(unread)} of {len(runs)} runs have no readable metrics.csv."] if unread else []
    notes += [f"The first {MOST_CURVES} of {len(read)} runs are shown."] if len(read) > MOST_CURVES else []
    return Section("curves", "Curves", *map(quiet, notes), curve_grid(drawings), drawings=drawings)


def _label(run: Run, keys: Sequence[str]) -> str:
    """A run's number and what is its own among the runs."""
    own = ", ".join(f"{key}={run.overrides[key]}" for key in keys if key in run.overrides)
    return f"{run.name}: {own}" if own else run.name


def _metrics(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def _metric(runs: Sequence[Run], metric: str) -> tuple[list[float | None], list[str]]:
    found = [run.metrics.get(metric) for run in runs]
    values = [value if value is not None and math.isfinite(value) else None for value in found]
    return values, ["" if value is None else value_text(value) for value in found]


def _link(directory: Path, run: Run) -> str:
    there = (directory / run.name / REPORT).is_file()
    return tag("a", run.name, href=f"{run.name}/{REPORT}") if there else run.name
