"""Trainings that take turns: each is a process of its own that makes a step, and rests while the others make theirs.

What else the machine does, and the speed at which it runs, then falls on the same steps of all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytorch_lightning as pl

from benchmarks.figures import CONF, say

_LINES = 20  # of a failed training's output
_SECONDS = 30.0  # between two lines of progress


class InTurn(pl.Callback):
    """Makes a step when a line comes, and answers with its seconds; when no more lines can come, trains on.

    A step is all from the end of one batch to the end of the next, what the loggers and other callbacks do among it.

    Args:
        turn: File descriptor that the lines come from.
        answer: File descriptor that the seconds go to.
    """

    def __init__(self, turn: int, answer: int) -> None:
        self._turn, self._answer = os.fdopen(turn), os.fdopen(answer, "w")
        self._began = 0.0
        self._goes_on = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits for the first turn."""
        self._wait()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Answers, and waits for the next turn."""
        if not self._goes_on:
            print(time.perf_counter() - self._began, file=self._answer, flush=True)
            self._wait()

    def _wait(self) -> None:
        self._goes_on = not self._turn.readline()
        self._began = time.perf_counter()


class Training:
    """A process of `train.py` that trains in turns.

    Args:
        overrides: Its command line.
        folder: Where its run directory and its output go.

    Raises:
        SystemExit: On leaving the context or in a step, where the process has failed; with the end of its output.
    """

    def __init__(self, overrides: Sequence[str], folder: Path) -> None:
        folder.mkdir()
        self._log = folder / "output.txt"
        theirs_in, self._turn = os.pipe()
        answers, theirs_out = os.pipe()
        turns = {"_target_": "benchmarks.turns.InTurn", "turn": theirs_in, "answer": theirs_out}
        command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={folder / 'run'}"]
        command += [f"+callbacks.in_turn.{key}={value}" for key, value in turns.items()]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=CONF.parent, pass_fds=(theirs_in, theirs_out), stdout=log, stderr=subprocess.STDOUT
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._answers = os.fdopen(answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._turn)
        self._answers.close()
        if kind is not None:
            self._process.terminate()
        if self._process.wait() and kind is None:
            self._fail()

    def step(self) -> float:
        """Seconds of its next step."""
        os.write(self._turn, b"\n")
        answer = self._answers.readline()
        return float(answer) if answer else self._fail()

    def _fail(self) -> float:
        lines = self._log.read_text(encoding="utf-8").splitlines()
        raise SystemExit("\n".join(["a training has failed:", *lines[-_LINES:]]))


def in_turns(trainings: Sequence[Sequence[str]], steps: int, folder: Path) -> list[list[float]]:
    """Seconds of each step of trainings that take turns, step by step (A B B A).

    Args:
        trainings: The overrides of each.
        steps: How many each makes in turn.
        folder: Where their run directories go.
    """
    with ExitStack() as stack:
        running = [
            stack.enter_context(Training(overrides, folder / str(number))) for number, overrides in enumerate(trainings)
        ]
        seconds: list[list[float]] = [[] for _ in running]
        order, said = [*enumerate(running)], time.monotonic()
        for step in range(steps):
            for number, training in order:
                seconds[number].append(training.step())
            order.reverse()
            if time.monotonic() - said > _SECONDS:
                said = time.monotonic()
                say(f"step {step + 1} of {steps}")
    return seconds
