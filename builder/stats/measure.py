"""What is measured of tensors, as pure functions: lists of tensors in, one small table on their device out.

Each measure goes two steps. A pass over the values makes *sums* (`weight_sums`, `gradient_sums`, ...): a row for each
tensor, with columns that can be joined, so that the parts of a tensor may lie in chunks or in several processes
(`joined`). What people look at follows from the sums alone (`weight_measures`, ...). With `stacked`, the first axis of
every tensor counts members, and each member has its own row.

Nothing here waits for a device. Sums are taken in float64, chunk by chunk, those of spread around the chunk's own mean
where it matters; on the CPU by `builder.stats.passes`.

All spreads are population values, divided by n. Non-finite values are counted and never dropped: one NaN makes the mean
NaN. A tensor without values measures 0 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

import torch
from torch import Tensor

from builder.stats import passes
from builder.stats.columns import BINS, LOWEST, POWERS
from builder.stats.passes import CHANGE, START

WEIGHT = ("count", "total", "around", "squares", "low", "high", "zeros", "nonfinite")
STEP = (*WEIGHT, "compared", "moved")
GRADIENT = ("count", "squares", "greatest", "nonfinite")
OUTPUT = ("count", "total", "around", "squares", "nonfinite")
COUNTED = (*(f"bin {number}" for number in range(BINS)), "sampled")

SAMPLE = 2**12  # values of a tensor that its histogram looks at, at the most and roughly
_CPU_CHUNK = 2**13  # stays in a core's cache
_DEVICE_CHUNK = 2**22  # fewer kernels, and 32 MB of scratch memory
_IDENTITY = {"low": float("inf"), "high": float("-inf")}


# ---- sums ----------------------------------------------------------------------------------------------------------


def weight_sums(tensors: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Sums of all that is measured of weights: a row for each tensor (and member), columns `WEIGHT`."""
    return _sums([(tensor,) for tensor in tensors], passes.values, WEIGHT, stacked)


def step_sums(now: Sequence[Tensor], before: Sequence[Tensor | None], *, stacked: bool = False) -> Tensor:
    """`weight_sums`, and in one pass the counts and squares of what a step changed: columns `WEIGHT`, then `CHANGE`.

    Args:
        now: The weights.
        before: What each was before the step; None where it is not compared, which counts 0.
        stacked: Whether the first axis counts members.
    """
    groups = [(new,) if old is None else (new, old) for new, old in zip(now, before, strict=True)]
    return _sums(groups, passes.values, STEP, stacked)


