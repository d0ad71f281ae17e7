"""A random stream for each parameter, cut into chunks with their own generators.

The state of a chunk's generator is a hash of (init seed, parameter name, chunk number): no other layer, no thread count
and no order of filling changes a bit (law L2). The hash gives all 624 words of the state (Mersenne Twister MT19937 of
torch's CPU generator), because `manual_seed` reads 32 bits of its seed and no more: a model of 70 billion values has
134 thousand chunks, of which two pairs would then be copies of each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import shake_128
from typing import Any

import numpy as np
import torch

CHUNK = 2**19  # values; fixed, since it is part of what a seed means
WORDS = 624  # of 32 bits: the state of MT19937
_FIRST_WORD = 6  # torch keeps each in 64 bits from byte 24 on, behind seed, left, seeded and next

Draw = Callable[[torch.Tensor, torch.Generator | None, int], object]


def stream_words(seed: int, name: str, chunk: int = 0) -> bytes:
    """The 624 words that one chunk of a stream starts from.

    Args:
        seed: The init seed.
        name: The stream's name: that of a parameter, or of a layer.
        chunk: The chunk's number.
    """
    return shake_128(f"{seed}\0{name}\0{chunk}".encode()).digest(4 * WORDS)


def generator_state(words: bytes) -> torch.Tensor:
    """The state of a freshly seeded CPU generator that holds 624 given words, for `set_state` and `set_rng_state`."""
    state = torch.Generator().manual_seed(0).get_state()
    _words_of(state).copy_(_as_tensor(words))
    return state


def _words_of(state: torch.Tensor) -> torch.Tensor:
    return state.view(torch.int32)[_FIRST_WORD : _FIRST_WORD + 2 * WORDS : 2]


def _as_tensor(words: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(words), dtype=torch.int32)


class Stream(threading.local):
    """A CPU generator for each thread that goes to any chunk of any stream: 12 µs, a third of what a new one takes."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        with torch.inference_mode(False):  # it outlives the mode, in which it may be made
            self.state = generator_state(bytes(4 * WORDS))
            self.words = _words_of(self.state)

    def at(self, seed: int, name: str, chunk: int = 0) -> torch.Generator:
        """The generator, at the start of a chunk."""
        self.words.copy_(_as_tensor(stream_words(seed, name, chunk)))
        return self.generator.set_state(self.state)


class _Numbers(threading.local):
    """A generator of numpy for each thread, since a new one takes 50 µs."""

    def __init__(self) -> None:
        self.generator = np.random.Generator(np.random.SFC64(0))
        self.state: Any = self.generator.bit_generator.state


_NUMBERS = _Numbers()


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """This thread's generator of numpy (SFC64), at a state that is the next 192 bits of one of torch."""
    words = torch.randint(-(2**63), 2**63 - 1, (3,), generator=generator).numpy().view(np.uint64)
    _NUMBERS.state["state"]["state"][:] = [*words, 1]  # the last one counts
    _NUMBERS.generator.bit_generator.state = _NUMBERS.state
    return _NUMBERS.generator


def generator(seed: int, name: str, chunk: int = 0) -> torch.Generator:
    """A CPU generator of its own at the start of a chunk."""
    return Stream().at(seed, name, chunk)
