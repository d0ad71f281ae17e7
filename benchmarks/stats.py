"""What watching costs: statistics over plain passes, over the obvious ways, and over a training run without them.

Each pair does both things in turn (A B B A), so that whatever else the machine does falls on both. A pair is two
neighbouring turns, its ratio that of their times, and the figure the median over all pairs.

- `sum`: the base set of weights (mean, std, rms, min, max, l2, zeros, non-finite; on the host at the end) of GPT-2's
  124 M values, over one `sum` of each of the same tensors.
- `loop`: the obvious loop for the same set, `.item()` after each measure, over the base set.
- `add_histogram`: TensorBoard's, of all tensors, over the base set.
- `wandb`: the time that a step of GPT-2 takes longer while `wandb.watch(log="all", log_freq=1)` logs it, offline, over
  the same for what `ParameterStatistics` does by default, the values that it hands to wandb among it (what comes with
  every tenth logged step counts a tenth).
- `training`: the recipe char_gpt with everything on (also spectral norms and effective ranks), one step in 50 logged,
  over the same with `stats=none`: two processes of `train.py` that make their steps in turn, since a machine's speed
  may differ more between two stretches of 50 steps than a logged step costs. A pair is 50 steps of either, with a
  logged one in the middle. Those whose logged step has the slower measures as well are set apart: what these take is
  added by a tenth to each of the others.

The process ends with 1 where a figure is beyond its limit.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

import builder
from benchmarks.figures import CONF, Figure, figure, pairs_of, run
from benchmarks.turns import in_turns
from builder.stats.callback import TO_LOGGERS, scalars
from builder.stats.distance import Start, drawn_by
from builder.stats.measure import weight_measures, weight_sums
from builder.stats.outputs import OutputWatch
from builder.stats.record import Recorder, Slower
from builder.stats.store import Store

MOST_SUMS = 5.0  # times one sum over the same tensors
LEAST_LOOP = 5.0
LEAST_HISTOGRAM = 50.0
LEAST_WANDB = 15.0
MOST_TRAINING = 1.02
EVERY = 50
SLOWER_EVERY = 10
BATCH = 32


# ---- the base set --------------------------------------------------------------------------------------------------


def weights() -> list[Tensor]:
    """Tensors of GPT-2's shapes, with values as they are drawn."""
    return [parameter.detach() for parameter in builder.build(CONF / "model" / "gpt2.yaml").parameters()]


def base_set(tensors: Sequence[Tensor]) -> list[list[float]]:
    found: list[list[float]] = weight_measures(weight_sums(tensors)).tolist()
    return found


def obvious_loop(tensors: Sequence[Tensor]) -> list[list[float]]:
    return [
        [
            tensor.mean().item(),
            tensor.std(correction=0).item(),
            tensor.square().mean().sqrt().item(),
            tensor.min().item(),
            tensor.max().item(),
            tensor.norm().item(),
            (tensor == 0).float().mean().item(),
            (~torch.isfinite(tensor)).sum().item(),
        ]
        for tensor in tensors
    ]


def over_sum(pairs: int) -> Figure:
    tensors = weights()
    found = pairs_of(lambda: base_set(tensors), lambda: [tensor.sum() for tensor in tensors], pairs)
    return figure("sum", found, MOST_SUMS)


def over_loop(pairs: int) -> Figure:
    tensors = weights()
    found = pairs_of(lambda: base_set(tensors), lambda: obvious_loop(tensors), pairs)
    return figure("loop", found, LEAST_LOOP, at_least=True)


def over_add_histogram(pairs: int) -> Figure:
    tensors = weights()
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)

        def theirs() -> None:
            for number, tensor in enumerate(tensors):
                writer.add_histogram(str(number), tensor, 0)

        found = pairs_of(lambda: base_set(tensors), theirs, pairs)
        writer.close()
    return figure("add_histogram", found, LEAST_HISTOGRAM, at_least=True)


# ---- one logged step -----------------------------------------------------------------------------------------------