def gradient_sums(tensors: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Sums of all that is measured of gradients: a row for each tensor (and member), columns `GRADIENT`."""
    return _sums([(tensor,) for tensor in tensors], passes.values, GRADIENT, stacked)


def square_sums(tensors: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Counts and sums of squares: a row for each tensor (and member), columns `CHANGE`."""
    return _sums([(tensor,) for tensor in tensors], passes.values, CHANGE, stacked)


def start_sums(now: Sequence[Tensor], start: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Products of tensors with their initial values, and of the difference: a row for each pair, columns `START`."""
    return _sums([*zip(now, start, strict=True)], passes.products, START, stacked)


def output_sums(tensor: Tensor) -> Tensor:
    """Sums of all that is measured of a layer's output: (1, columns `OUTPUT`)."""
    if tensor.device.type == "cpu" and tensor.numel():  # as `_sums` would, in half of its time
        rows = passes.rows_of([(tensor.detach().resolve_neg().reshape(-1),)], passes.values, OUTPUT)
        return torch.tensor(rows, dtype=torch.float64)
    return _sums([(tensor,)], passes.values, OUTPUT, False)


def histogram_counts(tensors: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Counts by power of two (`builder.stats.columns`): a row for each tensor (and member), columns `COUNTED`.

    Of a tensor of more than `SAMPLE` values every k-th is looked at, from the first on; how many, says the last column.
    Non-finite values are in no bin.
    """
    samples = [_sample(_members(tensor, stacked)) for tensor in tensors]
    rows = [row for sample in samples for row in sample.unbind()]
    if not rows:
        return torch.zeros(0, len(COUNTED))
    bins = torch.split(_bins(torch.cat(rows)), [row.numel() for row in rows])
    keys = torch.cat([part + number * (BINS + 1) for number, part in enumerate(bins)])
    counts = torch.zeros(len(rows) * (BINS + 1), dtype=torch.int64, device=keys.device)
    counts.index_add_(0, keys, torch.ones_like(keys))
    table = counts.view(len(rows), BINS + 1).to(wide_type(keys))
    return torch.cat([table[:, :BINS], table.sum(1, keepdim=True)], dim=1)


def _sums(groups: Sequence[tuple[Tensor, ...]], read: passes.Read, columns: tuple[str, ...], stacked: bool) -> Tensor:
    """Rows of all groups of tensors that are read together, one below the other."""
    read_alone: list[passes.Chunk] = []
    found: list[Tensor | int] = []  # rows, or how many are to come from those read alone
    for group in groups:
        values = [_members(tensor, stacked) for tensor in group]
        if not values[0].numel():
            found.append(_nothing(values[0], columns).expand(len(values[0]), -1))
        elif _is_read_alone(values[0]):
            read_alone += zip(*(tensor.unbind() for tensor in values), strict=True)
            found.append(len(values[0]))
        else:
            found.append(_by_torch(values, read, columns))
    rows = torch.tensor(passes.rows_of(read_alone, read, columns), dtype=torch.float64).view(-1, len(columns))
    if len(found) == 1 and isinstance(found[0], Tensor):
        return found[0]
    if all(isinstance(each, int) for each in found):
        return rows
    parts = iter(torch.split(rows, [each for each in found if isinstance(each, int)]))
    return torch.cat([next(parts) if isinstance(each, int) else each for each in found])


def _members(tensor: Tensor, stacked: bool) -> Tensor:
    """The values as (members, values of each)."""
    members = len(tensor) if stacked else 1
    return tensor.detach().resolve_neg().reshape(members, tensor.numel() // max(members, 1))


def _is_read_alone(values: Tensor) -> bool:
    """Whether members are read one by one, which many small ones are not."""
    return values.device.type == "cpu" and (len(values) == 1 or values.shape[1] >= passes.LARGE)


def _nothing(like: Tensor, columns: tuple[str, ...]) -> Tensor:
    row = [_IDENTITY.get(column, 0.0) for column in columns]
    return torch.stack([torch.full((1,), value, dtype=wide_type(like), device=like.device) for value in row], dim=1)


def wide_type(tensor: Tensor) -> torch.dtype:
    """The type in which a tensor is summed."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # mps has no more


# ---- members side by side, in float64 ------------------------------------------------------------------------------


def _by_torch(values: Sequence[Tensor], read: passes.Read, columns: tuple[str, ...]) -> Tensor:
    """Sums of tensors of shape (members, values of each), without waiting for a device: (members, columns)."""
    size = _CPU_CHUNK if values[0].device.type == "cpu" else _DEVICE_CHUNK
    width = max(1, size // len(values[0]))
    chunks = zip(*(torch.split(tensor, width, 1) for tensor in values), strict=True)
    wide = ([part.to(wide_type(part)) for part in chunk] for chunk in chunks)
    return joined(torch.stack([_BY_TORCH[read](columns, *chunk) for chunk in wide]), columns)


def _of_values(columns: tuple[str, ...], x: Tensor, before: Tensor | None = None) -> Tensor:
    found = {column: of(x) for column, of in _COLUMN.items() if column in columns}
    if "moved" in columns:
        nothing = torch.zeros_like(x[:, 0])
        found["compared"] = nothing if before is None else torch.full_like(nothing, x.shape[1])
        found["moved"] = nothing if before is None else (x - before).square().sum(1)
    return torch.stack([found[column] for column in columns], dim=1)


def _of_products(columns: tuple[str, ...], new: Tensor, old: Tensor) -> Tensor:
    parts = [(new - old).square().sum(1), (new * old).sum(1), new.square().sum(1), old.square().sum(1)]
    return torch.stack([torch.full_like(parts[0], new.shape[1]), *parts], dim=1)


_COLUMN: dict[str, Callable[[Tensor], Tensor]] = {
    "count": lambda x: torch.full_like(x[:, 0], x.shape[1]),
    "total": lambda x: x.sum(1),
    "around": lambda x: (x - x.mean(1, keepdim=True)).square_().sum(1),
    "squares": lambda x: x.square().sum(1),
    "low": lambda x: x.amin(1),
    "high": lambda x: x.amax(1),
    "greatest": lambda x: x.abs().amax(1),
    "zeros": lambda x: (x == 0).sum(1).to(x.dtype),
    "nonfinite": lambda x: torch.count_nonzero(x - x, dim=1).to(x.dtype),  # x - x is 0 if x is finite, else NaN
}
_BY_TORCH: dict[passes.Read, Callable[..., Tensor]] = {
    passes.values: _of_values,
    passes.products: _of_products,
}


# ---- joining, and what people look at ------------------------------------------------------------------------------


def joined(parts: Tensor, columns: tuple[str, ...]) -> Tensor:
    """Sums of whole tensors from those of their parts.

    Args:
        parts: (parts, rows, columns).
        columns: What the columns are.

    Returns:
        (rows, columns).
    """
    if len(parts) == 1:
        return parts[0]
    found = parts.sum(0)
    at = {column: number for number, column in enumerate(columns)}
    if "around" in at:
        # Chan, Golub, LeVeque (1979): squares around the whole mean from squares around the parts' own means
        count, total = parts[..., at["count"]], parts[..., at["total"]]
        mean = found[:, at["total"]] / found[:, at["count"]].clamp(min=1)
        apart = total / count.clamp(min=1) - mean
        found[:, at["around"]] += (count * apart.square()).sum(0)
    if "low" in at:
        found[:, at["low"]] = parts[..., at["low"]].amin(0)
        found[:, at["high"]] = parts[..., at["high"]].amax(0)
    if "greatest" in at:
        found[:, at["greatest"]] = parts[..., at["greatest"]].amax(0)
    return found


def weight_measures(sums: Tensor) -> Tensor:
    """Mean, std, rms, min, max, l2, fraction of zeros and non-finite count: (rows, 8), from columns `WEIGHT`."""
    count, total, around, squares, low, high, zeros, nonfinite = sums.unbind(1)
    n = count.clamp(min=1)
    found = [total / n, (around / n).sqrt(), (squares / n).sqrt(), low, high, squares.sqrt(), zeros / n, nonfinite]
    return torch.where((count > 0).unsqueeze(1), torch.stack(found, dim=1), 0.0)


def gradient_measures(sums: Tensor) -> Tensor:
    """Rms, greatest absolute value and non-finite count: (rows, 3), from columns `GRADIENT`."""
    count, squares, greatest, nonfinite = sums.unbind(1)
    found = [(squares / count.clamp(min=1)).sqrt(), greatest, nonfinite]
    return torch.where((count > 0).unsqueeze(1), torch.stack(found, dim=1), 0.0)


def rms_of(sums: Tensor) -> Tensor:
    """Rms: (rows,), from columns `CHANGE`."""
    count, squares = sums.unbind(1)
    return (squares / count.clamp(min=1)).sqrt()


def start_measures(sums: Tensor) -> Tensor:
    """Distance and cosine: (rows, 2), from columns `START`; the cosine with a zero vector is NaN."""
    _, moved, along, squares, started = sums.unbind(1)
    cosine = along / (squares.sqrt() * started.sqrt())
    return torch.stack([moved.sqrt(), torch.where(cosine.isnan(), cosine, cosine.clamp(-1, 1))], dim=1)


def output_measures(sums: Tensor) -> Tensor:
    """Mean, std, rms and non-finite count: (rows, 4), from columns `OUTPUT`."""
    count, total, around, squares, nonfinite = sums.unbind(1)
    n = count.clamp(min=1)
    return torch.stack([total / n, (around / n).sqrt(), (squares / n).sqrt(), nonfinite], dim=1)


def ratio(update_rms: Tensor, weight_rms: Tensor) -> Tensor:
    """Update over weight: 0 where nothing moved a zero weight, inf where an update left a weight at zero."""
    still = (update_rms == 0) & (weight_rms == 0)
    return torch.where(still, 0.0, update_rms / weight_rms)


# ---- histograms ----------------------------------------------------------------------------------------------------


def _sample(values: Tensor) -> Tensor:
    """Every k-th value of each member; k has no divisor in common with small widths, so that no columns are missed."""
    stride = max(1, -(-values.shape[1] // SAMPLE))
    while stride > 1 and gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    return values[:, ::stride]


def _bins(values: Tensor) -> Tensor:
    """The bin of each value; the one past the last for what is not finite."""
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    _, exponent = torch.frexp(wide)  # |x| = m * 2 ** exponent with m in [1/2, 1)
    power = (exponent - LOWEST).clamp(1, POWERS)
    bins = POWERS + torch.sign(wide).nan_to_num(0).int() * power
    return torch.where((wide - wide) == 0, bins, BINS).long()
