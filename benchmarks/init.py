"""Initial values: the engine over `torch.nn.init`, and a whole GPT-2 over the one of `transformers`.

Each pair fills the same tensors, or builds the same architecture, in one process, in turn (A B B A), so that whatever
else the machine does falls on both. A pair is two neighbouring turns, its ratio that of their times, and the figure
the median over all pairs. Imports, and what the first build loads lazily, are outside the timed part.

- `torch.nn.init`: time of torch over time of the engine, on tensors of the shapes of GPT-2 and a (4096, 4096); memory
  is allocated and touched before. `trunc_normal` is torch's default call: std 1, cut at two of them.
- GPT-2 of 124 M parameters: from the file conf/model/gpt2.yaml to filled weights, over `GPT2LMHeadModel(GPT2Config())`.
- Peak memory of that build above its start, over the bytes of its parameters: in a process of its own, as Linux counts
  it (VmHWM).

The process ends with 1 where a figure is beyond its limit.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import builder
from builder.initialize.chunks import Piece, fill_pieces
from builder.initialize.draws import fill_of

CONF = Path(__file__).resolve().parent.parent / "conf"
SMALL = {"vocab": 96, "context": 64, "d": 64, "heads": 4, "depth": 2}
SHAPES = ((4096, 4096), (3072, 768), (2304, 768), (768, 768), (1024, 768))
LEAST = dict.fromkeys(
    ("normal", "uniform", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform"), 1.8
) | {"trunc_normal": 12.0}  # times as fast as torch.nn.init
MOST_TIME = 0.4  # of transformers' time
MOST_MEMORY = 1.05  # of the parameters' own bytes
CASES = (*LEAST, "gpt2", "memory")


@dataclass(frozen=True)
class Figure:
    """One measured figure and its limit.

    Attributes:
        name: What was measured.
        value: The median over the pairs.
        quartiles: Of the pairs.
        limit: What the value is held against.
        at_least: Whether the limit is the least value allowed, or else the greatest.
        pairs: How many.
        seconds: Median time of the engine, and of what it is compared with; or bytes.
    """

    name: str
    value: float
    quartiles: tuple[float, float]
    limit: float
    at_least: bool
    pairs: int
    seconds: tuple[float, float]

    @property
    def passed(self) -> bool:
        """Whether it keeps its limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- pairs ---------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    made = call()
    seconds = time.perf_counter() - begin
    del made
    gc.collect()
    return seconds


def pairs_of(ours: Callable[[], object], theirs: Callable[[], object], count: int) -> list[tuple[float, float]]:
    """Seconds of both in each of some pairs, after one that warms up."""
    timed(ours), timed(theirs)
    found = []
    for pair in range(count):
        first, second = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
        times = timed(first), timed(second)
        found.append(times if pair % 2 == 0 else times[::-1])
    return found


def figure(name: str, pairs: Sequence[tuple[float, float]], ratios: list[float], limit: float, least: bool) -> Figure:
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    seconds = statistics.median(ours for ours, _ in pairs), statistics.median(theirs for _, theirs in pairs)
    say(f"{name}: {middle:.3f} over {len(pairs)} pairs ({lower:.3f} to {upper:.3f})")
    return Figure(name, middle, (lower, upper), limit, least, len(pairs), seconds)


def against_torch(policy: str, count: int) -> Figure:
    """How many times as fast as `torch.nn.init` a policy fills the same tensors."""
    tensors = [torch.zeros(shape) for shape in SHAPES]
    pieces = [
        Piece(tensor, fill_of(policy, {}, shape), f"{number}", shape)
        for number, (tensor, shape) in enumerate(zip(tensors, SHAPES, strict=True))
    ]
    function = getattr(nn.init, f"{policy}_")
    found = pairs_of(lambda: fill_pieces(pieces, 0), lambda: [function(tensor) for tensor in tensors], count)
    return figure(policy, found, [theirs / ours for ours, theirs in found], LEAST[policy], True)


