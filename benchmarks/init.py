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

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

import builder
from benchmarks.figures import CONF, Figure, figure, pairs_of, run
from builder.initialize.chunks import Piece, fill_pieces
from builder.initialize.draws import fill_of

SMALL = {"vocab": 96, "context": 64, "d": 64, "heads": 4, "depth": 2}
SHAPES = ((4096, 4096), (3072, 768), (2304, 768), (768, 768), (1024, 768))
LEAST = dict.fromkeys(
    ("normal", "uniform", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform"), 1.8
) | {"trunc_normal": 12.0}  # times as fast as torch.nn.init
MOST_TIME = 0.4  # of transformers' time
MOST_MEMORY = 1.05  # of the parameters' own bytes


# ---- time ----------------------------------------------------------------------------------------------------------


def against_torch(policy: str, count: int) -> Figure:
    """How many times as fast as `torch.nn.init` a policy fills the same tensors."""
    tensors = [torch.zeros(shape) for shape in SHAPES]
    pieces = [
        Piece(tensor, fill_of(policy, {}, shape), f"{number}", shape)
        for number, (tensor, shape) in enumerate(zip(tensors, SHAPES, strict=True))
    ]
    function = getattr(nn.init, f"{policy}_")
    found = pairs_of(lambda: fill_pieces(pieces, 0), lambda: [function(tensor) for tensor in tensors], count)
    return figure(policy, found, LEAST[policy], at_least=True)


def gpt2() -> nn.Module:
    return builder.build(CONF / "model" / "gpt2.yaml")


def against_transformers(count: int) -> Figure:
    """What part of the time of `transformers` a whole GPT-2 takes."""
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 (an extra, and only this figure needs it)

    ours, theirs = counted(gpt2()), counted(GPT2LMHeadModel(GPT2Config()))
    if abs(ours - theirs) > 0.001 * theirs:
        raise SystemExit(f"the models have {ours} and {theirs} parameters")
    found = pairs_of(gpt2, lambda: GPT2LMHeadModel(GPT2Config()), count)
    return figure("gpt2", found, MOST_TIME)


def counted(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- memory --------------------------------------------------------------------------------------------------------


def memory(count: int) -> Figure:
    """Peak memory of a build above its start, over the bytes of its parameters, each in a new process."""
    command = [sys.executable, "-c", "from benchmarks.init import one_build; print(one_build())"]
    found = []
    for _ in range(count):
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CONF.parent)
        grown, size = json.loads(done.stdout)
        found.append((grown, size))
    return figure("memory", found, MOST_MEMORY)


def one_build() -> list[int]:
    """Bytes by which the peak of one build lies above its start, and bytes of its parameters."""
    builder.build(CONF / "model" / "gpt2.yaml", args=SMALL)  # what is loaded lazily is loaded now
    import_module("builder.initialize.normal")  # which only a huge parameter loads
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    module = gpt2()
    grown = status("VmHWM") - before
    return [grown, sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())]


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


# ---- the command ---------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[int], Figure]] = {
    **{policy: partial(against_torch, policy) for policy in LEAST},
    "gpt2": lambda pairs: against_transformers(max(4, pairs // 3)),
    "memory": lambda pairs: memory(2),
}


def main() -> int:
    return run(
        "Time of initial values over torch.nn.init and transformers, and peak memory of a build.",
        "`gpt2` needs pip install -e '.[zoo]'.",
        CASES,
    )


if __name__ == "__main__":
    sys.exit(main())
