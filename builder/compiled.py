"""Loops that numba compiles to machine code. Importing this takes half a second: only what needs a loop does so."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from numba import njit


def compiled(signature: str, freedom: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function at once, or takes what was kept of an earlier time; it runs without the interpreter lock.

    Args:
        signature: Of its arguments and results, in numba's notation.
        freedom: LLVM's names of what it may do to the order and rounding of floating-point operations.
    """

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(signature, nogil=True, fastmath=set(freedom), cache=True)(function)
        except RuntimeError:  # there is no folder to keep it in
            return njit(signature, nogil=True, fastmath=set(freedom))(function)

    return compile_
