"""A random stream for each parameter, cut into chunks with their own generators.

The seed of a chunk is a hash of (init seed, parameter name, chunk number): no other layer, no thread count and no order
of filling changes a bit (law L2). Chunks fill in parallel; torch releases the interpreter lock while it draws.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import torch

CHUNK = 2**18  # values; fixed, since it is part of what a seed means

Draw = Callable[[torch.Tensor, torch.Generator | None], object]


def stream_seed(seed: int, name: str, chunk: int = 0) -> int:
    """The 63-bit seed of one chunk of a parameter's stream."""
    digest = blake2b(f"{seed}\0{name}\0{chunk}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, name: str, chunk: int = 0) -> torch.Generator:
    """A CPU generator at the start of one chunk of a parameter's stream."""
    return torch.Generator().manual_seed(stream_seed(seed, name, chunk))


def fill_chunks(tensor: torch.Tensor, seed: int, name: str, draw: Draw) -> None:
    """Fills a contiguous CPU tensor, chunk by chunk, with values that are drawn independently of each other."""
    flat = tensor.view(-1)
    chunks = list(enumerate(torch.split(flat, CHUNK)))

    def fill(item: tuple[int, torch.Tensor]) -> None:
        number, part = item
        with torch.no_grad():
            draw(part, generator(seed, name, number))

    if len(chunks) <= 1:
        for item in chunks:
            fill(item)
        return
    with ThreadPoolExecutor(min(len(chunks), os.cpu_count() or 1)) as pool:
        list(pool.map(fill, chunks))
