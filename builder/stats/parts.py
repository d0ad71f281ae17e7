"""Which values a process answers for, where several hold a model together.

A parameter that every process has whole (data-parallel training) is measured by the first alone. Of a sharded one (a
`DTensor`, as `fully_shard` makes them) each process measures its own shard, and of replicas the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, distributed

from builder.initialize.shards import is_shard

Gather = Callable[[Tensor], Tensor]
"""From this process's numbers, (size,), to those of all, (processes, size)."""


def own_part(tensor: Tensor, rank: int) -> Tensor:
    """The values that this process answers for; none where another process does."""
    if not is_shard(tensor):
        return tensor.detach() if rank == 0 else tensor.detach().flatten()[:0]
    sharded: Any = tensor
    local: Tensor = sharded.to_local().detach()
    coordinate = sharded.device_mesh.get_coordinate()
    replica = any(at for at, placed in zip(coordinate, sharded.placements, strict=True) if placed.is_replicate())
    return local.flatten()[:0] if replica else local


def none_of(tensor: Tensor, *, stacked: bool) -> Tensor:
    """None of a tensor's values (of each member)."""
    return tensor.reshape(len(tensor), -1)[:, :0] if stacked else tensor.flatten()[:0]


def alone(numbers: Tensor) -> Tensor:
    """What one process gathers."""
    return numbers.unsqueeze(0)


def gather_all(numbers: Tensor) -> Tensor:
    """What all processes of the default group gather; each has to call it."""
    found = numbers.new_empty(distributed.get_world_size() * numbers.numel())
    distributed.all_gather_into_tensor(found, numbers)
    return found.view(-1, numbers.numel())


def common(described: Mapping[str, Any]) -> list[str]:
    """What all processes of the default group describe alike, in the first one's order; each has to call it."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, dict(described))
    return [name for name, what in found[0].items() if all(name in other and other[name] == what for other in found)]


def first_row(tensor: Tensor) -> int | None:
    """The row of the whole parameter at which this process's part begins; None where it is not made of whole rows."""
    if not is_shard(tensor):
        return 0
    # Imported here: where there is a DTensor it has been imported already, and else it takes a second.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: PLC0415

    sharded: Any = tensor
    shape, offset = compute_local_shape_and_global_offset(sharded.shape, sharded.device_mesh, sharded.placements)
    return offset[0] if tuple(shape[1:]) == tuple(sharded.shape[1:]) else None


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor's values from all processes; each has to call it."""
    sharded: Any = tensor
    full: Tensor = sharded.full_tensor() if is_shard(tensor) else tensor
    return full.detach()


def placement_fault(tensor: Tensor) -> str:
    """Why a tensor's parts cannot be measured one by one; nothing where they can."""
    placements = getattr(tensor, "placements", ())
    return "placed as a partial sum" if any(placed.is_partial() for placed in placements) else ""