class Steps:
    """Steps of GPT-2 on a short text: plain, watched by wandb, and recorded."""

    def __init__(self, folder: Path) -> None:
        import wandb  # noqa: PLC0415 (an extra, and only this figure needs it)

        os.environ["WANDB_SILENT"] = "true"
        self.model = builder.build(CONF / "model" / "gpt2.yaml")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.ids = torch.randint(50257, (1, 33), generator=torch.Generator().manual_seed(0))
        self.run = wandb.init(mode="offline", dir=str(folder), project="benchmark")
        chosen = dict(self.model.named_parameters())
        self.outputs = OutputWatch(self.model, "*")
        slower = Slower(Start(chosen, drawn_by(self.model)))
        self.recorder = Recorder(chosen, slower=slower, outputs=self.outputs)
        self.store = Store(folder, flush_every=10)

    def plain(self, before: Callable[[], object] = lambda: None) -> float:
        """Seconds of a step; `before` is called before the optimizer moves the weights."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        logits = self.model(self.ids[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), self.ids[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        before()
        self.optimizer.step()
        return time.perf_counter() - started

    def by_wandb(self) -> float:
        """Seconds of a step that wandb logs."""
        self.run.watch(self.model, log="all", log_freq=1)
        seconds = self.plain()
        started = time.perf_counter()
        self.run.log({"loss": 0.0})
        seconds += time.perf_counter() - started
        self.run.unwatch(self.model)
        return seconds

    def recorded(self, *, more: bool = False) -> float:
        """Seconds of a step that is recorded; `more`: with what comes every tenth time."""
        started = time.perf_counter()
        self.outputs.attach()
        self.plain(self.recorder.before_step)
        self.outputs.detach()
        found = self.recorder.after_step(1, 0, more=more)
        self.store.append(found.parameters, found.outputs)
        self.run.log(scalars(found.parameters, TO_LOGGERS))
        return time.perf_counter() - started


def over_wandb(pairs: int) -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(Path(folder))
        steps.plain(), steps.by_wandb(), steps.recorded(), steps.recorded(more=True)
        extra = statistics.median(_extra(steps) for _ in range(3)) / 10
        found = []
        for _ in range(pairs):
            plain = [steps.plain()]
            ours = steps.recorded()
            plain.append(steps.plain())
            theirs = steps.by_wandb()
            plain.append(steps.plain())
            found.append((ours - (plain[0] + plain[1]) / 2 + extra, theirs - (plain[1] + plain[2]) / 2))
        steps.run.finish()
    return figure("wandb", found, LEAST_WANDB, at_least=True)


def _extra(steps: Steps) -> float:
    steps.recorded(more=True)
    return steps.recorder.extra_seconds


# ---- a training run ------------------------------------------------------------------------------------------------


def training(pairs: int) -> Figure:
    """A training with everything on beside one with statistics off."""
    stretches = max(pairs, 2 * SLOWER_EVERY)
    steps = EVERY * (stretches + 1) + EVERY // 2
    common = ["+recipes=char_gpt", "trainer=cpu", "trainer.max_epochs=1", f"trainer.max_steps={steps}"]
    common += [f"data.windows_per_epoch={steps * BATCH}", f"data.batch_size={BATCH}"]
    everything = [f"stats.every_n_steps={EVERY}", f"stats.slower_every={SLOWER_EVERY}", "stats.max_overhead=null"]
    everything += ["stats.spectral_norm=true", "stats.effective_rank=512"]
    with tempfile.TemporaryDirectory() as folder:
        on, off = in_turns([[*common, *everything], [*common, "stats=none"]], steps, Path(folder))
    found, logged, slower = [], [], []
    for number in range(2, stretches + 2):  # the first one warms up
        middle = EVERY * number - 1
        if number % SLOWER_EVERY == 1:
            slower.append(on[middle])
            continue
        logged.append(on[middle])
        stretch = slice(middle - EVERY // 2, middle + EVERY // 2)
        found.append((sum(on[stretch]), sum(off[stretch])))
    extra = (statistics.median(slower) - statistics.median(logged)) / SLOWER_EVERY
    return figure("training", found, MOST_TRAINING, extra=extra)


# ---- the command ---------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[int], Figure]] = {
    "sum": over_sum,
    "loop": lambda pairs: over_loop(max(3, pairs // 4)),
    "add_histogram": lambda pairs: over_add_histogram(max(3, pairs // 4)),
    "wandb": lambda pairs: over_wandb(max(4, pairs // 4)),
    "training": training,
}


def main() -> int:
    return run(
        "Time of statistics over plain passes, over the obvious ways, and over training without them.",
        "`wandb` needs pip install -e '.[wandb]'.",
        CASES,
    )


if __name__ == "__main__":
    sys.exit(main())
