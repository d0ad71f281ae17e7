"""Passes over memory on the CPU, where asking for a value costs nothing.

Tensors are cut into chunks, which all threads take from one list. Where one of them is large, compiled loops read all
of them (`builder.stats.kernels`); otherwise numpy does, which starts at once. Either sums in float64, the spread of
nearly equal values around their own mean. How many threads there are changes no bit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from math import isfinite, isnan, nan
from types import ModuleType
from typing import Any

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

LARGE = 2**14  # values from which on the compiled loops are used
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_CHUNK = 2**19  # values; with fewer, threads wait for the interpreter lock
_WIDE = 2**13  # values in float64 that stay in a core's cache, and are too few for BLAS to wake another thread
_WORTH_THREADS = 2**23  # values, which a thread alone reads in 3 ms; starting others takes one
_NEAR = 2.0**-10  # of the squares around zero: with fewer, those around the mean have lost three of sixteen digits
_NO_VALUES = np.empty(0, np.float32)
_MAGNITUDES = frozenset(("count", "squares", "greatest", "nonfinite"))
_ENDS: dict[str, Callable[[Sequence[float]], float]] = {"low": min, "high": max, "greatest": max}

Read = Callable[[Chunk, Names, bool], list[float]]
"""From a chunk, and whether compiled loops are at hand, to its sums."""


def rows_of(members: Sequence[Chunk], read: Read, columns: Names) -> Rows:
    """A row of sums for each member.

    Args:
        members: The flat tensors, on the CPU, that are read together for each.
        read: What reads a chunk.
        columns: Which sums.
    """
    sizes = [member[0].numel() for member in members]
    by_loop = max(sizes, default=0) >= LARGE
    if by_loop:
        kernels()
    found: list[Rows] = []
    tasks: list[Task] = []
    for member, size in zip(members, sizes, strict=True):
        if size < LARGE:  # ends before a thread would have the interpreter lock
            found.append([read(member, columns, by_loop)])
            continue
        chunks = [*zip(*(torch.split(tensor, _CHUNK) for tensor in member), strict=True)] if size > _CHUNK else [member]
        rows: Rows = [[]] * len(chunks)
        found.append(rows)
        tasks += [partial(_read_into, rows, number, chunk, read, columns) for number, chunk in enumerate(chunks)]
    if sum(sizes) >= _WORTH_THREADS:
        run_all(tasks, torch.get_num_threads())
    else:
        for task in tasks:
            task()
    return [joined_rows(rows, columns) for rows in found]


def _read_into(rows: Rows, number: int, chunk: Chunk, read: Read, columns: Names) -> None:
    rows[number] = read(chunk, columns, True)


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
    for column, end in _ENDS.items():
        if column in of:  # Python's min and max may pass over a NaN
            found[column] = nan if any(map(isnan, of[column])) else end(of[column])
    return [found[column] for column in columns]


# ---- what is read of a chunk ---------------------------------------------------------------------------------------


def values(chunk: Chunk, columns: Names, by_loop: bool) -> list[float]:
    """Sums over one tensor's values; over the difference from a second one as well, where there is one."""
    if by_loop and _is_narrow(chunk):
        found = (_magnitudes if _MAGNITUDES.issuperset(columns) else _by_loop)(*map(_narrow, chunk))
        if found is not None:
            return [found[column] for column in columns]
    return _exact(chunk, columns, partial(_exact_values, columns))


def products(chunk: Chunk, columns: Names, by_loop: bool) -> list[float]:
    """Sums over two tensors, their product and their difference."""
    if by_loop and _is_narrow(chunk):
        return [float(chunk[0].numel()), *kernels().products(*map(_narrow, chunk))]
    return _exact(chunk, columns, _exact_products)


def _is_narrow(chunk: Chunk) -> bool:
    return all(tensor.dtype in _NARROW for tensor in chunk)


# ---- by a compiled loop --------------------------------------------------------------------------------------------


@cache
def kernels() -> ModuleType:
    """The compiled loops."""
    from builder.stats import kernels as loops  # noqa: PLC0415 (takes half a second, which small models are spared)

    return loops


def _narrow(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().contiguous().numpy()
    return array


def _by_loop(x: NDArray[np.float32], before: NDArray[np.float32] = _NO_VALUES) -> dict[str, float] | None:
    """None where values are not finite."""
    total, squares, least, greatest, zeros, moved = kernels().sums(x, x.view(np.int32), before)
    if not ~kernels().INFINITY < least <= greatest < kernels().INFINITY:
        return None
    around = squares - total * total / x.size
    if around < squares * _NEAR:
        off, apart = kernels().spread(x, total / x.size)
        around = apart - off * off / x.size
    low, high = _from_ordered(least), _from_ordered(greatest)
    found = {"count": x.size, "total": total, "around": around, "squares": squares, "low": low, "high": high}
    return found | {"zeros": zeros, "nonfinite": 0.0, "compared": before.size, "moved": moved}


def _magnitudes(x: NDArray[np.float32]) -> dict[str, float] | None:
    """None where values are not finite."""
    squares, greatest = kernels().magnitudes(x, x.view(np.int32))
    if greatest >= kernels().INFINITY:
        return None
    return {"count": x.size, "squares": squares, "greatest": _from_ordered(greatest), "nonfinite": 0.0}


def _from_ordered(number: int) -> float:
    """The float32 whose bits, put in the order of the values, are this integer."""
    bits = number if number >= 0 else number ^ 0x7FFFFFFF
    value: float = struct.unpack("f", struct.pack("i", bits))[0]
    return value


# ---- in float64, by numpy, whose calls take a tenth of torch's time --------------------------------------------------


def _exact(chunk: Chunk, columns: Names, sums: Callable[..., list[float]]) -> list[float]:
    with np.errstate(all="ignore"):
        return joined_rows([sums(*parts) for parts in _wide(chunk)], columns)


def _wide(chunk: Chunk) -> Iterator[tuple[NDArray[np.float64], ...]]:
    for first in range(0, chunk[0].numel(), _WIDE):
        yield tuple(tensor[first : first + _WIDE].double().numpy() for tensor in chunk)


def _exact_values(columns: Names, x: NDArray[Any], before: NDArray[Any] = _NO_VALUES) -> list[float]:
    found = {"count": float(len(x)), "squares": float(x @ x)}
    if "low" in columns:
        found["low"], found["high"] = float(np.minimum.reduce(x)), float(np.maximum.reduce(x))
    if "greatest" in columns:
        found["greatest"] = float(np.maximum.reduce(np.abs(x)))
    if "total" in columns:
        found["total"] = float(np.add.reduce(x))
        centred = x - found["total"] / len(x)
        found["around"] = float(centred @ centred)
    if "zeros" in columns:
        found["zeros"] = float(len(x) - np.count_nonzero(x))
    if "nonfinite" in columns:
        found["nonfinite"] = 0.0 if isfinite(found["squares"]) else float(len(x) - np.isfinite(x).sum())
    if "moved" in columns:
        moved = x - before if len(before) else before
        found["compared"], found["moved"] = float(len(moved)), float(moved @ moved)
    return [found[column] for column in columns]


def _exact_products(new: NDArray[np.float64], old: NDArray[np.float64]) -> list[float]:
    moved = new - old
    return [float(len(new)), float(moved @ moved), float(new @ old), float(new @ new), float(old @ old)]
