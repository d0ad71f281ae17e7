"""Many parameters, or parts of them, filled at once by all cores.

The work is a list of (parameter, chunk), for all threads (`builder.parallel`). Values go straight into their place:
there is no second copy, whatever the size. Any range of a parameter gets the bits that it has in the whole, by drawing
the chunks that cover it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from builder.initialize.draws import Fill
from builder.initialize.streams import CHUNK, Stream
from builder.parallel import Task, cores, run_all

MOST_WHOLE = 8  # whole fills at a time: a QR takes the memory of three or four of its matrix
_STREAM = Stream()  # a fill that fills another parameter first, as a copy does, takes nothing from its own generator


@dataclass(frozen=True)
class Piece:
    """A range of one parameter's values, to be written.

    Attributes:
        out: Where they go: a contiguous tensor, on any device.
        fill: What draws them.
        stream: The name of the stream that they are drawn from.
        shape: The shape of the whole parameter.
        start: The flat index, in the parameter, of the first value of `out`.
    """

    out: torch.Tensor
    fill: Fill
    stream: str
    shape: tuple[int, ...]
    start: int = 0


Target = tuple[torch.Tensor, Fill, str, tuple[int, ...]]
"""A parameter, what draws it, the name of its stream, and the shape of the whole."""


def fill_range(
    out: torch.Tensor, fill: Fill, seed: int, stream: str, shape: Sequence[int], start: int = 0
) -> torch.Tensor:
    """Writes the values of a parameter from flat index `start` on, with the bits that they have in the whole.

    Args:
        out: A contiguous tensor of as many values as are wanted.
        fill: What draws them.
        seed: The init seed.
        stream: The name of the stream.
        shape: The shape of the whole parameter.
        start: The flat index of the first value.

    Returns:
        `out`.
    """
    fill_pieces([Piece(out, fill, stream, tuple(shape), start)], seed)
    return out


def fill_tensors(targets: Iterable[Target], seed: int) -> None:
    """Writes whole parameters in their place; what is not contiguous, by way of a copy.

    Args:
        targets: What is filled.
        seed: The init seed.
    """
    pieces, copies = [], []
    for tensor, fill, stream, shape in targets:
        out = tensor if tensor.is_contiguous() else torch.empty(shape, dtype=tensor.dtype)
        pieces.append(Piece(out, fill, stream, shape))
        if out is not tensor:
            copies.append((tensor, out))
    fill_pieces(pieces, seed)
    for tensor, out in copies:
        tensor.copy_(out)


def fill_pieces(pieces: Sequence[Piece], seed: int) -> None:
    """Writes all pieces; in which order, and by how many threads, changes no bit.

    Args:
        pieces: They do not overlap.
        seed: The init seed.
    """
    chunked = [piece for piece in pieces if not piece.fill.whole]
    whole = [piece for piece in pieces if piece.fill.whole and piece.out.numel()]
    threads = cores() if sum(piece.out.numel() for piece in chunked) > CHUNK else 1  # starting them takes time as well
    tasks = [task for piece in chunked for task in _chunk_tasks(piece, seed)]
    tasks.sort(key=lambda task: task.part.numel(), reverse=True)  # so that threads end together
    run_all(tasks, threads)
    run_all([_whole_task(piece, seed) for piece in whole if piece.fill.beside], min(cores(), MOST_WHOLE))
    run_all([_whole_task(piece, seed) for piece in whole if not piece.fill.beside], 1)


def _chunk_tasks(piece: Piece, seed: int) -> Iterator[_ChunkTask]:
    total, end = math.prod(piece.shape), piece.start + piece.out.numel()
    assert end <= total, f"values up to {end} of a parameter of {total}"
    flat = piece.out.view(-1)
    for number in range(piece.start // CHUNK, -(-end // CHUNK) if end > piece.start else 0):
        first, last = number * CHUNK, min((number + 1) * CHUNK, total)
        part = flat[max(first - piece.start, 0) : last - piece.start]
        yield _ChunkTask(piece, seed, number, part, first, last)


@dataclass(frozen=True)
class _ChunkTask:
    piece: Piece
    seed: int
    number: int
    part: torch.Tensor
    first: int
    last: int

    def __call__(self) -> None:
        """Draws the chunk, in place where `part` is all of it."""
        generator = _STREAM.at(self.seed, self.piece.stream, self.number)
        if self.part.numel() == self.last - self.first and self.part.device.type == "cpu":
            self.piece.fill.draw(self.part, generator, self.first)
            return
        chunk = torch.empty(self.last - self.first, dtype=self.part.dtype)
        self.piece.fill.draw(chunk, generator, self.first)
        before = max(self.piece.start - self.first, 0)
        self.part.copy_(chunk[before : before + self.part.numel()])


def _whole_task(piece: Piece, seed: int) -> Task:
    def run() -> None:
        generator = _STREAM.at(seed, piece.stream)
        if tuple(piece.out.shape) == piece.shape and piece.out.device.type == "cpu":
            piece.fill.draw(piece.out, generator, 0)
            return
        whole = torch.empty(piece.shape, dtype=piece.out.dtype)
        piece.fill.draw(whole, generator, 0)
        piece.out.view(-1).copy_(whole.view(-1)[piece.start : piece.start + piece.out.numel()])

    return run
