"""No overhead: a training step of a built model takes no longer than one of the same model written by hand.

Each model is fitted twice by a real Lightning `Trainer`, statistics off: once built from its file in `conf/`, once as
the hand-written module and LightningModule below. The two fits live in one process and take turns of a few steps
(A B B A), each with its own state of torch's generator, so that whatever else the machine does falls on both. A step
is the whole interval from one `on_train_batch_end` to the next. A pair is two neighbouring turns, one of each side; its
ratio is that of their median steps, and the figure is the median over all pairs of all repeats.

Nothing is timed that is not the same work: parameters must have the same names and initial bits, and the losses of
every step, dropout included, the same bits as well. The process ends with 1 where a ratio is above the limit.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.figures import CONF, INTERRUPTED, gathered, say
from builder.lit_module import lightning_module

LIMIT = 1.03
SEED = 0
LEARNING_RATE = 0.001
BUILT, HAND = "built", "hand"

Batch = tuple[Tensor, Tensor]


# ---- the models, written by hand -----------------------------------------------------------------------------------


class HandMlp(nn.Module):
    """What conf/model/digits_mlp.yaml says."""

    def __init__(self, features: int = 64, hidden: int = 256, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.act1 = nn.ReLU()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, hidden)
        self.act2 = nn.ReLU()
        self.drop2 = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, classes)."""
        x = self.drop1(self.act1(self.fc1(x)))
        x = self.drop2(self.act2(self.fc2(x)))
        return self.head(x)  # type: ignore[no-any-return]


class HandAttention(nn.Module):
    """Causal self-attention."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.d, self.heads = d, heads
        self.c_attn = nn.Linear(d, 3 * d)
        self.c_proj = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, d) to (batch, time, d)."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.heads, self.d // self.heads)).transpose(1, 3).unbind(2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class HandFeedForward(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(d, 4 * d)
        self.c_proj = nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, d) to (batch, time, d)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # type: ignore[no-any-return]


class HandBlock(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and beside a residual."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d)
        self.attn = HandAttention(d, heads)
        self.ln_2 = nn.LayerNorm(d)
        self.mlp = HandFeedForward(d)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, d) to (batch, time, d)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class HandGpt(nn.Module):
    """What conf/model/char_gpt.yaml says, its init rules included."""

    def __init__(self, vocab: int = 96, context: int = 64, d: int = 128, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.wpe = nn.Embedding(context, d)
        self.h = nn.ModuleList([HandBlock(d, heads) for _ in range(depth)])
        self.ln_f = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocab, bias=False)
        self.head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
            elif parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits, (batch, time, vocab)."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))  # type: ignore[no-any-return]


class HandLitMlp(pl.LightningModule):
    """The digits MLP with Adam."""

    def __init__(self) -> None:
        super().__init__()
        self.model = HandMlp()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over everything."""
        return torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)


class HandLitGpt(pl.LightningModule):
    """The character GPT with Adam."""

    def __init__(self) -> None:
        super().__init__()
        self.model = HandGpt()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        ids, following = batch
        logits = self.model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over everything."""
        return torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)


# ---- what is compared ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model, both ways.

    Attributes:
        name: The model's file in conf/model.
        task: Its file in conf/task.
        args: The model's args, given here so that the file's defaults are free to change.
        hand: Makes the hand-written LightningModule.
        batch: Draws one batch of random data of the model's shape.
        turn: Steps a turn.
        pairs: Pairs of turns a repeat.
    """

    name: str
    task: str
    args: Mapping[str, float]
    hand: Callable[[], pl.LightningModule]
    batch: Callable[[torch.Generator], Batch]
    turn: int
    pairs: int


def digits_batch(generator: torch.Generator) -> Batch:
    return torch.rand(64, 64, generator=generator), torch.randint(10, (64,), generator=generator)


