"""What a run directory holds, as far as it can be read.

A report is wanted most of a run that went wrong: killed in the middle, made by an earlier version, without statistics.
So no file is required here, and none that is cut short is an error: what is missing is said in `notes`, in the words
that the page shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
import yaml

from builder.stats.columns import HISTOGRAM
from builder.stats.store import OUTPUT_SCHEMA, SCHEMA
from builder.stats.verdicts import SEVERITIES, Verdict, gravest_first, verdicts

_PARTS_OF_MODEL = ("model", "init", "freeze")


@dataclass(frozen=True)
class RunFiles:
    """One run's files; None or empty where a file is missing.

    Attributes:
        directory: The run directory.
        result: Status, error, metrics, references, seconds and overrides at the end of the run.
        metrics: One row a logged moment, all columns f64: `step`, `epoch` and one for each metric.
        verdicts: Findings, the gravest first: those of the run, or of its statistics where these are newer. None where
            there is neither, () where it is healthy.
        cost: What watching cost.
        table: Rows of the parameter table.
        model_file: The model, init and freeze sections of the config, as YAML.
        source: The generated PyTorch.
        config: The resolved config, as YAML.
        parameters: Statistics of parameters, one row for each step and name.
        outputs: Statistics of layer outputs, one row for each step and layer.
        notes: What is missing or could not be read, one sentence each.
    """

    directory: Path
    result: Mapping[str, Any] | None = None
    metrics: polars.DataFrame | None = None
    verdicts: tuple[Verdict, ...] | None = None
    cost: Mapping[str, Any] | None = None
    table: tuple[Mapping[str, Any], ...] = ()
    model_file: str | None = None
    source: str | None = None
    config: str | None = None
    parameters: polars.LazyFrame | None = None
    outputs: polars.LazyFrame | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The directory's last two parts, which are date and time of a run, or its sweep and its number."""
        return "/".join(self.directory.resolve().parts[-2:])


def is_run(directory: Path) -> bool:
    """Whether a directory holds any of the files that a run begins or ends with."""
    return any((directory / name).exists() for name in ("config.yaml", "result.json", "metrics.csv", "stats"))


def read_run(directory: Path, *, thorough: bool = False) -> RunFiles:
    """Reads a run directory; statistics are opened, and read only when they are asked for.

    Args:
        directory: The run directory.
        thorough: Whether to read every file of statistics once, and leave out one that is broken in the middle.
    """
    notes: list[str] = []
    config = _text(directory / "config.yaml", notes)
    table = _json(directory / "parameters.json", dict, notes)
    rows = _mappings((table or {}).get("parameters"))
    parameters = _statistics(directory, "parameters", notes, thorough=thorough)
    outputs = _statistics(directory, "outputs", notes, thorough=thorough) if parameters is not None else None
    return RunFiles(
        directory=directory,
        result=_json(directory / "result.json", dict, notes, "the run has not ended, or was killed"),
        metrics=read_metrics(directory / "metrics.csv", notes),
        verdicts=_verdicts(directory, parameters, outputs, rows, notes),
        cost=_json(directory / "stats" / "cost.json", dict, []),
        table=rows,
        model_file=_model_file(config),
        source=_text(directory / "model.py", notes),
        config=config,
        parameters=parameters,
        outputs=outputs,
        notes=tuple(notes),
    )


def read_metrics(file: Path, notes: list[str]) -> polars.DataFrame | None:
    """Logged metrics, every column as f64; what is no number is null, a last line counts as far as it goes."""
    if not file.is_file():
        notes.append(f"There is no {file.name}: nothing was logged to a file.")
        return None
    try:
        rows = polars.read_csv(file, infer_schema=False, truncate_ragged_lines=True)
    except (OSError, polars.exceptions.PolarsError) as err:
        notes.append(f"{file.name} cannot be read: {_first_line(err)}.")
        return None
    return rows.select(polars.all().cast(polars.Float64, strict=False))


def number(value: object) -> float | None:
    """A finite number as a float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(file: Path, notes: list[str]) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        notes.append(f"There is no {file.name}.")
        return None


def _json(file: Path, kind: type[Any], notes: list[str], why: str = "") -> Any:
    if not file.is_file():
        notes.append(f"There is no {file.name}{why and ': '}{why}.")
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        notes.append(f"{file.name} cannot be read: {_first_line(err)}.")
        return None
    if not isinstance(value, kind):
        notes.append(f"{file.name} holds a {type(value).__name__}, not a {kind.__name__}.")
        return None
    return value


def _mappings(value: object) -> tuple[Mapping[str, Any], ...]:
    """The mappings that have a name among a list's entries."""
    if not isinstance(value, list):
        return ()
    return tuple(entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("name"), str))


