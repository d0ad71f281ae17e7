"""The columnar store of statistics: two folders of parquet files, each file whole or absent.

`stats/parameters` has a row for each logged step and parameter, `stats/outputs` one for each step and layer. Files are
numbered, and the files of one flush bear one number. A run killed at any moment leaves only whole files, and perhaps a
part that the next to open the store takes away. A fit that goes on continues the numbering; before it, `take_back`
removes what an abandoned one wrote of later steps, and a fit from step 0 finds nothing. `stats/cost.json` holds what
watching has cost since then. There is one writer to a run.
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


def take_back(run_dir: Path, step: int) -> None:
    """Removes what earlier fits wrote of later steps than the one at which a fit begins; at step 0 everything.

    The newest file goes first, so that wherever this is interrupted the files hold the first steps of a run.

    Raises:
        BuilderError: If a file that may hold earlier steps as well cannot be read.
    """
    folder = run_dir / FOLDER
    for file in (file for kind in _SCHEMAS for file in reversed(_files(folder / kind))):
        if step == 0:
            file.unlink()
        else:
            _cut(file, step)
    if step == 0:
        (folder / COST).unlink(missing_ok=True)


def _cut(file: Path, step: int) -> None:
    """Removes a file's rows of later steps; the file where nothing is left of it."""
    if not (_rows(file, ["step"])["step"] > step).any():
        return
    kept = _rows(file).filter(polars.col("step") <= step)
    if kept.is_empty():
        file.unlink()
    else:
        write_whole(file, kept.write_parquet)


def read_stats(run_dir: str | Path) -> polars.DataFrame:
    """The statistics of a run's parameters: one row for each logged step and parameter, by step, in the model's order.

    A step that was measured twice is returned as it was measured last. A run without statistics gives no rows. Null
    means that there was nothing to measure; NaN and inf are values as measured. The columns are listed in
    `builder.stats.columns`.

    Raises:
        BuilderError: If the directory does not exist, or a file cannot be read.
    """
    return _read(run_dir, PARAMETERS, ["step", "name", "member"])


def read_outputs(run_dir: str | Path) -> polars.DataFrame:
    """The statistics of a run's layer outputs: one row for each logged step and layer, in the order in which they ran.

    Else as `read_stats`.

    Raises:
        BuilderError: If the directory does not exist, or a file cannot be read.
    """
    return _read(run_dir, OUTPUTS, ["step", "layer", "member"])


def _read(run_dir: str | Path, kind: str, key: list[str]) -> polars.DataFrame:
    if not Path(run_dir).is_dir():
        raise BuilderError("statistics", [Problem(str(run_dir), "is not a directory", "give a run's directory")])
    files = _files(Path(run_dir) / FOLDER / kind)
    rows = polars.concat([_empty(_SCHEMAS[kind]), *map(_rows, files)], how="diagonal")
    return rows.unique(key, keep="last", maintain_order=True).sort("step", maintain_order=True)


def _rows(file: Path, columns: list[str] | None = None) -> polars.DataFrame:
    try:
        return polars.read_parquet(file, columns=columns)
    except (OSError, polars.exceptions.PolarsError) as err:
        said = next(iter(str(err).splitlines()), type(err).__name__)
        hint = "move it away: the steps in it are lost, all other files can be read"
        raise BuilderError("statistics", [Problem(str(file), f"cannot be read: {said}", hint)]) from err


def _empty(schema: Mapping[str, polars.DataType]) -> polars.DataFrame:
    return polars.DataFrame(schema=dict(schema))


def _files(folder: Path) -> list[Path]:
    """The files that a store wrote, in their order; other files have names that are no numbers."""
    numbered = (file for file in folder.glob("*.parquet") if file.stem.isdecimal())
    return sorted(numbered, key=lambda file: int(file.stem))
