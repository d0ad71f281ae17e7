"""What the benchmarks share: times in pairs, figures with their limits, and a command line for both.

A pair is two neighbouring turns of what is compared, its ratio that of their times, and a figure the median over all
pairs. A benchmark ends with 1 where a figure is beyond its limit, and after Ctrl-C with 130 and the figures it has.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

CONF = Path(__file__).resolve().parent.parent / "conf"
INTERRUPTED = 130  # the exit code after Ctrl-C

Found = TypeVar("Found")


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
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def gathered(found: Iterable[Found]) -> tuple[list[Found], bool]:
    """All that is found, and whether Ctrl-C ended it before its time.

    Raises:
        SystemExit: Ctrl-C came before anything was found.
    """
    results: list[Found] = []
    try:
        for each in found:
            results.append(each)
    except KeyboardInterrupt:
        if not results:
            raise SystemExit(INTERRUPTED) from None
        say("interrupted; what was measured until then:")
        return results, True
    return results, False


# ---- pairs ---------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call; what it made is freed outside them."""
    begin = time.perf_counter()
    made = call()
    seconds = time.perf_counter() - begin
    del made
    gc.collect()
    return seconds


def pairs_of(ours: Callable[[], object], theirs: Callable[[], object], count: int) -> list[tuple[float, float]]:
    """Seconds of both in each of some pairs (A B B A), after one that warms up."""
    timed(ours), timed(theirs)
    found = []
    for pair in range(count):
        first, second = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
        times = timed(first), timed(second)
        found.append(times if pair % 2 == 0 else times[::-1])
    return found


def figure(
    name: str, pairs: Sequence[tuple[float, float]], limit: float, *, at_least: bool = False, extra: float = 0.0
) -> Figure:
    """What pairs of ours and theirs amount to.

    Args:
        name: What was measured.
        pairs: Seconds, or bytes, of ours and theirs.
        limit: Of the ratio.
        at_least: Whether the ratio is theirs over ours, and the limit its least; else ours over theirs, its greatest.
        extra: What ours costs on top of each pair.
    """
    ratios = [theirs / (ours + extra) if at_least else (ours + extra) / theirs for ours, theirs in pairs]
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    seconds = statistics.median(ours for ours, _ in pairs), statistics.median(theirs for _, theirs in pairs)
    say(f"{name}: {middle:.3f} over {len(pairs)} pairs ({lower:.3f} to {upper:.3f})")
    return Figure(name, middle, (lower, upper), limit, at_least, len(pairs), seconds)


# ---- the command ---------------------------------------------------------------------------------------------------


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


def run(description: str, needs: str, cases: Mapping[str, Callable[[int], Figure]]) -> int:
    """Measures the cases that the command line asks for and prints their figures.

    Args:
        description: Of the benchmark, for `--help`.
        needs: What must be installed, in a sentence.
        cases: Each makes its figure from a number of pairs.

    Returns:
        The exit code.
    """
    given = _arguments(description, needs, list(cases))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    torch.set_num_threads(given.cores)
    figures, interrupted = gathered(cases[case](given.pairs) for case in given.cases)
    passed = all(found.passed for found in figures)
    if given.json:
        results = [{**vars(found), "passed": found.passed} for found in figures]
        print(json.dumps({"cores": given.cores, "passed": passed and not interrupted, "figures": results}, indent=2))
    else:
        print(table(figures))
        print(f"{'all within their limits' if passed else 'beyond the limits'}; {given.cores} cores")
    return INTERRUPTED if interrupted else 0 if passed else 1


def _arguments(description: str, needs: str, cases: Sequence[str]) -> argparse.Namespace:
    epilog = f"Ends with 1 where a figure is beyond its limit. {needs}"
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, help="only these (default: all)")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of turns; slow figures take fewer (default: 24)")
    parser.add_argument("--cores", type=int, default=2, help="cores for either side (default: 2)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON; progress goes to stderr")
    given = parser.parse_args()
    if given.pairs < 2 or given.cores < 1:
        parser.error("--pairs is 2 or more, --cores 1 or more")
    return given
