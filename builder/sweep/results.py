"""Run directories of a sweep, read, grouped over seeds and put into one table.

A sweep answers a question only when all its runs stand side by side, with their spread, and with those that failed:
a run that left no result is shown, not forgotten. Runs that differ only in a seed are one group. A run whose
monitored metric is missing or not finite counts as failed, so that NaN ranks nowhere; where no run was tested, the
metric of validation takes the place of that of the test. Values flow one way:
`read_runs` -> `summarise` -> `render` and `write_csv`. Refuses a mode other than `max` or `min`.

Needs no torch: it runs when the training processes have ended.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

import yaml
from rich.markup import escape
from rich.table import Table

from builder.errors import BuilderError, Problem, did_you_mean
from builder.whole import write_text

RESULT_FILE = "result.json"
HYDRA_OVERRIDES = Path(".hydra", "overrides.yaml")  # Hydra writes it before a job begins
SEEDS = ("seed", "init_seed")
NO_RESULT = "no result (killed?)"

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Run:
    """One job of a sweep.

    Attributes:
        name: The run directory, relative to the sweep's.
        overrides: Value by key, as on the command line, without a leading `+`.
        metrics: Final metrics by name.
        seconds: How long it took, or None where it left no result.
        error: Why it failed, or None where it did not.
    """

    name: str
    overrides: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Spread:
    """A metric over the runs of a group.

    Attributes:
        std: Sample standard deviation; None for a single value.
    """

    mean: float
    std: float | None
    min: float
    max: float

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.std is None else f"{self.mean:.4f} ± {self.std:.4f}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds.

    Attributes:
        overrides: Value by key of those keys that vary over the sweep, seeds left out.
        runs: How many runs there are, failed ones included.
        failed: Name of each failed run, and what was wrong.
        metrics: Spread over the runs that did not fail, by metric; empty where all failed.
        seconds: Mean time of the runs that did not fail.
    """

    overrides: Mapping[str, str]
    runs: int
    failed: Mapping[str, str]
    metrics: Mapping[str, Spread]
    seconds: float | None


def read_runs(sweep_dir: str | Path) -> list[Run]:
    """All runs under a sweep directory, in the order of their job numbers.

    Raises:
        BuilderError: There is no run under the directory.
    """
    root = Path(sweep_dir)
    runs = [_read_run(root, directory) for directory in sorted(_run_directories(root), key=_by_number)]
    if not runs:
        what = f"no run in it: no folder holds {RESULT_FILE} or {HYDRA_OVERRIDES}"
        raise BuilderError("sweep", [Problem(str(root), what, hint="name the directory of a multirun")])
    return runs


def summarise(runs: Sequence[Run], metric: str, mode: str) -> list[Group]:
    """Groups of runs that differ only in seeds, best mean of the metric first, groups that failed altogether last.

    They are ranked by the `metric_at_hand`, and stand in the order of the runs where there is none.

    Args:
        runs: The runs of one sweep.
        metric: The metric to rank by, for example `test/accuracy`.
        mode: `max` where more is better, `min` where less is.

    Raises:
        BuilderError: The mode is neither `max` nor `min`.
    """
    if mode not in ("max", "min"):
        raise BuilderError(
            "sweep", [Problem("mode", f"unknown mode {mode!r}", hint=did_you_mean(mode, ("max", "min")))]
        )
    found = metric_at_hand([run.metrics for run in runs if run.error is None], metric)
    judged = [run if found is None else judge(run, found) for run in runs]
    varied = varied_keys(judged)
    by_key: dict[Key, list[Run]] = {}
    for run in judged:
        by_key.setdefault(_group_key(run, varied), []).append(run)
    sign = -1 if mode == "max" else 1
    groups = [_group(dict(key), members) for key, members in by_key.items()]
    ranked = found or metric
    return sorted(groups, key=lambda group: sign * group.metrics[ranked].mean if ranked in group.metrics else math.inf)


def metric_of_test(monitor: str) -> str:
    """The test metric that belongs to a monitored one.

    >>> metric_of_test("val/accuracy")
    'test/accuracy'
    """
    _, _, name = monitor.partition("/")
    return f"test/{name or monitor}"


