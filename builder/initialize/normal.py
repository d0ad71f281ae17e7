"""Normal values in float32, by a ziggurat whose common part is a compiled loop.

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

Floats = NDArray[np.float32]

_LAYERS = 2**10
_TAIL = 4.0388498461095045  # where the lowest layer ends and the tail begins, so that the layers end at the mode
_AREA = 0.0012263246463530881  # of each layer
_HALF = 2**21  # places on either side of zero
_U = np.uint64
_LAYER, _PLACE, _MIDDLE = _U(_LAYERS - 1), np.int32(10), np.float32(0.5)  # of 32 bits, and of a place


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


def normal(out: Floats, mean: float, std: float, generator: np.random.Generator) -> None:
    """Fills with normal values.

    Args:
        out: At most 2**31 values.
        mean: Their mean.
        std: Their standard deviation.
        generator: Of SFC64; it goes on by 32 bits a value, and a few more.
    """
    holder: Any = generator.bit_generator.state
    at, layers = np.empty((2, len(out)), np.int32)
    values = np.empty(len(out), np.float32)
    count = _place(holder["state"]["state"], _STEP, _INSIDE, out, mean, std, at, layers, values)
    generator.bit_generator.state = holder
    decided = _decided(layers[:count], values[:count], generator)
    out[at[:count]] = decided * np.float32(std) + np.float32(mean)
    if len(out) % 2:
        out[-1] = generator.normal(mean, std)


@compiled("i8(u8[::1], f4[::1], f4[::1], f4[::1], f4, f4, i4[::1], i4[::1], f4[::1])")
def _place(
    state: NDArray[np.uint64],
    step: Floats,
    inside: Floats,
    out: Floats,
    mean: float,
    std: float,
    at: NDArray[np.int32],
    layers: NDArray[np.int32],
    values: Floats,
) -> int:
    """Writes the values that 64 bits stand for, two at a time.

    The bits are those of numpy's SFC64 (Doty-Humphrey, PractRand), made here so that they need not go through memory.

    Returns:
        How many values are yet to be decided. Where they are, their layers, and the values as they stand before they
        are scaled, is written into the last three.
    """
    a, b, c, counter = state
    count = 0
    for i in range(0, out.size - 1, 2):
        word = a + b + counter
        counter += _U(1)
        a = b ^ (b >> _U(11))
        b = c + (c << _U(3))
        c = ((c << _U(24)) | (c >> _U(40))) + word
        upper = word >> _U(32)
        layer, layer_2 = word & _LAYER, upper & _LAYER
        place = np.float32(np.int32(np.int32(np.uint32(word)) >> _PLACE)) + _MIDDLE
        place_2 = np.float32(np.int32(np.int32(np.uint32(upper)) >> _PLACE)) + _MIDDLE
        value, value_2 = place * step[layer], place_2 * step[layer_2]
        out[i], out[i + 1] = value * std + mean, value_2 * std + mean
        if (abs(place) >= inside[layer]) | (abs(place_2) >= inside[layer_2]):
            if abs(place) >= inside[layer]:
                at[count], layers[count], values[count] = i, np.int32(layer), value
                count += 1
            if abs(place_2) >= inside[layer_2]:
                at[count], layers[count], values[count] = i + 1, np.int32(layer_2), value_2
                count += 1
    state[0], state[1], state[2], state[3] = a, b, c, counter
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
