"""The results table and the report at the end of a multirun, as a Hydra callback.

Hydra ends a sweep in silence, with as many run directories as there were jobs. Named under `hydra.callbacks`, this
prints their table and writes it, and a report, beside them. It runs in the process that launched the jobs, without
torch. Hydra turns an exception of a callback into a warning, so what cannot be tabulated is printed instead.
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from builder.errors import BuilderError
from builder.report.write import write_report
from builder.sweep.results import metric_of_test, read_runs, render, summarise, write_csv

WIDTH = 160  # in a file or a pipe, where rich would take 80 and fold the numbers


class ResultsTable(Callback):
    """Prints the results of a multirun, best first; `results.csv`, `runs.csv` and `report.html` go into its directory.

    Args:
        metric: Metric to rank by; the test metric of the name in the config's `monitor` where not given.
        mode: `max` or `min`; the config's `mode` where not given.
        others: Further metrics to show.
    """

    def __init__(self, metric: str | None = None, mode: str | None = None, others: tuple[str, ...] = ()) -> None:
        self.metric, self.mode, self.others = metric, mode, tuple(others)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Reads the sweep directory, prints and writes."""
        metric = metric_of_test(config.monitor) if self.metric is None else self.metric
        mode = config.mode if self.mode is None else self.mode
        console = Console()
        if not console.is_terminal:
            console.width = WIDTH
        try:
            runs = read_runs(config.hydra.sweep.dir)
            groups = summarise(runs, metric, mode)
        except BuilderError as error:
            console.print(str(error), style="red", markup=False, highlight=False)
            return
        results, _ = write_csv(config.hydra.sweep.dir, runs, groups)
        console.print(render(groups, metric, self.others))
        report = write_report(config.hydra.sweep.dir, ranking=(metric, mode))
        console.print(f"written to {results} and {report.name}", markup=False, highlight=False, soft_wrap=True)