def metric_at_hand(known: Sequence[Iterable[str]], metric: str) -> str | None:
    """The metric to rank by: the one asked for, or that of validation where no run was tested; None without either.

    Args:
        known: Names of the metrics of each run, or of each group.
        metric: The one asked for.

    >>> metric_at_hand([["val/loss", "train/loss"]], "test/loss")
    'val/loss'
    """
    wanted = (metric, metric.replace("test/", "val/", 1))
    return next((name for name in wanted if any(name in names for names in known)), None)


def judge(run: Run, metric: str) -> Run:
    """The run as it is, or as a failed one where the metric is missing or not finite.

    >>> judge(Run("0", {}, {"test/loss": float("nan")}), "test/loss").error
    'test/loss is nan'
    """
    if run.error is not None:
        return run
    if metric not in run.metrics:
        known = ", ".join(sorted(run.metrics)) or "none"
        return replace(run, error=f"no {metric} among its metrics: {known}")
    if not math.isfinite(run.metrics[metric]):
        return replace(run, error=f"{metric} is {run.metrics[metric]}")
    return run


def varied_keys(runs: Sequence[Run]) -> list[str]:
    """Keys whose value is not the same in all runs, seeds left out, in the order of the command line.

    >>> varied_keys([Run("0", {"init": "a", "seed": "0", "lr": "1"}), Run("1", {"init": "b", "seed": "1", "lr": "1"})])
    ['init']
    """
    keys = dict.fromkeys(key for run in runs for key in run.overrides if key not in SEEDS)
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def render(groups: Sequence[Group], metric: str, others: Sequence[str] = ()) -> Table:
    """The groups as a table to print.

    Args:
        groups: As `summarise` returns them.
        metric: The metric that they were ranked by.
        others: Further metrics to show, mean and spread each.
    """
    varied, count = _columns(groups), sum(group.runs for group in groups)
    found = metric_at_hand([group.metrics for group in groups], metric)
    ranked = (
        f"none has {metric}"
        if found is None and any(group.metrics for group in groups)
        else f"best {found or metric} first"
    )
    metric = found or metric
    table = Table(title=f"{count} runs, {ranked}", title_justify="left")
    for key in varied:
        table.add_column(escape(key), overflow="fold")
    for name in ("runs", "failed", metric, "min", "max", *others, "seconds"):
        table.add_column(escape(name), justify="right", overflow="fold")
    for place, group in enumerate(groups):
        best = place == 0 and bool(group.metrics)
        table.add_row(*map(escape, _cells(group, varied, metric, others)), style="bold" if best else None)
    failures = [f"{name}: {error}" for group in groups for name, error in group.failed.items()]
    if failures:
        table.caption = escape("\n".join(["failed:", *failures]))
        table.caption_justify = "left"
    return table


def write_csv(sweep_dir: str | Path, runs: Sequence[Run], groups: Sequence[Group]) -> tuple[Path, Path]:
    """Writes `results.csv`, one row a group, and `runs.csv`, one row a run; each whole or not at all.

    Returns:
        The two files, in this order.
    """
    root = Path(sweep_dir)
    results, singles = root / "results.csv", root / "runs.csv"
    _write_table(results, _result_rows(groups))
    _write_table(singles, _run_rows(runs))
    return results, singles


def _run_directories(root: Path) -> Iterator[Path]:
    """Folders of runs below the root, not looking inside a run for another one."""
    for child in root.iterdir() if root.is_dir() else ():
        if not child.is_dir() or child.is_symlink():
            continue
        if (child / RESULT_FILE).is_file() or (child / HYDRA_OVERRIDES).is_file():
            yield child
        else:
            yield from _run_directories(child)


def _by_number(directory: Path) -> tuple[str, int, str]:
    """Sorts job 2 before job 10."""
    name = directory.name
    return str(directory.parent), int(name) if name.isdecimal() else -1, name


