"""The Lightning callback that watches parameters while they train.

It only looks (law L10): it draws no random number and writes to no parameter, gradient or optimizer state, and a
logged step waits for the device once, or once for each optimizer where several step in one batch.

Which gradient: the one that Lightning hands to `on_before_optimizer_step`. In pytorch-lightning 2.6
(`plugins/precision/precision.py`, `_after_closure`) this is after gradient accumulation, after DDP has averaged and
after a loss scaler has unscaled, and *before* gradient clipping. The clipped gradient is what the parameters hold once
the optimizer has stepped. In manual optimization the gradient is the one that `step()` finds: where the module has
called `self.clip_gradients` before it, that is the clipped one. Under LBFGS, which evaluates the gradient several times
a step, the gradient is the first.

Where a module has several optimizers (manual optimization, as of a GAN), a batch is logged as a whole, under the number
of the last step in it that is due: the outputs of all its forwards; each gradient as it was when the optimizer of that
parameter first stepped in the batch; each update from there to the end of the batch. Of parameters whose optimizer did
not step in the batch the weights alone are recorded. One optimizer that steps several times in a batch has each step
logged by itself; of those logged in one batch the first alone has outputs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer

from builder.errors import BuilderError, Problem, raise_all
from builder.initialize.shards import is_shard
from builder.module import uncompiled
from builder.stats.budget import Budget
from builder.stats.columns import COUNTS, Columns
from builder.stats.distance import Start, drawn_by
from builder.stats.outputs import OutputWatch
from builder.stats.parts import alone, gather_all
from builder.stats.record import Recorder, Slower
from builder.stats.recorders import Recorders
from builder.stats.settings import check_outputs, faults, parameters_of, selector
from builder.stats.store import Store, take_back
from builder.stats.verdicts import listed

_log = logging.getLogger(__name__)
_MLFLOW_BATCH = 500  # mlflow takes 1000 values at a time
_SAVED = "drawn_parameters"  # in a checkpoint
TO_LOGGERS = ("rms", "gradient_rms", "update_ratio")


class ParameterStatistics(pl.Callback):
    """Records the statistics of `pl_module.model` at each step that is a multiple of `every_n_steps`.

    A step is an optimizer step, numbered as `trainer.global_step` stands after it: batches that only accumulate do
    not count. All measures go to the store in the run directory; `to_loggers` of them go to the TensorBoard, wandb and
    mlflow loggers under `measure/name`. Other loggers get nothing, since they keep a column for each name. Of several
    processes the first one writes.

    A second fit of the same parameters with the same object goes on: distances stay those from the start of the first
    fit. What the directory holds of later steps than the one at which a fit begins is removed, so that a fit from step
    0 begins anew, and one from a checkpoint goes on from there. `cost` and `stats/cost.json` add up over the fits that
    went on.

    Several of these may watch one fit, each into a directory of its own.

    Attributes:
        nonfinite: The newest logged step, and how many values of its weights and of its gradients were not finite, by
            name, without zeros; the same in all processes. None where of several processes only the first one records,
            and where some parameters are not watched.

    Args:
        every_n_steps: Distance of logged steps.
        flush_every: Logged steps per file of the store.
        select: Selector of the parameters, as in a model file's rules; all of them when not given.
        directory: The run directory; the trainer's `default_root_dir` when not given.
        to_loggers: Measures that loggers get.
        outputs: Globs over the paths of layers whose outputs are measured; null: none.
        slower_every: Of how many logged steps one has the slower measures, those below; the first and last have them.
        distance: Whether distance and cosine from the initial values are measured.
        spectral_norm: Whether largest singular values are.
        effective_rank: The greatest smaller side of a matrix whose effective rank is; null: of none.
        max_overhead: The share of the time that all this may take; where it takes more, the distance of logged steps
            doubles. Null: any.
        stacked: Whether the first axis of every parameter counts members of a stacked model.

    Raises:
        BuilderError: On a bad argument at once; when the fit starts, on a selector or a glob that matches nothing, on
            a module without a `model`, on parameters that are not stacked though `stacked` says so, on a directory that
            another callback writes to, and on files in it that cannot be read.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        flush_every: int = 10,
        select: Mapping[str, Any] | None = None,
        directory: str | Path | None = None,
        to_loggers: Sequence[str] = TO_LOGGERS,
        outputs: str | Sequence[str] | None = "*",
        slower_every: int = 10,
        distance: bool = True,
        spectral_norm: bool = False,
        effective_rank: int | None = None,
        max_overhead: float | None = 0.02,
        stacked: bool = False,
    ) -> None:
        raise_all(
            "statistics",
            faults(
                every_n_steps=every_n_steps,
                flush_every=flush_every,
                select=select,
                directory=directory,
                to_loggers=to_loggers,
                outputs=outputs,
                slower_every=slower_every,
                distance=distance,
                spectral_norm=spectral_norm,
                effective_rank=effective_rank,
                max_overhead=max_overhead,
                stacked=stacked,
            ),
        )
        self._every = every_n_steps
        self._flush_every = flush_every
        self._selector = selector(select)
        self._directory = directory
        self._to_loggers = tuple(to_loggers)
        self._patterns = None if outputs is None or stacked else outputs if isinstance(outputs, str) else tuple(outputs)
        self._slower_every = slower_every
        self._distance, self._spectral_norm, self._effective_rank = distance, spectral_norm, effective_rank
        self._max_overhead = max_overhead
        self._stacked = stacked
        self._budget = Budget(every_n_steps, max_overhead, slower_every)
        self.nonfinite: tuple[int, Mapping[str, int], Mapping[str, int]] | None = None
        self._recorder: Recorders | None = None
        self._outputs: OutputWatch | None = None
        self._start: Start | None = None
        self._chosen: dict[str, nn.Parameter] = {}
        self._saved: list[str] | None = None
        self._store: Store | None = None
        self._pending: int | None = None
        self._end: float | None = None
        self._first, self._most, self._is_ahead, self._together = 0, 1, False, False
        self._gathered = False
        self._clock = (0.0, 0.0, 0.0)
        self._spent = self._began = 0.0
        self._taken = 0
        self._booked = (0, 0.0)
        self._before: Mapping[str, Any] | None = None
        self._cost: Mapping[str, Any] = self._budget.account(0.0)

    # ---- the fit ---------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the parameters; what can be wrong with the settings is told here."""
        model = _model(pl_module)
        self._chosen = chosen = parameters_of(model, self._selector)
        raise_all("statistics", [*self._unstacked(), *shared_directories(trainer)])
        several = trainer.world_size > 1
        self._pending = self._recorder = None
        self._budget = Budget(self._every, self._max_overhead, self._slower_every)
        self._cost = self._budget.account(0.0)
        self._outputs = self._output_watch(trainer, pl_module, model)
        self._gathered = several and (self._outputs is not None or any(map(is_shard, chosen.values())))
        self._end = None
        self._spent, self._taken = 0.0, 0
        counts_all = (self._gathered or not several) and len(chosen) == len(list(model.parameters()))
        self.nonfinite = (0, {}, {}) if counts_all else None
        self._began = time.perf_counter()

    def _unstacked(self) -> list[Problem]:
        """What is wrong with the first axes of parameters that are said to be stacked."""
        if not self._stacked:
            return []
        members = {name: len(p) if p.ndim else 0 for name, p in self._chosen.items()}
        first, most = next(((name, n) for name, n in members.items() if n), ("", 0))
        odd = {name: f"{n} members, '{first}' has {most}" for name, n in members.items() if n != most}
        odd |= {name: "no first axis" for name, n in members.items() if not n}
        hint = "leave it out with stats.select.except, or watch without stacked"
        return [Problem("stats.stacked", f"'{name}' has {what}", hint) for name, what in odd.items()]

    def run_dir(self, trainer: pl.Trainer) -> Path:
        """Where this writes in a fit of a trainer."""
        return Path(trainer.default_root_dir if self._directory is None else self._directory)

    def _start_of(self, trainer: pl.Trainer, model: nn.Module) -> Start:
        """Initial values. Of a checkpoint without statistics those are drawn again that can be."""
        resumed = None if trainer.ckpt_path is None else [*self._chosen] if self._saved is None else self._saved
        self._saved = None
        if resumed is None and self._start is not None and self._start.is_of(self._chosen):
            return self._start
        rank = trainer.global_rank
        return Start(self._chosen, drawn_by(model), rank=rank, stacked=self._stacked, resumed=resumed)

    def _recorder_of(self, rank: int, parameters: Mapping[str, nn.Parameter]) -> Recorder:
        return Recorder(
            parameters,
            stacked=self._stacked,
            slower=Slower(self._start, self._spectral_norm, self._effective_rank),
            outputs=self._outputs,
            rank=rank,
            gather=gather_all if self._gathered else alone,
        )

    def _output_watch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, model: nn.Module) -> OutputWatch | None:
        if self._patterns is None:
            return None
        if not any(hasattr(module, "_orig_mod") for module in model.modules()):  # the paths are those of the source
            check_outputs(model, self._patterns)
        compiled = next((path for path, module in pl_module.named_modules() if _is_compiled(module)), None)
        if compiled is None:
            return OutputWatch(model, self._patterns)
        if trainer.is_global_zero:
            place = compiled or type(pl_module).__name__
            _log.warning("outputs of layers are not measured: %s is compiled, and a hook would compile it again", place)
        return None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the store at the step at which the fit begins: a checkpoint has set that now, and the weights."""
        rank, model = trainer.global_rank, _model(pl_module)
        if self._gathered or rank == 0:
            self._start = self._start_of(trainer, model) if self._distance else None
            optimizers = trainer.optimizers if len(trainer.optimizers) > 1 else []
            self._together, self._most = bool(optimizers), max(len(optimizers), 1)
            self._recorder = Recorders(self._chosen, optimizers, partial(self._recorder_of, rank))
        if rank == 0:
            take_back(self.run_dir(trainer), trainer.global_step)
            self._store = Store(self.run_dir(trainer), self._flush_every)
            self._before = self._store.read_cost()
            if self._start is not None and self._start.words():
                _log.info(self._start.words())
        self._first = trainer.global_step
        self._budget.begin(self._first)
        self._booked = (self._first, time.perf_counter())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Adds the hooks where a step of this batch is to be logged, as far as earlier batches show how many it has."""
        self._is_ahead = self._recorder is not None and self._budget.is_due_within(trainer.global_step, self._most)
        if self._is_ahead and self._outputs is not None and not self._outputs.is_attached:
            self._outputs.attach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Arms the recorder where the coming step is to be logged."""
        if not self._together:
            self._finish_pending(trainer, pl_module)  # manual optimization may make several steps a batch
        step = trainer.global_step + 1
        if self._recorder is None or step == self._pending:
            return
        if self._is_ahead if self._together else self._budget.is_due(step):
            started = time.perf_counter()
            self._recorder.before_step(optimizer)
            self._pending = step
            if self._outputs is not None and not self._together:
                self._outputs.detach()  # what runs from here on belongs to a later step
            self._spent += time.perf_counter() - started
        elif self._outputs is not None and self._outputs.is_attached:
            self._outputs.take()  # of an earlier step of this batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the step that this batch took, where it is logged."""
        self._finish_pending(trainer, pl_module)
        if self._outputs is not None and self._outputs.is_attached and trainer.global_step > self._first:
            self._outputs.detach()
            self._outputs.take()
        self._most = max(self._most, trainer.global_step - self._first)
        self._taken += trainer.global_step - self._first
        self._first = trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluation, which may begin between the batches of one step, is not watched."""
        if self._outputs is not None:
            self._outputs.paused = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on."""
        if self._outputs is not None:
            self._outputs.paused = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what waits and lets go of the copies of the weights."""
        if self._recorder is not None and self._budget.steps and self._recorder.uncaught and trainer.is_global_zero:
            _log.warning(
                "no logged batch had a step of the optimizer of %s: where optimizers take turns by batch, choose a "
                "stats.every_n_steps that has no factor in common with their number",
                listed(self._recorder.uncaught),
            )
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes what waits: the steps before a failure are the ones to look at."""
        self._close()

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes what waits: a run resumed from this checkpoint finds all statistics up to it.

        The checkpoint holds the names whose initial values are drawn again, as a resumed run cannot see from its
        weights. They are those of all such callbacks, whose directories may be others then.
        """
        self._flush()
        if self._start is not None:
            checkpoint[_SAVED] = sorted({*checkpoint.get(_SAVED, ()), *self._start.drawn})

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes what `on_save_checkpoint` gave."""
        self._saved = checkpoint.get(_SAVED)

    # ---- cost ------------------------------------------------------------------------------------------------------

    @property
    def cost(self) -> Mapping[str, Any]:
        """What watching has cost up to the last flush, as `stats/cost.json` holds it (`Budget.account`)."""
        return self._cost

    def words(self) -> str:
        """The same as a line of text; of a fit that was too short for a logged step, that it was."""
        cost = self.cost
        if not self._budget.steps and self._taken < self._every:
            took = f"{self._taken} step{'' if self._taken == 1 else 's'}"
            return f"no step was logged: the fit took {took}, fewer than stats.every_n_steps={self._every}"
        return (
            f"statistics of {cost['steps_logged']} steps took {cost['seconds']:.2f} s, {cost['share']:.1%} of the fit"
        )

    # ---- within ----------------------------------------------------------------------------------------------------

    def _finish_pending(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._pending is None or trainer.global_step < self._pending:
            return
        assert self._recorder is not None, "only a recording process has a pending step"
        step, started, hooks = self._pending, time.perf_counter(), 0.0
        if self._together:
            step = self._budget.last_due(trainer.global_step)
        self._pending = None
        if self._outputs is not None:
            hooks = self._outputs.seconds
            if not self._together:
                self._outputs.detach()
        if not self._recorder.is_armed or (self._together and step <= self._first):
            self._recorder.forget()  # the batch made fewer steps than those before it, or none that is watched
            return
        more = self._budget.steps % self._slower_every == 0 or self._is_last(step, trainer)
        clips = _clips(trainer, pl_module)
        recorded = self._recorder.after_step(step, trainer.current_epoch, more=more, clips=clips, clock=self._clock)
        if self.nonfinite is not None:
            weights, gradients = [_counted(recorded.parameters, measure) for measure in COUNTS]
            self.nonfinite = step, weights, gradients
        if self._store is not None:
            self._store.append(recorded.parameters, recorded.outputs)
            self._send(trainer, recorded.parameters, step)
        said = self._budget.weigh(step, *recorded.clock)
        if said and trainer.is_global_zero:
            _log.warning(said)
        ended, extra = time.perf_counter(), self._recorder.extra_seconds
        seconds, self._spent = self._spent + hooks + ended - started, 0.0
        self._budget.book(seconds)
        last, self._booked = self._booked, (step, ended)
        rest = (ended - last[1] - seconds) / max(step - last[0], 1)
        self._clock = (seconds - extra, extra, rest)

    def _is_last(self, step: int, trainer: pl.Trainer) -> bool:
        """Whether the fit ends before the next logged step; of one without an end that is known beforehand, never."""
        if self._end is None:
            self._end = trainer.estimated_stepping_batches
            if self._gathered:  # all processes measure the same, or wait for each other for ever
                self._end = trainer.strategy.broadcast(self._end)
        return step <= self._end < step + self._budget.every

    def _send(self, trainer: pl.Trainer, columns: Columns, step: int) -> None:
        values = scalars(columns, self._to_loggers)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger | WandbLogger):
                logger.log_metrics(values, step=step)
            elif isinstance(logger, MLFlowLogger):
                pairs = list(values.items())
                for first in range(0, len(pairs), _MLFLOW_BATCH):
                    logger.log_metrics(dict(pairs[first : first + _MLFLOW_BATCH]), step=step)

    def _flush(self) -> None:
        if self._store is not None:
            started = time.perf_counter()
            self._store.flush()
            self._budget.seconds += time.perf_counter() - started
            self._cost = self._budget.account(time.perf_counter() - self._began, self._before)
            self._store.write_cost(self._cost)

    def _close(self) -> None:
        if self._outputs is not None:
            self._outputs.detach()
        self._flush()
        self._recorder = self._pending = self._store = None


