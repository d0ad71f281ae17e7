"""The columnar store of statistics: a folder of parquet files, each whole or absent.

A file is written beside its final name, synced, and moved there by one atomic rename, so a run killed at any moment
leaves only whole files. Files are numbered; a run that resumes continues the numbering and takes nothing away. There
is one writer to a folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import polars

from builder.errors import BuilderError, Problem
from builder.stats.columns import COUNTS, MEASURES, Columns

FOLDER = "stats"
SCHEMA: dict[str, type[polars.DataType]] = {
    "step": polars.Int64,
    "epoch": polars.Int64,
    "name": polars.String,
    **{measure: polars.Int64 if measure in COUNTS else polars.Float64 for measure in MEASURES},
}

_UNFINISHED = "unfinished.tmp"  # one fixed name, so that what a kill leaves behind is overwritten by the next flush


class Store:
    """Gathers logged steps and writes them as one file a flush.

    Args:
        run_dir: The run's directory; files go to its folder `stats`, which is made where it is missing.
        flush_every: How many logged steps make a file.
    """

    def __init__(self, run_dir: Path, flush_every: int) -> None:
        self._folder = run_dir / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._flush_every = flush_every
        self._waiting: list[polars.DataFrame] = []
        self._next = max((int(file.stem) for file in _files(self._folder)), default=-1) + 1

    def append(self, columns: Columns) -> None:
        """Takes one logged step, and writes a file when enough of them wait."""
        self._waiting.append(polars.DataFrame(columns, schema=SCHEMA))
        if len(self._waiting) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Writes what waits; on return it is on the disk. Writes no file where nothing waits."""
        if self._waiting:
            _write_whole(polars.concat(self._waiting), self._folder / f"{self._next:06d}.parquet")
            self._waiting = []
            self._next += 1


def read_stats(run_dir: str | Path) -> polars.DataFrame:
    """All statistics of a run: one row for each logged step and parameter, by step and in the model's order.

    A step that a resumed run repeated is returned as it was measured last; the files keep both. A run without
    statistics gives no rows. Null means that there was nothing to measure; NaN and inf are values as measured.

    Raises:
        BuilderError: If the directory does not exist.
    """
    if not Path(run_dir).is_dir():
        raise BuilderError("statistics", [Problem(str(run_dir), "is not a directory", "give a run's directory")])
    frames = [polars.DataFrame(schema=SCHEMA), *map(polars.read_parquet, _files(Path(run_dir) / FOLDER))]
    rows = polars.concat(frames, how="diagonal")
    return rows.unique(["step", "name"], keep="last", maintain_order=True).sort("step", maintain_order=True)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"), key=lambda file: int(file.stem))


def _write_whole(rows: polars.DataFrame, file: Path) -> None:
    unfinished = file.with_name(_UNFINISHED)
    with unfinished.open("wb") as stream:
        rows.write_parquet(stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