def _read_run(root: Path, directory: Path) -> Run:
    name = directory.relative_to(root).as_posix()
    file = directory / RESULT_FILE
    if not file.is_file():
        return Run(name, _hydra_overrides(directory), error=NO_RESULT)
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        overrides = _by_override(result["overrides"])
        metrics = {key: math.nan if value is None else float(value) for key, value in result["metrics"].items()}
        error = None if result["status"] == "ok" else str(result["error"] or "failed without a message")
        seconds = None if result["seconds"] is None else float(result["seconds"])
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        return Run(name, _hydra_overrides(directory), error=f"unreadable {RESULT_FILE}: {type(fault).__name__} {fault}")
    return Run(name, overrides, metrics, seconds, error)


def _hydra_overrides(directory: Path) -> dict[str, str]:
    file = directory / HYDRA_OVERRIDES
    listed = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return _by_override(listed or [])


def _by_override(listed: Iterable[str]) -> dict[str, str]:
    pairs = (override.lstrip("+").partition("=") for override in listed)
    return {key: value for key, _, value in pairs}


def _group_key(run: Run, varied: Sequence[str]) -> Key:
    return tuple((key, run.overrides[key]) for key in varied if key in run.overrides)


def _group(overrides: Mapping[str, str], runs: Sequence[Run]) -> Group:
    ended = [run for run in runs if run.error is None]
    names = dict.fromkeys(name for run in ended for name in run.metrics)
    return Group(
        overrides=overrides,
        runs=len(runs),
        failed={run.name: problem_of(run.error) for run in runs if run.error is not None},
        metrics={name: _spread([run.metrics[name] for run in ended if name in run.metrics]) for name in names},
        seconds=_mean([run.seconds for run in ended if run.seconds is not None]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(values: Sequence[float]) -> Spread:
    """Spread of at least one value; NaN all through where one of them is not finite."""
    if not all(map(math.isfinite, values)):
        return Spread(math.nan, math.nan, math.nan, math.nan)
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, min(values), max(values))


def problem_of(error: str) -> str:
    """The line of an error that says what is wrong: of a `BuilderError`, whose first line counts, the first problem.

    >>> problem_of("training: 1 problem\\n  train/loss: is nan at step 3\\n      try a smaller lr")
    'train/loss: is nan at step 3'
    >>> problem_of("\\nout of memory\\nmore")
    'out of memory'
    """
    first, *others = [line.strip() for line in error.splitlines() if line.strip()] or ["failed without a message"]
    return others[0] if others and re.search(r": \d+ problems?$", first) else first


def _columns(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(key for group in groups for key in group.overrides))


def _cells(group: Group, varied: Sequence[str], metric: str, others: Sequence[str]) -> list[str]:
    spread = group.metrics.get(metric)
    return [
        *(group.overrides.get(key, "") for key in varied),
        str(group.runs),
        str(len(group.failed)),
        str(spread or ""),
        f"{spread.min:.4f}" if spread else "",
        f"{spread.max:.4f}" if spread else "",
        *(str(group.metrics.get(name, "")) for name in others),
        "" if group.seconds is None else f"{group.seconds:.1f}",
    ]


def _result_rows(groups: Sequence[Group]) -> Iterator[dict[str, object]]:
    for group in groups:
        row: dict[str, object] = {**group.overrides, "runs": group.runs, "failed": len(group.failed)}
        for name, spread in group.metrics.items():
            row |= {f"{name} {part}": getattr(spread, part) for part in ("mean", "std", "min", "max")}
        problems = "; ".join(f"{name}: {why}" for name, why in group.failed.items())
        yield row | {"seconds": group.seconds, "errors": problems}


def _run_rows(runs: Sequence[Run]) -> Iterator[dict[str, object]]:
    for run in runs:
        error = "" if run.error is None else problem_of(run.error)
        yield {"run": run.name, **run.overrides, **run.metrics, "seconds": run.seconds, "error": error}


def _write_table(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes rows under the union of their columns."""
    listed = list(rows)
    columns = list(dict.fromkeys(key for row in listed for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    write_text(file, text.getvalue())
