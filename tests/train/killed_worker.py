"""Fits that are killed while they train: `killed_worker.py DIR COUNT` leaves COUNT run directories.

In each, `told` holds the steps that were taken, a line each, which a kill does not lose.
"""

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from builder.stats.callback import ParameterStatistics

EVERY, FLUSH = 2, 3


class Lit(pl.LightningModule):
    """A small perceptron."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Tell(pl.Callback):
    """Stands behind the callback that records."""

    def __init__(self, file):
        self.file = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def on_train_batch_end(self, trainer, *given):
        os.write(self.file, f"{trainer.global_step}\n".encode())


def fit(run_dir):
    watch = ParameterStatistics(EVERY, FLUSH, max_overhead=None, directory=run_dir)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=-1, default_root_dir=run_dir, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watch, Tell(run_dir / "told")],
    )  # fmt: skip
    data = TensorDataset(torch.randn(64, 8), torch.randint(3, (64,)))
    trainer.fit(Lit(), DataLoader(data, batch_size=8))


def main(folder, count):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    moments = random.Random(0)
    for number in range(int(count)):
        run_dir = Path(folder) / str(number)
        run_dir.mkdir()
        child = os.fork()
        if not child:
            fit(run_dir)
            os._exit(1)
        while not (run_dir / "told").exists() or not (run_dir / "told").stat().st_size:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


if __name__ == "__main__":
    main(*sys.argv[1:])
