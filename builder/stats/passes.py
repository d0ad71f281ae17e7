"""Passes over memory on the CPU, where asking for a value costs nothing.

Tensors are cut into chunks, which all threads take from one list; a chunk is read several times while the last cache
holds it. Small ones are read in float64, around their own mean; larger ones in their own float32, which is some six
times as fast, and again in float64 where the sums say that float32 lost digits: a mean beside which the spread is
small, squares beyond the range, non-finite values. How many threads there are changes no bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite, isnan, nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.parallel import Task, run_all

CHANGE = ("count", "squares")
START = ("count", "moved", "along", "squares", "started")

Names = tuple[str, ...]
Rows = list[list[float]]
"""Sums on the host."""
Chunk = tuple[Tensor, ...]
"""Pieces of equal length of the flat tensors that one pass reads together."""

LARGE = 2**14  # values from which on float32 pays
_CHUNK = 2**19  # of more values a float32 sum of squares drifts; with fewer, threads wait for the interpreter lock
_WIDE = 2**13  # values in float64 that stay in a core's cache, and are too few for BLAS to wake another thread
_WORTH_THREADS = 2**23  # values, of which the measures take some 7 ms; starting threads takes one or two
_TINY = 1e-30  # a mean square that float32 holds with all digits, and those of values 100 times smaller
_NEAR = 64.0  # of two sums of squares, how many times the other one may be for their products to keep six digits


class Scratch(threading.local):
    """Each thread's own memory for one chunk, kept: the system takes longer to give it than a pass over it takes."""

    def __init__(self) -> None:
        self._values: Tensor | None = None
        self._flags: NDArray[np.bool_] | None = None

    def values(self, count: int) -> Tensor:
        """Room for numbers."""
        if self._values is None or len(self._values) < count:
            with torch.inference_mode(False):
                self._values = torch.empty(count)
        return self._values[:count]

    def flags(self, count: int) -> NDArray[np.bool_]:
        """Room for answers."""
        if self._flags is None or len(self._flags) < count:
            self._flags = np.empty(count, np.bool_)
        return self._flags[:count]


_SCRATCH = Scratch()
Read = Callable[[Chunk, Names], list[float]]
"""From a chunk to its sums."""


def rows_of(members: Sequence[Chunk], read: Read, columns: Names) -> Rows:
    """A row of sums for each member.

    Args:
        members: The flat tensors, on the CPU, that are read together for each.
        read: What reads a chunk.
        columns: Which sums.
    """
    found: list[Rows] = []
    tasks: list[Task] = []
    for member in members:
        if member[0].numel() < LARGE:  # ends before a thread would have the interpreter lock
            found.append([read(member, columns)])
            continue
        chunks = [*zip(*(torch.split(tensor, _CHUNK) for tensor in member), strict=True)]
        rows: Rows = [[]] * len(chunks)
        found.append(rows)
        tasks += [partial(_read_into, rows, number, chunk, read, columns) for number, chunk in enumerate(chunks)]
    threads = torch.get_num_threads() if sum(member[0].numel() for member in members) >= _WORTH_THREADS else 1
    run_all(tasks, threads)
    return [joined_rows(rows, columns) for rows in found]


def _read_into(rows: Rows, number: int, chunk: Chunk, read: Read, columns: Names) -> None:
    rows[number] = read(chunk, columns)


def joined_rows(rows: Rows, columns: Names) -> list[float]:
    """`builder.stats.measure.joined` for rows on the host, a few additions for which calls to torch take longer."""
    if len(rows) == 1:
        return rows[0]
    of = dict(zip(columns, zip(*rows, strict=True), strict=True))
    found = {column: sum(values) for column, values in of.items()}
    if "around" in of:
        mean = found["total"] / found["count"]
        apart = [total / n - mean for n, total in zip(of["count"], of["total"], strict=True)]
        found["around"] += sum(n * a * a for n, a in zip(of["count"], apart, strict=True))
    if "low" in of:
        found["low"], found["high"] = min(of["low"]), max(of["high"])
        if any(map(isnan, of["low"])):  # which Python's min may pass over
            found["low"] = found["high"] = nan
    return [found[column] for column in columns]


# ---- what is read of a chunk ---------------------------------------------------------------------------------------


def values(chunk: Chunk, columns: Names) -> list[float]:
    """Sums over one tensor's values."""
    if _is_large(chunk):
        found = _quick_values(chunk[0].float(), columns)
        if not _has_lost_digits(found):
            return [found[column] for column in columns]
    return _exact(chunk, columns, lambda x: _exact_values(x, columns))