def gpt2() -> nn.Module:
    return builder.build(CONF / "model" / "gpt2.yaml")


def against_transformers(count: int) -> Figure:
    """What part of the time of `transformers` a whole GPT-2 takes."""
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 (an extra, and only this figure needs it)

    ours, theirs = counted(gpt2()), counted(GPT2LMHeadModel(GPT2Config()))
    if abs(ours - theirs) > 0.001 * theirs:
        raise SystemExit(f"the models have {ours} and {theirs} parameters")
    found = pairs_of(gpt2, lambda: GPT2LMHeadModel(GPT2Config()), count)
    return figure("gpt2", found, [a / b for a, b in found], MOST_TIME, False)


def counted(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- memory --------------------------------------------------------------------------------------------------------


def memory(count: int) -> Figure:
    """Peak memory of a build above its start, over the bytes of its parameters, each in a new process."""
    command = [sys.executable, "-m", "benchmarks.init", "--one-build"]
    found = []
    for _ in range(count):
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CONF.parent)
        grown, size = json.loads(done.stdout)
        found.append((grown, size))
    return figure("memory", found, [grown / size for grown, size in found], MOST_MEMORY, False)


def one_build() -> tuple[int, int]:
    """Bytes by which the peak of one build lies above its start, and bytes of its parameters."""
    builder.build(CONF / "model" / "gpt2.yaml", args=SMALL)  # what is loaded lazily is loaded now
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    module = gpt2()
    grown = status("VmHWM") - before
    return grown, sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


# ---- the report ----------------------------------------------------------------------------------------------------


def measure(cases: Sequence[str], pairs: int) -> Iterator[Figure]:
    for case in cases:
        if case == "gpt2":
            yield against_transformers(max(4, pairs // 3))
        elif case == "memory":
            yield memory(2)
        else:
            yield against_torch(case, pairs)


def table(figures: Sequence[Figure]) -> str:
    """The figures as text."""
    lines = [f"{'':<16}{'ratio':>8}  {'quartiles':<18}{'limit':<16}{'engine':>10} /{'other':>10}{'pairs':>7}"]
    for found in figures:
        quartiles = "{:.3f} to {:.3f}".format(*found.quartiles)
        limit = f"{'at least' if found.at_least else 'at most'} {found.limit:g}"
        unit, scale = (" MB", 1e-6) if found.name == "memory" else (" ms", 1e3)
        ours, theirs = (f"{value * scale:.1f}{unit}" for value in found.seconds)
        beyond = "" if found.passed else "   beyond the limit"
        lines.append(
            f"{found.name:<16}{found.value:>8.3f}  {quartiles:<18}{limit:<16}{ours:>10} /{theirs:>10}{found.pairs:>7}"
            f"{beyond}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time of initial values over torch.nn.init and transformers, and peak memory of a build.",
        epilog="Ends with 1 where a figure is beyond its limit. `gpt2` needs pip install -e '.[zoo]'.",
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="only these (default: all)")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of turns a policy (default: 24)")
    parser.add_argument("--cores", type=int, default=2, help="cores for either side (default: 2)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON; progress goes to stderr")
    parser.add_argument("--one-build", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pairs < 2 or given.cores < 1:
        parser.error("--pairs is 2 or more, --cores 1 or more")
    return given


def main() -> int:
    given = arguments()
    if given.one_build:
        print(json.dumps(one_build()))
        return 0
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    torch.set_num_threads(given.cores)
    figures = list(measure(given.cases, given.pairs))
    passed = all(found.passed for found in figures)
    if given.json:
        results: list[dict[str, Any]] = [{**vars(found), "passed": found.passed} for found in figures]
        print(json.dumps({"cores": given.cores, "passed": passed, "figures": results}, indent=2))
    else:
        print(table(figures))
        print(f"{'all within their limits' if passed else 'beyond the limits'}; {given.cores} cores")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
