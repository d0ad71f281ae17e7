"""Writing a report: of a run, or of a sweep, whichever a directory holds."""

from __future__ import annotations

from pathlib import Path

from builder.errors import BuilderError, Problem
from builder.report.page import REPORT, run_page
from builder.report.read import is_run
from builder.report.sweep import sweep_page
from builder.whole import refused, write_text


def write_report(directory: str | Path, file: str | Path | None = None, ranking: tuple[str, str] | None = None) -> Path:
    """Writes the report of a run directory, or of a sweep's, whole or not at all.

    Args:
        directory: What a run or a multirun wrote.
        file: Where to; `report.html` in the directory when not given.
        ranking: The metric to rank a sweep by, and `max` or `min`; what its configs monitor when not given.

    Returns:
        The file.

    Raises:
        BuilderError: The directory holds neither a run nor a sweep, or the file cannot be written.
    """
    root = Path(directory)
    if not root.is_dir():
        raise BuilderError(
            "report", [Problem(str(root), "is not a directory", "name the directory of a run or of a sweep")]
        )
    target = root / REPORT if file is None else Path(file)
    text = run_page(root) if is_run(root) else sweep_page(root, ranking)
    with refused("report", target, "give another place by --output FILE"):
        write_text(target, text)
    return target