def _verdicts(
    directory: Path,
    parameters: polars.LazyFrame | None,
    outputs: polars.LazyFrame | None,
    table: Sequence[Mapping[str, Any]],
    notes: list[str],
) -> tuple[Verdict, ...] | None:
    """What the run itself found; where it was killed before it could, what its statistics say."""
    file = directory / "verdicts.json"
    if parameters is None or (file.is_file() and file.stat().st_mtime >= _newest(directory)):
        found = _json(file, list, notes)
        return (
            None if found is None else tuple(gravest_first(_verdict(each) for each in found if isinstance(each, dict)))
        )
    known = [row for row in table if isinstance(row.get("shape"), list) and {"trainable", "tied_to"} <= row.keys()]
    try:
        judged = verdicts(_rows(parameters, SCHEMA, "name"), _rows(outputs, OUTPUT_SCHEMA, "layer"), known)
    except polars.exceptions.PolarsError as err:
        notes.append(f"The statistics cannot be judged: {_first_line(err)}.")
        return None
    if not file.is_file():
        notes.append(f"There is no {file.name}: the verdicts are those of the statistics that there are.")
    return tuple(judged)


def _newest(directory: Path) -> float:
    """When the newest file of statistics was written."""
    return max((file.stat().st_mtime for file in (directory / "stats").rglob("*.parquet")), default=0.0)


def _rows(frame: polars.LazyFrame | None, schema: Mapping[str, polars.DataType], by: str) -> polars.DataFrame:
    """The rows to judge, with all columns but histograms; of a step that was repeated the last."""
    columns = {name: kind for name, kind in schema.items() if name != HISTOGRAM}
    if frame is None:
        return polars.DataFrame(schema=columns)
    there = frame.select(name for name in frame.collect_schema() if name in columns).collect()
    missing = [polars.lit(None, kind).alias(name) for name, kind in columns.items() if name not in there.columns]
    rows = there.with_columns(missing).cast(columns).drop_nulls(["step", by])  # type: ignore[arg-type]
    return rows.unique(["step", by, "member"], keep="last", maintain_order=True).sort("step", maintain_order=True)


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    names, numbers, step = entry.get("names"), entry.get("numbers"), number(entry.get("step"))
    return Verdict(
        kind=str(entry.get("kind", "")),
        severity=entry["severity"] if entry.get("severity") in SEVERITIES else "info",
        text=str(entry.get("text", "")),
        names=tuple(map(str, names)) if isinstance(names, list) else (),
        step=None if step is None else int(step),
        numbers=numbers if isinstance(numbers, dict) else {},
    )


def _model_file(config: str | None) -> str | None:
    """The sections of a config that make the model."""
    try:
        whole = yaml.safe_load(config or "")
    except yaml.YAMLError:
        return None
    if not isinstance(whole, dict) or not whole.get("model"):
        return None
    parts = {key: whole[key] for key in _PARTS_OF_MODEL if whole.get(key)}
    return yaml.safe_dump(parts, sort_keys=False, allow_unicode=True, width=120)


def _statistics(directory: Path, kind: str, notes: list[str], *, thorough: bool) -> polars.LazyFrame | None:
    """All readable files of a kind as one frame, whose columns are the union of theirs."""
    files = _numbered(directory / "stats" / kind)
    if kind == "parameters" and not files:
        files = _numbered(directory / "stats")  # where versions before 0.2 kept them
    frames = [frame for file in files if (frame := _scan(file, notes, thorough=thorough)) is not None]
    if not frames:
        notes.append(f"There are no statistics of {'layer outputs' if kind == 'outputs' else kind}.")
        return None
    return polars.concat(frames, how="diagonal_relaxed")


def _numbered(folder: Path) -> list[Path]:
    return sorted((file for file in folder.glob("*.parquet") if file.stem.isdecimal()), key=lambda file: int(file.stem))


def _scan(file: Path, notes: list[str], *, thorough: bool) -> polars.LazyFrame | None:
    try:
        columns = polars.read_parquet(file).schema if thorough else polars.read_parquet_schema(file)
    except (OSError, polars.exceptions.PolarsError) as err:
        notes.append(f"{file.parent.name}/{file.name} cannot be read: {_first_line(err)}.")
        return None
    return polars.scan_parquet(file) if "step" in columns and {"name", "layer"} & columns.keys() else None


def _first_line(err: Exception) -> str:
    return next(iter(str(err).splitlines()), type(err).__name__).rstrip(".")
