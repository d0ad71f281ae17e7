"""Loops over float32 values that numba compiles to machine code: each reads memory once and sums in float64.

Torch's or numpy's functions would read the values once for each measure. Compiled with freedom to reorder sums, these
loops fill the vector registers; integers are cast at every step, for numba would widen them and halve the lanes. Least
and greatest are found among the bits as integers in the values' order, since comparisons of floats, which know NaN,
stay scalar; a NaN lies beyond the infinities there.

Importing this takes half a second, and a second more the first time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from builder.compiled import compiled

Values = NDArray[np.float32]
Bits = NDArray[np.int32]

_I = np.int32
_SIGN, _REST = _I(31), _I(0x7FFFFFFF)
INFINITY = 0x7F800000  # as an integer in the values' order; minus infinity is the complement
_FREEDOM = {"reassoc", "contract", "nsz"}  # not "nnan" and "ninf": what is not finite is to be seen


@compiled("Tuple((f8, f8, i4, i4, i4, f8))(f4[::1], i4[::1], f4[::1])", _FREEDOM)
def sums(x: Values, bits: Bits, before: Values) -> tuple[float, float, np.int32, np.int32, np.int32, float]:
    """All that is measured of weights.

    Args:
        x: Fewer than 2**31 values.
        bits: The same memory as integers.
        before: Values to compare with, or none at all.

    Returns:
        Total, squares, least and greatest as ordered integers, the number of zeros, and the squares of the difference.
    """
    total = squares = moved = 0.0
    least, greatest, zeros = _REST, _I(~_REST), _I(0)
    compared = before.size > 0
    for i in range(x.size):
        value = np.float64(x[i])
        total += value
        squares += value * value
        ordered = _I(bits[i] ^ _I(_I(bits[i] >> _SIGN) & _REST))
        least, greatest = _I(min(least, ordered)), _I(max(greatest, ordered))
        zeros = _I(zeros + _I(_I(bits[i] & _REST) == _I(0)))
        if compared:
            apart = value - np.float64(before[i])
            moved += apart * apart
    return total, squares, least, greatest, zeros, moved


@compiled("Tuple((f8, i4))(f4[::1], i4[::1])", _FREEDOM)
def magnitudes(x: Values, bits: Bits) -> tuple[float, np.int32]:
    """All that is measured of gradients: squares, and the greatest absolute value as an integer (see `sums`)."""
    squares, greatest = 0.0, _I(0)
    for i in range(x.size):
        value = np.float64(x[i])
        squares += value * value
        greatest = _I(max(greatest, _I(bits[i] & _REST)))
    return squares, greatest


@compiled("UniTuple(f8, 2)(f4[::1], f8)", _FREEDOM)
def spread(x: Values, mean: float) -> tuple[float, float]:
    """The sum of the differences from a mean, and of their squares."""
    off = apart = 0.0
    for i in range(x.size):
        away = np.float64(x[i]) - mean
        off += away
        apart += away * away
    return off, apart


@compiled("UniTuple(f8, 4)(f4[::1], f4[::1])", _FREEDOM)
def products(new: Values, old: Values) -> tuple[float, float, float, float]:
    """Sums of squares of the difference, of the product, and of the squares of either."""
    apart = along = squares = started = 0.0
    for i in range(new.size):
        x, y = np.float64(new[i]), np.float64(old[i])
        apart += (x - y) * (x - y)
        along += x * y
        squares += x * x
        started += y * y
    return apart, along, squares, started
