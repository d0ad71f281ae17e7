"""The part of a parameter that this process holds, filled with the bits that it has in the whole.

A sharded parameter is a `DTensor`. After `fully_shard` each process holds some of its rows; under tensor parallelism it
may hold some columns. A process draws only the rows that it needs, whatever the other processes do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from builder.errors import Problem, raise_all
from builder.initialize.chunks import Piece, Target, fill_pieces, fill_range
from builder.initialize.draws import Fill
from builder.initialize.streams import CHUNK

BLOCK = 16 * CHUNK  # values that are drawn at a time where a shard cuts through rows


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a `DTensor`, told without the second that importing the class takes."""
    return hasattr(tensor, "device_mesh")


def mesh_device(parameter: Any) -> str:
    """The kind of device that the parts of a sharded parameter live on."""
    return str(parameter.device_mesh.device_type)


def fill_shards(shards: Iterable[Target], seed: int) -> None:
    """Writes this process's part of each sharded parameter, of which `check_shards` found nothing wrong."""
    rows: list[Piece] = []
    for parameter, fill, stream, shape in shards:
        offsets = _offsets(parameter, shape)
        local = parameter.to_local()  # type: ignore[attr-defined]
        if not local.numel():
            continue
        if local.shape[1:] == shape[1:] and local.is_contiguous():
            rows.append(Piece(local, fill, stream, shape, offsets[0] * prod(shape[1:]) if shape else 0))
        else:
            _fill_box(local, offsets, fill, seed, stream, shape)
    fill_pieces(rows, seed)


def _offsets(parameter: Any, shape: tuple[int, ...]) -> Sequence[int]:
    """Where the local part of a sharded parameter begins, along each axis."""
    # Imported here: it takes a second, and where there is a DTensor it has been imported already.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: PLC0415

    _, offsets = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
    return tuple(offsets)


def _fill_box(
    local: torch.Tensor, offsets: Sequence[int], fill: Fill, seed: int, stream: str, shape: tuple[int, ...]
) -> None:
    """Fills a part that does not hold whole rows: draws a block of rows, keeps what belongs to it."""
    width = prod(shape[1:])
    most = local.shape[0] if fill.whole else max(1, BLOCK // width)
    inside = tuple(slice(start, start + size) for start, size in zip(offsets[1:], local.shape[1:], strict=True))
    for first in range(0, local.shape[0], most):
        count = min(most, local.shape[0] - first)
        block = torch.empty((count, *shape[1:]), dtype=local.dtype)
        fill_range(block, fill, seed, stream, shape, (offsets[0] + first) * width)
        local[first : first + count].copy_(block[(slice(None), *inside)])


def check_shards(parameters: Iterable[tuple[str, str | None, nn.Parameter]]) -> None:
    """Refuses sharded parameters whose part cannot be filled.

    Args:
        parameters: Name, what alone can fill it where it is a layer's own method, and the parameter.

    Raises:
        BuilderError: One of them is sharded and filled by such a method, or is neither a plain shard nor a replica.
    """
    problems = []
    for name, by, parameter in parameters:
        if not is_shard(parameter):
            continue
        placements = parameter.placements  # type: ignore[attr-defined]
        if by is not None:
            what = f"is sharded, and only {by} knows its default"
            problems.append(Problem(name, what, "give it an init rule"))
        elif not all(type(placement).__name__ in ("Replicate", "Shard") for placement in placements):
            what = f"is placed as {', '.join(map(str, placements))}"
            problems.append(Problem(name, what, "Shard and Replicate can be filled; fill before you wrap"))
    raise_all("init", problems)
