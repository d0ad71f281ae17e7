"""The Lightning callback that watches parameters while they train.

It only looks (law L10): it draws no random number and writes to no parameter, gradient or optimizer state, and a
logged step waits for the device once.

Which gradient: the one that Lightning hands to `on_before_optimizer_step`. In pytorch-lightning 2.6
(`plugins/precision/precision.py`, `_after_closure`) this is after gradient accumulation, after DDP has averaged and
after a loss scaler has unscaled, and *before* gradient clipping. The update is what the optimizer did with the
clipped gradient. Under LBFGS, which evaluates the gradient several times a step, it is the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.optim import Optimizer

from builder.errors import BuilderError, Problem, did_you_mean, raise_all
from builder.names import Selector
from builder.stats.columns import MEASURES, Columns
from builder.stats.record import Recorder, chosen_parameters
from builder.stats.store import Store


class ParameterStatistics(pl.Callback):
    """Records the statistics of `pl_module.model`'s parameters at each step that is a multiple of `every_n_steps`.

    A step is an optimizer step, numbered as `trainer.global_step` stands after it: batches that only accumulate do
    not count. All measures go to the store in the run directory, `tensorboard` of them to TensorBoard loggers under
    `measure/name`; other loggers get nothing, since they keep a column for each name. Under DDP only rank 0 records.

    Args:
        every_n_steps: Distance of logged steps.
        flush_every: Logged steps per file of the store.
        select: Selector of the parameters, as in a model file's rules; all of them when not given.
        directory: The run directory; the trainer's `default_root_dir` when not given.
        tensorboard: Measures that TensorBoard gets.

    Raises:
        BuilderError: On a bad argument at once, on a selector that matches nothing when the fit starts.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        flush_every: int = 10,
        select: Mapping[str, Any] | None = None,
        directory: str | Path | None = None,
        tensorboard: Sequence[str] = ("rms", "gradient_rms", "update_ratio"),
    ) -> None:
        raise_all(
            "statistics",
            [
                *_whole_number_problems("every_n_steps", every_n_steps),
                *_whole_number_problems("flush_every", flush_every),
                *_measure_problems(tensorboard),
            ],
        )
        self._every = every_n_steps
        self._flush_every = flush_every
        self._selector = _selector({} if select is None else select)
        self._directory = directory
        self._tensorboard = tuple(tensorboard)
        self._recorder: Recorder | None = None
        self._store: Store | None = None
        self._pending: int | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the parameters and opens the store."""
        model = getattr(pl_module, "model", None)
        assert isinstance(model, nn.Module), "statistics watch pl_module.model, which is not a module"
        chosen = chosen_parameters(model, self._selector)
        self._pending = None
        if trainer.is_global_zero:
            self._recorder = Recorder(chosen)
            run_dir = trainer.default_root_dir if self._directory is None else self._directory
            self._store = Store(Path(run_dir), self._flush_every)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Arms the recorder where the coming step is to be logged."""
        self._finish_pending(trainer)  # manual optimization makes several steps a batch
        step = trainer.global_step + 1
        if self._recorder is not None and step % self._every == 0 and step != self._pending:
            self._recorder.before_step()
            self._pending = step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the step that this batch took, where it is logged."""
        self._finish_pending(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes what waits: a run resumed from this checkpoint finds all statistics up to it."""
        self._flush()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what waits and lets go of the copies of the weights."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes what waits: the steps before a failure are the ones to look at."""
        self._close()

    def _finish_pending(self, trainer: pl.Trainer) -> None:
        if self._pending is None or trainer.global_step < self._pending:
            return
        assert self._recorder is not None and self._store is not None, "only a recording rank has a pending step"
        columns = self._recorder.after_step(self._pending, trainer.current_epoch)
        self._store.append(columns)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for logger in loggers:
            logger.log_metrics(_scalars(columns, self._tensorboard), step=self._pending)
        self._pending = None

    def _flush(self) -> None:
        if self._store is not None:
            self._store.flush()

    def _close(self) -> None:
        self._flush()
        self._recorder = self._pending = None


def _scalars(columns: Columns, measures: Sequence[str]) -> dict[str, Any]:
    """Values by `measure/name`, without nulls."""
    return {
        f"{measure}/{name}": value
        for measure in measures
        for name, value in zip(columns["name"], columns[measure], strict=True)
        if value is not None
    }


def _selector(select: Mapping[str, Any]) -> Selector:
    plain = OmegaConf.to_container(select, resolve=True) if isinstance(select, DictConfig) else dict(select)
    try:
        return Selector.model_validate(plain)
    except ValidationError as err:
        problems = [_field_problem(error["loc"], error["msg"], error["input"]) for error in err.errors()]
        raise BuilderError("statistics", problems) from err


def _field_problem(location: tuple[int | str, ...], message: str, given: object) -> Problem:
    fields = [field.alias or name for name, field in Selector.model_fields.items()]
    name = str(location[0])
    hint = "" if name in fields else did_you_mean(name, fields)
    return Problem(f"stats.select.{name}", f"{message}, given {given!r}", hint)


def _whole_number_problems(name: str, value: object) -> list[Problem]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return []
    return [Problem(f"stats.{name}", f"must be a whole number of at least 1, given {value!r}")]


def _measure_problems(measures: Sequence[str]) -> list[Problem]:
    if isinstance(measures, str):
        return [Problem("stats.tensorboard", f"must be a list of measures, given {measures!r}", f"[{measures}]")]
    return [
        Problem("stats.tensorboard", f"unknown measure {measure!r}", did_you_mean(measure, MEASURES))
        for measure in measures
        if measure not in MEASURES
    ]
