"""Progress of a run: a bar in a terminal, and elsewhere (a log file, a batch job) a line now and then.

A run that is interrupted, by Ctrl-C or an error, leaves a checkpoint to go on from. No state is saved whose trainable
weights or running statistics are not finite: it would stand where the last good one does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from builder.stats.guards import nonfinite_learned

SECONDS = 10.0  # between two lines
_LOST = "weights or running statistics are not finite"


def is_terminal() -> bool:
    """Whether the output goes to a terminal."""
    return sys.stdout.isatty()


def progress() -> pl.Callback:
    """The progress callback that suits where the output goes."""
    return RichProgressBar(leave=False) if is_terminal() else ProgressLines()


def is_sound(trainer: pl.Trainer) -> bool:
    """Whether weights and running statistics are finite in all processes, which have to ask together."""
    return trainer.strategy.reduce_boolean_decision(not nonfinite_learned(trainer.lightning_module))


class _SoundCheckpoint(ModelCheckpoint):
    """Saves nothing, and says so once, while a trainable weight is not finite."""

    _has_said = False

    def _save_topk_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if is_sound(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        elif trainer.is_global_zero and not self._has_said:
            self._has_said = True
            print(f"{self.filename}.ckpt: not saved at step {trainer.global_step}; {_LOST}", file=sys.stderr)


class BestCheckpoint(_SoundCheckpoint):
    """Keeps the best state; of its own class, for Lightning takes no two callbacks of one class and equal settings."""


class LastCheckpoint(_SoundCheckpoint):
    """Keeps the newest state: `save_last` copies what was saved last, which is the best (pytorch-lightning 2.6)."""


class SaveOnException(pl.Callback):
    """Saves a checkpoint when training stops on an exception, Ctrl-C among them, unless its weights are lost.

    Of several processes the first one saves, and waits for no other: it may be another that has failed, and is gone. A
    model whose parts are in several processes (FSDP and the like) is not saved for that reason.

    Args:
        file: Where it goes.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Saves, and says how to go on."""
        if not (trainer.training and trainer.global_step and trainer.is_global_zero):
            return
        stopped = f"stopped at step {trainer.global_step}"
        if trainer.world_size > 1 and type(trainer.strategy) is not DDPStrategy:  # DeepSpeed's is derived from it
            print(f"{stopped}; its parts are in several processes: not saved", file=sys.stderr)
        elif nonfinite_learned(pl_module):
            print(f"{stopped}; {_LOST}: not saved", file=sys.stderr)
        else:  # `Trainer.save_checkpoint`, but for its barrier
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(), self.file)
            print(f"{stopped}; go on with ckpt_path={self.file}", file=sys.stderr)


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
