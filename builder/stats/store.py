"""The columnar store of statistics: two folders of parquet files, each file whole or absent.

`stats/parameters` has a row for each logged step and parameter, `stats/outputs` one for each step and layer. Files are
numbered, and the files of one flush bear one number. A run killed at any moment leaves only whole files, and perhaps a
part that the next to open the store takes away. A run that resumes continues the numbering and takes no rows away, and
`stats/cost.json` holds what watching has cost in all the fits that wrote here.
There is one writer to a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import polars

from builder.errors import BuilderError, Problem
from builder.stats.columns import COUNTS, HISTOGRAM, MEASURES, OUTPUT_MEASURES, Columns
from builder.whole import clear_parts, write_text, write_whole

FOLDER = "stats"
PARAMETERS, OUTPUTS = "parameters", "outputs"
COST = "cost.json"
_POLARS = dict.fromkeys(COUNTS, polars.Int64()) | {HISTOGRAM: polars.List(polars.Int64)}
_MOMENT = {"step": polars.Int64(), "epoch": polars.Int64()}
SCHEMA: dict[str, polars.DataType] = {
    **_MOMENT,
    "name": polars.String(),
    "member": polars.Int64(),
    **{measure: _POLARS.get(measure, polars.Float64()) for measure in MEASURES},
}
OUTPUT_SCHEMA: dict[str, polars.DataType] = {
    **_MOMENT,
    "layer": polars.String(),
    "kind": polars.String(),
    "member": polars.Int64(),
    **{measure: _POLARS.get(measure, polars.Float64()) for measure in OUTPUT_MEASURES},
}
_SCHEMAS = {PARAMETERS: SCHEMA, OUTPUTS: OUTPUT_SCHEMA}


class Store:
    """Gathers logged steps and writes them as one file a flush and folder.

    Args:
        run_dir: The run's directory; files go to its folder `stats`, which is made where it is missing.
        flush_every: How many logged steps make a file.
    """

    def __init__(self, run_dir: Path, flush_every: int) -> None:
        self._folders = {kind: run_dir / FOLDER / kind for kind in _SCHEMAS}
        for folder in (run_dir / FOLDER, *self._folders.values()):
            folder.mkdir(parents=True, exist_ok=True)
            clear_parts(folder)
        self._cost = run_dir / FOLDER / COST
        self._flush_every = flush_every
        self._waiting: dict[str, list[Columns]] = {kind: [] for kind in _SCHEMAS}
        numbers = [int(file.stem) for folder in self._folders.values() for file in _files(folder)]
        self._next = max(numbers, default=-1) + 1

    def append(self, parameters: Columns, outputs: Columns | None = None) -> None:
        """Takes one logged step, and writes files when enough of them wait."""
        self._waiting[PARAMETERS].append(parameters)
        if outputs is not None:
            self._waiting[OUTPUTS].append(outputs)
        if len(self._waiting[PARAMETERS]) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Writes what waits; on return it is on the disk. Writes no file where nothing waits."""
        waiting = {kind: steps for kind, steps in self._waiting.items() if steps}
        for kind, steps in waiting.items():
            columns = {name: [*chain.from_iterable(step[name] for step in steps)] for name in steps[0]}
            rows = polars.DataFrame(columns, schema=_SCHEMAS[kind])
            write_whole(self._folders[kind] / f"{self._next:06d}.parquet", rows.write_parquet)
            self._waiting[kind] = []
        self._next += bool(waiting)

    def write_cost(self, cost: Mapping[str, Any]) -> None:
        """Writes what watching has cost so far to `stats/cost.json`."""
        write_text(self._cost, json.dumps(cost, indent=2) + "\n")

    def read_cost(self) -> Mapping[str, Any] | None:
        """What `write_cost` wrote last, in an earlier fit as well; None where that cannot be read."""
        try:
            found = json.loads(self._cost.read_text(encoding="utf-8"))
            numbers = [found["steps_logged"], found["seconds"], found["fit_seconds"], *chain(*found["every_n_steps"])]
        except (OSError, ValueError, KeyError, TypeError):  # missing, broken, or written by an older version
            return None
        whole = all(len(held) == 2 for held in found["every_n_steps"])
        return dict(found) if whole and all(isinstance(number, int | float) for number in numbers) else None


def read_stats(run_dir: str | Path) -> polars.DataFrame:
    """The statistics of a run's parameters: one row for each logged step and parameter, by step, in the model's order.

    A step that a resumed run repeated is returned as it was measured last; the files keep both. A run without
    statistics gives no rows. Null means that there was nothing to measure; NaN and inf are values as measured. The
    columns are listed in `builder.stats.columns`.

    Raises:
        BuilderError: If the directory does not exist.
    """
    return _read(run_dir, PARAMETERS, ["step", "name", "member"])


def read_outputs(run_dir: str | Path) -> polars.DataFrame:
    """The statistics of a run's layer outputs: one row for each logged step and layer, in the order in which they ran.

    Else as `read_stats`.

    Raises:
        BuilderError: If the directory does not exist.
    """
    return _read(run_dir, OUTPUTS, ["step", "layer", "member"])


def _read(run_dir: str | Path, kind: str, key: list[str]) -> polars.DataFrame:
    if not Path(run_dir).is_dir():
        raise BuilderError("statistics", [Problem(str(run_dir), "is not a directory", "give a run's directory")])
    files = _files(Path(run_dir) / FOLDER / kind)
    rows = polars.concat([_empty(_SCHEMAS[kind]), *map(polars.read_parquet, files)], how="diagonal")
    return rows.unique(key, keep="last", maintain_order=True).sort("step", maintain_order=True)


def _empty(schema: Mapping[str, polars.DataType]) -> polars.DataFrame:
    return polars.DataFrame(schema=dict(schema))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"), key=lambda file: int(file.stem))