def shared_directories(trainer: pl.Trainer) -> list[Problem]:
    """The directories to which more than one of a trainer's callbacks would write statistics."""
    callbacks = cast(list[pl.Callback], trainer.callbacks)  # type: ignore[attr-defined]
    found = [each.run_dir(trainer).resolve() for each in callbacks if isinstance(each, ParameterStatistics)]
    hint = "give each a directory of its own, or choose all parameters in one"
    return [
        Problem("stats.directory", f"more than one callback would write statistics to {directory}", hint)
        for directory in dict.fromkeys(found)
        if found.count(directory) > 1
    ]


def _model(pl_module: pl.LightningModule) -> nn.Module:
    model = getattr(pl_module, "model", None)
    if not isinstance(model, nn.Module):
        what = f"is no torch module, given {type(model).__name__}: statistics are of the attribute 'model'"
        hint = "name the network that trains self.model"
        raise BuilderError("statistics", [Problem(f"{type(pl_module).__name__}.model", what, hint)])
    return uncompiled(model)


def _counted(columns: Columns, measure: str) -> dict[str, int]:
    """Counts that are not 0, by name, over all members."""
    found: dict[str, int] = {}
    for name, count in zip(columns["name"], columns[measure], strict=True):
        if count:
            found[str(name)] = found.get(str(name), 0) + int(cast(int, count))
    return found


def _is_compiled(module: nn.Module) -> bool:
    """Whether by `module.compile()` or by `torch.compile(module)`."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


def _clips(trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
    return bool(trainer.gradient_clip_val) or is_overridden("configure_gradient_clipping", pl_module)


def scalars(columns: Columns, measures: Sequence[str]) -> dict[str, Any]:
    """What loggers get: values by `measure/name`, of a stacked model by `measure/name/member`, without nulls."""
    return {
        f"{measure}/{name}" if member is None else f"{measure}/{name}/{member}": value
        for measure in measures
        for name, member, value in zip(columns["name"], columns["member"], columns[measure], strict=True)
        if value is not None
    }
