"""What is measured of tensors, as pure functions: lists of tensors in, one small tensor on their device out.

Nothing here waits for the device. Values are read in chunks that stay in cache and summed in float64, each chunk
around its own mean, so that a std does not cancel away next to a large mean and a norm does not drift with the number
of values (torch 2.13 sums a float32 2-norm of 31 million values on the CPU to 0.2 %). All spreads are population
values, divided by n.

Non-finite values are counted and never dropped: one NaN makes the mean NaN. A tensor without values measures 0
throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from builder.stats.columns import GRADIENT_MEASURES, WEIGHT_MEASURES

_CPU_CHUNK = 2**16  # half a megabyte of float64 stays in a core's cache; four times as fast as whole tensors
_DEVICE_CHUNK = 2**22  # fewer kernels, and 32 MB of scratch memory


def moments(tensors: Sequence[Tensor]) -> Tensor:
    """Mean, population std, rms and count of non-finite values of each tensor, of shape (n, 4)."""
    return _table([_moments(tensor) for tensor in tensors], len(WEIGHT_MEASURES))


def magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    """Rms and count of non-finite values of each tensor, of shape (n, 2)."""
    return _table([_magnitude(tensor) for tensor in tensors], len(GRADIENT_MEASURES))


def change_rms(after: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """Rms of `after - before` of each pair, of shape (n,); the difference is taken in float64."""
    return _table([_change(*pair) for pair in zip(after, before, strict=True)], 1).flatten()


def ratio(update_rms: Tensor, weight_rms: Tensor) -> Tensor:
    """Update over weight: 0 where nothing moved a zero weight, inf where an update left a weight at zero."""
    still = (update_rms == 0) & (weight_rms == 0)
    return torch.where(still, 0.0, update_rms / weight_rms)


def _table(rows: list[Tensor], width: int) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, width)


def _moments(tensor: Tensor) -> Tensor:
    size = tensor.numel()
    if size == 0:
        return _nothing(tensor, len(WEIGHT_MEASURES))
    parts = [(chunk.numel(), *_chunk_moments(chunk)) for chunk in _chunks(tensor)]
    mean = _total([total for _, total, *_ in parts]) / size
    # Chan, Golub, LeVeque (1979): squares around the whole mean from squares around the chunks' own means
    around = _total([around + n * (total / n - mean).square() for n, total, around, *_ in parts])
    squares = _total([squares for *_, squares, _ in parts])
    bad = _total([bad for *_, bad in parts])
    return torch.stack([mean, (around / size).sqrt(), (squares / size).sqrt(), bad])


def _chunk_moments(chunk: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, squares around the chunk's mean, squares, and count of non-finite values."""
    total = chunk.sum()
    centred = chunk - total / chunk.numel()
    return total, torch.dot(centred, centred), torch.dot(chunk, chunk), _nonfinite(chunk)


def _magnitude(tensor: Tensor) -> Tensor:
    size = tensor.numel()
    if size == 0:
        return _nothing(tensor, len(GRADIENT_MEASURES))
    parts = [(torch.dot(chunk, chunk), _nonfinite(chunk)) for chunk in _chunks(tensor)]
    squares, bad = (_total(list(column)) for column in zip(*parts, strict=True))
    return torch.stack([(squares / size).sqrt(), bad])


def _change(after: Tensor, before: Tensor) -> Tensor:
    size = after.numel()
    if size == 0:
        return _nothing(after, 1)
    moves = (new - old for new, old in zip(_chunks(after), _chunks(before), strict=True))
    return (_total([torch.dot(move, move) for move in moves]) / size).sqrt().reshape(1)


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The values in order, flat, a chunk at a time, in float64 (float32 on MPS, which has no more)."""
    cpu = tensor.device.type == "cpu"
    for chunk in torch.split(tensor.detach().reshape(-1), _CPU_CHUNK if cpu else _DEVICE_CHUNK):
        yield chunk.to(_wide(tensor))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _nonfinite(chunk: Tensor) -> Tensor:
    """x - x is 0 for a finite value and NaN for any other, and costs half of `isfinite`."""
    return torch.count_nonzero(chunk - chunk).to(chunk.dtype)


def _total(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum()


def _nothing(tensor: Tensor, width: int) -> Tensor:
    return torch.zeros(width, dtype=_wide(tensor), device=tensor.device)