def changes(chunk: Chunk, columns: Names) -> list[float]:
    """Sums over the difference of two tensors."""
    if _is_large(chunk):
        squares = _quick_moved(chunk)
        if squares is not None:
            return [float(chunk[0].numel()), squares]
    return _exact(chunk, columns, lambda new, old: _exact_values(new - old, columns))


def products(chunk: Chunk, columns: Names) -> list[float]:
    """Sums over two tensors, their product and their difference.

    In float32 the product follows from the three squares: so nearly parallel tensors, whose own product would lose the
    digits in which they differ, keep the digits of their difference.
    """
    if _is_large(chunk):
        count, moved = chunk[0].numel(), _quick_moved(chunk)
        new, old = (_dot(tensor.float()) for tensor in chunk)
        from_zero = old == 0 and not np.any(chunk[1].float().numpy())
        near = _is_held(old, count) and old / _NEAR < new < old * _NEAR
        if moved is not None and _is_held(new, count) and (near or from_zero):
            return [float(count), moved, 0.0 if from_zero else (new + old - moved) / 2, new, old]
    return _exact(chunk, columns, _exact_products)


def _is_large(chunk: Chunk) -> bool:
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    return chunk[0].numel() >= LARGE and all(tensor.dtype in narrow for tensor in chunk)


# ---- in float32 ----------------------------------------------------------------------------------------------------


def _quick_values(chunk: Tensor, columns: Names) -> dict[str, float]:
    found = {"count": float(chunk.numel()), "nonfinite": 0.0}
    if "low" in columns:
        found["low"], found["high"] = (value.item() for value in torch.aminmax(chunk))
    found["squares"] = _dot(chunk)
    if "total" in columns:
        found["total"] = chunk.sum().item()
        found["around"] = found["squares"] - found["total"] ** 2 / chunk.numel()
    if "zeros" in columns:  # by numpy: a third of the time of torch's comparison or count
        found["zeros"] = float(
            chunk.numel() - np.count_nonzero(np.not_equal(chunk.numpy(), 0, out=_SCRATCH.flags(chunk.numel())))
        )
    return found


def _quick_moved(chunk: Chunk) -> float | None:
    """The sum of squares of a difference, where float32 holds it."""
    new, old = chunk
    squares = _dot(torch.sub(new.float(), old.float(), out=_SCRATCH.values(new.numel())))
    return squares if _is_held(squares, new.numel()) or (squares == 0 and torch.equal(new, old)) else None


def _dot(chunk: Tensor) -> float:
    return torch.dot(chunk, chunk).item()


def _is_held(squares: float, count: int) -> bool:
    """Whether float32 holds a sum of squares with its digits; it does not where there are non-finite values."""
    return isfinite(squares) and squares / count >= _TINY


def _has_lost_digits(sums: dict[str, float]) -> bool:
    """Whether a chunk's float32 sums are not to be trusted."""
    if sums.get("low", 1) == sums.get("high", 1) == 0:
        return False
    squares = sums["squares"]
    return not _is_held(squares, int(sums["count"])) or sums.get("around", squares) < squares / 8  # little spread


# ---- in float64, by numpy, whose calls take a tenth of torch's time --------------------------------------------------


def _exact(chunk: Chunk, columns: Names, sums: Callable[..., list[float]]) -> list[float]:
    with np.errstate(all="ignore"):
        return joined_rows([sums(*parts) for parts in _wide(chunk)], columns)


def _wide(chunk: Chunk) -> Iterator[tuple[NDArray[np.float64], ...]]:
    for first in range(0, chunk[0].numel(), _WIDE):
        yield tuple(tensor[first : first + _WIDE].double().numpy() for tensor in chunk)


def _exact_values(x: NDArray[np.float64], columns: Names) -> list[float]:
    found = {"count": float(len(x)), "squares": float(x @ x)}
    if "low" in columns:
        found["low"], found["high"] = float(np.minimum.reduce(x)), float(np.maximum.reduce(x))
    if "total" in columns:
        found["total"] = float(np.add.reduce(x))
        centred = x - found["total"] / len(x)
        found["around"] = float(centred @ centred)
    if "zeros" in columns:
        found["zeros"] = float(len(x) - np.count_nonzero(x))
    if "nonfinite" in columns:
        found["nonfinite"] = 0.0 if isfinite(found["squares"]) else float(len(x) - np.isfinite(x).sum())
    return [found[column] for column in columns]


def _exact_products(new: NDArray[np.float64], old: NDArray[np.float64]) -> list[float]:
    moved = new - old
    return [float(len(new)), float(moved @ moved), float(new @ old), float(new @ new), float(old @ old)]
