"""Progress of a run: a bar in a terminal, and elsewhere (a log file, a batch job) a line now and then.

A run that is interrupted, by Ctrl-C or an error, leaves a checkpoint to go on from.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar

SECONDS = 10.0  # between two lines


def is_terminal() -> bool:
    """Whether the output goes to a terminal."""
    return sys.stdout.isatty()


def progress() -> pl.Callback:
    """The progress callback that suits where the output goes."""
    return RichProgressBar(leave=False) if is_terminal() else ProgressLines()


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best state; of its own class, for Lightning takes no two callbacks of one class and equal settings."""


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest state: `save_last` copies what was saved last, which is the best (pytorch-lightning 2.6)."""


class SaveOnException(pl.Callback):
    """Saves a checkpoint when training stops on an exception, Ctrl-C among them, unless its weights are lost.

    Args:
        file: Where it goes.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Saves, and says how to go on."""
        if not (trainer.training and trainer.global_step):
            return
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            print(f"stopped at step {trainer.global_step}; its weights are not finite: not saved", file=sys.stderr)
        else:
            trainer.save_checkpoint(self.file)
            print(f"stopped at step {trainer.global_step}; go on with ckpt_path={self.file}", file=sys.stderr)


class ProgressLines(pl.Callback):
    """Prints epoch, step and the metrics of the progress bar, at most every `SECONDS` seconds, and at the end."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A line after an epoch, if it is time for one."""
        if time.monotonic() - self._last >= SECONDS:
            self._print(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last line."""
        self._print(trainer)

    def _print(self, trainer: pl.Trainer) -> None:
        self._last = time.monotonic()
        metrics = "  ".join(
            f"{name} {float(value):.4f}"
            for name, value in sorted(trainer.progress_bar_metrics.items())
            if name != "v_num"
        )
        print(f"epoch {trainer.current_epoch}  step {trainer.global_step}  {metrics}", flush=True)
