"""Standard normal values in float32, by a ziggurat whose common part is a compiled loop.

The method is that of Marsaglia & Tsang 2000 (The ziggurat method for generating random variables) with 1,024 layers. Of
32 random bits ten choose a layer and the others a place across it, for the two are not to depend on each other (Doornik
2005, An improved ziggurat method). Of 1,000 values 996 lie where the layer is a rectangle, and are done.

Importing this takes half a second.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.compiled import compiled
from builder.initialize.streams import bits

Floats = NDArray[np.float32]

_LAYERS = 2**10
_TAIL = 4.0388498461095045  # where the lowest layer ends and the tail begins, so that the layers end at the mode
_AREA = 0.0012263246463530881  # of each layer
_HALF = 2**21  # places on either side of zero
_PIECE = 2**19  # values at a time


def _edges() -> NDArray[np.float64]:
    """How far each layer reaches: the lowest as far as one of its area would without a tail, the last nowhere."""
    edges = [_AREA / math.exp(-(_TAIL**2) / 2), _TAIL]
    while len(edges) < _LAYERS:
        edges.append(math.sqrt(-2 * math.log(_AREA / edges[-1] + math.exp(-(edges[-1] ** 2) / 2))))
    return np.array([*edges, 0.0])


_EDGES = _edges()
_HEIGHTS = np.exp(-(_EDGES**2) / 2)
_STEP: Floats = (_EDGES[:-1] / _HALF).astype(np.float32)  # from one place to the next
_INSIDE: Floats = (_EDGES[1:] / _EDGES[:-1] * _HALF).astype(np.float32)  # places under the layer above


def standard_normal(out: Floats, generator: np.random.Generator) -> None:
    """Fills with values of mean 0 and standard deviation 1."""
    for first in range(0, len(out), _PIECE):
        piece = out[first : first + _PIECE]
        words, open_ = bits(len(piece), generator), np.empty(len(piece), np.int32)
        at = open_[: _place(words, _STEP, _INSIDE, piece, open_)]
        piece[at] = _decided(words[at] & np.uint32(_LAYERS - 1), piece[at], generator)


@compiled("i8(u4[::1], f4[::1], f4[::1], f4[::1], i4[::1])")
def _place(words: NDArray[np.uint32], step: Floats, inside: Floats, out: Floats, open_: NDArray[np.int32]) -> int:
    """Writes the value that each word stands for, and the places of those on which the layer alone cannot decide."""
    count = 0
    for i in range(out.size):
        layer = np.uint64(words[i] & np.uint32(_LAYERS - 1))  # of a signed one numba would ask whether it is negative
        place = np.float32(np.int32(np.int32(words[i]) >> np.int32(10))) + np.float32(0.5)
        out[i] = place * step[layer]
        if abs(place) >= inside[layer]:
            open_[count] = i
            count += 1
    return count


def _decided(layers: NDArray[Any], values: Floats, generator: np.random.Generator) -> Floats:
    """Values below the curve stay, those of the lowest layer come from the tail, and the others are drawn anew."""
    lower, upper, at = _HEIGHTS[layers], _HEIGHTS[layers + 1], generator.random((2, len(values)))
    tail = layers == 0
    anew = ~tail & (lower + at[0] * (upper - lower) >= np.exp(-0.5 * np.square(values, dtype=np.float64)))
    values[tail] = np.copysign(_tail(int(tail.sum()), generator), values[tail])
    # Box & Muller 1958
    angles = 2 * np.pi * at[1, anew]
    values[anew] = np.sqrt(-2 * np.log1p(-generator.random(len(angles)))) * np.cos(angles)
    return values


def _tail(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Values from beyond the lowest layer's end (Marsaglia 1964, Generating a variable from the tail)."""
    found = np.empty(0)
    while len(found) < count:
        past, other = -np.log1p(-generator.random((2, count + count // 4 + 8)))
        past /= _TAIL
        found = np.append(found, past[2 * other > past**2])
    return _TAIL + found[:count]
