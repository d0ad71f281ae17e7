"""The page of a sweep: its runs in one table, and their curves over one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from textwrap import shorten
from urllib.parse import quote

import polars
import yaml

from builder.report.curves import compared, logged
from builder.report.markup import Html, join, tag
from builder.report.page import REPORT, Section, curve_grid, page, quiet
from builder.report.read import read_metrics
from builder.report.tables import Column, sortable
from builder.report.words import duration, finite_number, value_text
from builder.sweep.results import (
    SEEDS,
    Run,
    Spread,
    judge,
    metric_at_hand,
    metric_of_test,
    problem_of,
    read_runs,
    summarise,
    varied_keys,
)

MOST_CURVES = 60  # runs in a figure
_MOST_METRICS = 8
_STATE = 80  # characters of a problem in the table; the list of failed runs has all of it


def sweep_page(directory: Path, ranking: tuple[str, str] | None = None) -> str:
    """The report of a sweep as HTML.

    Args:
        directory: What a multirun wrote.
        ranking: The metric to rank and judge by, and `max` or `min`; what the configs monitor when not given.

    Raises:
        BuilderError: There is no run under the directory.
    """
    runs = read_runs(directory)
    ranking = _monitored(directory, runs) if ranking is None else ranking
    names = [run.metrics for run in runs if run.error is None]
    metric = None if ranking is None else metric_at_hand(names, ranking[0])
    if metric is not None:
        runs = [judge(run, metric) for run in runs]
    name = "/".join(directory.resolve().parts[-2:])
    sections = [_overview(runs, ranking, metric), _table(directory, runs), _curves(directory, runs)]
    return page(f"sweep {name}", _header(runs), sections)


def _monitored(directory: Path, runs: Sequence[Run]) -> tuple[str, str] | None:
    """The test metric of what the runs monitor, and its mode; None where no config says."""
    for file in (directory / "multirun.yaml", *(directory / run.name / "config.yaml" for run in runs)):
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if not isinstance(config, dict):
            continue
        monitor, mode = config.get("monitor"), config.get("mode")
        if isinstance(monitor, str) and mode in ("max", "min"):
            return metric_of_test(monitor), mode
    return None


def _header(runs: Sequence[Run]) -> Html:
    failed = sum(run.error is not None for run in runs)
    state = tag("span", f"{failed} failed" if failed else "all finished", class_=f"badge {'bad' if failed else 'ok'}")
    seconds = sum(run.seconds for run in runs if run.seconds is not None)
    return tag(
        "p",
        tag("span", f"{len(runs)} run{'s' if len(runs) > 1 else ''}"),
        state,
        tag("span", f"{duration(seconds)} in all"),
        class_="facts",
    )


def _overview(runs: Sequence[Run], ranking: tuple[str, str] | None, metric: str | None) -> Section:
    """What the runs came to by the metric at hand, and a word where it is not the one that was asked for."""
    missing = quiet(f"No run has {ranking[0]}.") if ranking is not None and metric != ranking[0] else ""
    found = _metric_ranges(runs) if ranking is None or metric is None else _settings(runs, metric, ranking[1])
    failed = [_failure(run.name, run.error) for run in runs if run.error is not None]
    lost = join(tag("h3", "Failed"), tag("ul", *failed, class_="failed")) if failed else Html("")
    return Section("overview", "What matters", missing, found, lost)


def _settings(runs: Sequence[Run], metric: str, mode: str) -> Html:
    """Runs that differ in nothing but their seeds as one row each, the best first."""
    groups = summarise(runs, metric, mode)
    keys = list(dict.fromkeys(key for group in groups for key in group.overrides))
    others = [name for name in _metrics(runs) if name != metric][: _MOST_METRICS - 1]
    columns = [
        *(_setting(key, [group.overrides.get(key, "") for group in groups]) for key in keys),
        *(_spread(name, [group.metrics.get(name) for group in groups]) for name in (metric, *others)),
        Column("runs", [group.runs for group in groups], [str(group.runs) for group in groups]),
        Column("failed", [len(group.failed) for group in groups], [str(len(group.failed)) for group in groups]),
    ]
    words = f"Best mean of {metric} first ({mode}); mean ± standard deviation over the seeds, failed runs left out."
    title = "Settings, best first"
    return join(tag("h3", title), quiet(words), sortable("settings", title, columns, search="settings"))


def _spread(metric: str, spreads: Sequence[Spread | None]) -> Column:
    means = [spread.mean if spread is not None and math.isfinite(spread.mean) else None for spread in spreads]
    return Column(metric, means, ["" if spread is None else _spread_text(spread) for spread in spreads])


def _spread_text(spread: Spread) -> str:
    if spread.std is None or not math.isfinite(spread.mean):
        return value_text(spread.mean)
    return f"{value_text(spread.mean)} ± {value_text(spread.std)}"


def _metric_ranges(runs: Sequence[Run]) -> Html:
    """From which value to which each metric goes, and where."""
    keys, rows = [*varied_keys(runs), *SEEDS], []
    for metric in _metrics(runs):
        known = [(run.metrics[metric], run) for run in runs if math.isfinite(run.metrics.get(metric, math.nan))]
        if not known:
            continue
        (low, lowest), (high, highest) = min(known, key=itemgetter(0)), max(known, key=itemgetter(0))
        text = f"{value_text(low)} (run {_label(lowest, keys)})"
        if len(known) > 1 and low == high:
            text = f"{value_text(low)} in {len(known)} runs"
        elif low != high:
            text = f"from {text} to {value_text(high)} (run {_label(highest, keys)})"
        rows.append(tag("li", tag("strong", metric), " ", text))
    if not rows:
        return tag("p", "No run left a metric.")
    return join(tag("h3", "Metrics over the runs"), tag("ul", *rows))


def _failure(name: str, error: str) -> Html:
    """The problem in a line, and behind it the whole error where it says more."""
    short = problem_of(error)
    whole = tag("details", tag("summary", "the whole error"), tag("pre", error, class_="error", tabindex=0))
    return tag("li", tag("strong", f"run {name}"), " ", short, whole if error.strip() != short else "")


def _table(directory: Path, runs: Sequence[Run]) -> Section:
    keys = [*varied_keys(runs), *(key for key in SEEDS if len({run.overrides.get(key) for run in runs}) > 1)]
    columns = [
        Column("run", [run.name for run in runs], [_link(directory, run) for run in runs]),
        *(_setting(key, [run.overrides.get(key, "") for run in runs]) for key in keys),
        *(Column(metric, *_metric(runs, metric)) for metric in _metrics(runs)),
        Column(
            "seconds",
            [run.seconds for run in runs],
            ["" if run.seconds is None else f"{run.seconds:.1f}" for run in runs],
        ),
        Column(
            "state",
            ["ok" if run.error is None else shorten(problem_of(run.error), _STATE, placeholder=" …") for run in runs],
        ),
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


def _setting(key: str, texts: Sequence[str]) -> Column:
    """Values of a hyperparameter as given, sorted as numbers where all of them are."""
    numbers = [finite_number(text) for text in texts]
    numeric = any(texts) and all(number is not None or not text for number, text in zip(numbers, texts, strict=True))
    return Column(key, numbers if numeric else texts, texts)


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
    return tag("a", run.name, href=f"./{quote(run.name)}/{REPORT}") if there else run.name