def text_batch(generator: torch.Generator) -> Batch:
    ids = torch.randint(96, (32, 65), generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


MLP_ARGS = {"features": 64, "hidden": 256, "classes": 10, "dropout": 0.2}
GPT_ARGS = {"vocab": 96, "context": 64, "d": 128, "heads": 4, "depth": 2}
CASES = (
    Case("digits_mlp", "classification", MLP_ARGS, HandLitMlp, digits_batch, turn=10, pairs=100),
    Case("char_gpt", "next_character", GPT_ARGS, HandLitGpt, text_batch, turn=1, pairs=60),
)


def make(case: Case, how: str) -> pl.LightningModule:
    """The LightningModule of a case, built or written by hand, from the same seed."""
    if how == BUILT:
        model = OmegaConf.load(CONF / "model" / f"{case.name}.yaml")
        model = OmegaConf.merge(model, {"args": dict(case.args)})
        task = OmegaConf.load(CONF / "task" / f"{case.task}.yaml")
        optimizer = {"_target_": "torch.optim.Adam", "lr": LEARNING_RATE}
        return lightning_module(
            {"model": model, "task": task, "optimizer": optimizer, "init_seed": SEED, "rng": "torch"}
        )
    torch.manual_seed(SEED)
    return case.hand()


def check_same_start(first: pl.LightningModule, second: pl.LightningModule) -> None:
    """Refuses two modules that do not hold the same bits under the same names."""
    one, other = dict(first.model.named_parameters()), dict(second.model.named_parameters())  # type: ignore[union-attr]
    if list(one) != list(other):
        raise SystemExit(f"parameters have other names: {list(one)} and {list(other)}")
    for name, value in one.items():
        if value.shape != other[name].shape:
            raise SystemExit(f"{name} has shapes {list(value.shape)} and {list(other[name].shape)}")
        if not torch.equal(value, other[name]):
            raise SystemExit(f"{name} starts from other values")


class Repeated(Dataset[Batch]):
    """A few batches, over and over."""

    def __init__(self, batches: Sequence[Batch], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index % len(self.batches)]


# ---- two fits that take turns --------------------------------------------------------------------------------------


class Turns:
    """Lets two threads run one at a time, in a given order of sides.

    Args:
        order: The side, 0 or 1, of each turn.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self.order, self.now = order, 0
        self.failed = False
        self.changed = threading.Condition()

    def wait(self, side: int) -> None:
        """Returns when it is this side's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.failed or self.order[self.now] == side)
            if self.failed:
                raise RuntimeError("the other side failed")

    def end(self) -> None:
        """Ends the present turn."""
        with self.changed:
            self.now = min(self.now + 1, len(self.order) - 1)
            self.changed.notify_all()

    def fail(self) -> None:
        """Lets everyone go, with an error."""
        with self.changed:
            self.failed = True
            self.changed.notify_all()


class Clock(pl.Callback):
    """Times whole steps; after each turn's last step it lets the other side run, which counts for neither.

    Args:
        side: 0 or 1.
        turns: Whose turn it is.
        steps: Steps a turn.
    """

    def __init__(self, side: int, turns: Turns, steps: int) -> None:
        self.side, self.turns, self.steps = side, turns, steps
        self.seconds: list[float] = []
        self.losses: list[Tensor] = []
        self.began = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first step: the set-up was a turn of its own."""
        if batch_idx == 0:
            self.turns.end()
            self.turns.wait(self.side)
            torch.manual_seed(SEED)
            self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step ends, and with it the next one begins."""
        self.seconds.append(time.perf_counter() - self.began)
        self.losses.append(outputs["loss"])
        if len(self.seconds) % self.steps == 0:
            state = torch.get_rng_state()
            self.turns.end()
            self.turns.wait(self.side)
            torch.set_rng_state(state)
        self.began = time.perf_counter()


def trainer(clock: Clock) -> pl.Trainer:
    """An ordinary trainer that writes and shows nothing."""
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit_both(case: Case, first: str, second: str, pairs: int, threads: int) -> tuple[Clock, Clock]:
    """Fits two sides turn by turn: one pair to warm up, then `pairs` pairs in the order A B B A."""
    order = [0, 1]  # set-up
    for pair in range(pairs + 1):
        order += [pair % 2, 1 - pair % 2]
    order += [0, 1]  # the end of the fits
    turns = Turns(order)
    modules = (make(case, first), make(case, second))
    check_same_start(*modules)
    generator = torch.Generator().manual_seed(SEED)
    batches = [case.batch(generator) for _ in range(16)]
    clocks = (Clock(0, turns, case.turn), Clock(1, turns, case.turn))
    errors: list[BaseException] = []

    def fit(side: int) -> None:
        try:
            turns.wait(side)
            torch.set_num_threads(threads)  # OpenMP keeps the number for each thread
            loader = DataLoader(Repeated(batches, (pairs + 1) * case.turn), batch_size=None)
            trainer(clocks[side]).fit(modules[side], loader)
            turns.end()
        except BaseException as err:
            errors.append(err)
            turns.fail()

    workers = [threading.Thread(target=fit, args=(side,), daemon=True) for side in (0, 1)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        turns.fail()  # each side ends with its turn
        for worker in workers:
            worker.join()
        raise
    if errors:
        raise errors[0]
    check_same_losses(*clocks)
    return clocks


def check_same_losses(first: Clock, second: Clock) -> None:
    """Refuses two fits whose losses differ in any bit."""
    differ = [
        step for step, (a, b) in enumerate(zip(first.losses, second.losses, strict=True)) if not torch.equal(a, b)
    ]
    if differ:
        step = differ[0]
        raise SystemExit(f"step {step}: the losses are {first.losses[step].item()} and {second.losses[step].item()}")


# ---- figures -------------------------------------------------------------------------------------------------------


def turn_medians(clock: Clock) -> list[float]:
    """The median step of each turn, in seconds, without the turn of the warm-up."""
    starts = range(clock.steps, len(clock.seconds), clock.steps)
    return [statistics.median(clock.seconds[start : start + clock.steps]) for start in starts]


def measure(case: Case, top: str, repeats: int, pairs: int, threads: int) -> dict[str, Any]:
    """The ratio of `top` to the hand-written side over several repeats, each with new modules and trainers."""
    ratios: list[float] = []
    medians: list[float] = []
    milliseconds: dict[str, list[float]] = {"top": [], "bottom": []}
    steps = 0
    for repeat in range(repeats):
        if repeat % 2 == 0:  # who is set up first changes sides as well
            above, below = fit_both(case, top, HAND, pairs, threads)
        else:
            below, above = fit_both(case, HAND, top, pairs, threads)
        found = [a / b for a, b in zip(turn_medians(above), turn_medians(below), strict=True)]
        ratios += found
        medians.append(statistics.median(found))
        for name, clock in (("top", above), ("bottom", below)):
            milliseconds[name] += [1000 * value for value in clock.seconds[clock.steps :]]
        steps += len(above.losses)
        say(f"{case.name}  {top}/{HAND}  repeat {repeat + 1} of {repeats}: ratio {medians[-1]:.4f}")
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    return {
        "model": case.name,
        "sides": f"{top}/{HAND}",
        "ratio": middle,
        "quartiles": [lower, upper],
        "repeats": medians,
        "pairs": len(ratios),
        "milliseconds": [statistics.median(milliseconds["top"]), statistics.median(milliseconds["bottom"])],
        "steps_with_equal_losses": steps,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The figures as text."""
    lines = [
        f"{'model':<12}{'sides':<12}{'ratio':>8}  {'quartiles':<16}{'repeats':<16}{'ms':>7} /{'ms':>7}{'pairs':>7}"
    ]
    for result in results:
        quartiles = "{:.3f} to {:.3f}".format(*result["quartiles"])
        spread = f"{min(result['repeats']):.3f} to {max(result['repeats']):.3f}"
        top, bottom = result["milliseconds"]
        lines.append(
            f"{result['model']:<12}{result['sides']:<12}{result['ratio']:>8.4f}  {quartiles:<16}{spread:<16}"
            f"{top:>7.3f} /{bottom:>7.3f}{result['pairs']:>7}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time of a training step: built model over the same model written by hand, in one run.",
        epilog=f"Ends with 1 where a ratio is above {LIMIT}.",
    )
    parser.add_argument("--repeats", type=int, default=6, help="pairs of fits a model (default: 6)")
    parser.add_argument(
        "--pairs", type=int, help="pairs of turns a repeat (default: 100 for digits_mlp, 60 for char_gpt)"
    )
    parser.add_argument("--models", nargs="+", choices=[c.name for c in CASES], help="only these (default: all)")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch's threads (default: 1, which other jobs disturb least)"
    )
    parser.add_argument(
        "--control", action="store_true", help="also hand over hand: what the method itself makes of no difference"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON; progress goes to stderr")
    given = parser.parse_args()
    if given.repeats < 1 or given.threads < 1 or (given.pairs is not None and given.pairs < 2):
        parser.error("--repeats and --threads are 1 or more, --pairs 2 or more")
    return given


def main() -> int:
    given = arguments()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    results, interrupted = gathered(
        measure(case, top, given.repeats, given.pairs or case.pairs, given.threads)
        for case in CASES
        if not given.models or case.name in given.models
        for top in ([BUILT, HAND] if given.control else [BUILT])
    )
    over = [r for r in results if r["sides"] == f"{BUILT}/{HAND}" and r["ratio"] > LIMIT]
    if given.json:
        passed = not over and not interrupted
        print(json.dumps({"limit": LIMIT, "threads": given.threads, "passed": passed, "results": results}, indent=2))
    else:
        print(table(results))
        print(f"{'above' if over else 'within'} the limit of {LIMIT}; all losses are equal to the bit")
    return INTERRUPTED if interrupted else 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
