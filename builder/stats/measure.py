"""What is measured of tensors, as pure functions: lists of tensors in, one small table on their device out.

Each measure goes two steps. A pass over the values makes *sums* (`weight_sums`, `gradient_sums`, ...): a row for each
tensor, with columns that can be joined, so that the parts of a tensor may lie in chunks or in several processes
(`joined`). What people look at follows from the sums alone (`weight_measures`, ...). With `stacked`, the first axis of
every tensor counts members, and each member has its own row.

Nothing here waits for a device. There, and for small tensors, values are read in float64, around their chunk's own
mean. On the CPU, where asking costs nothing, large tensors are read in their own float32, which is some six times as
fast: rms, norm and std to a relative 1e-5, at the worst (all values of one size) 2e-4, and the mean to 1e-6 of the
rms. A chunk whose sums say that float32 lost digits (a mean beside which the spread is small, squares beyond the
range), or that holds non-finite values, is read again in float64.

All spreads are population values, divided by n. Non-finite values are counted and never dropped: one NaN makes the mean
NaN. A tensor without values measures 0 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import gcd, isfinite, isnan, nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.stats.columns import BINS, LOWEST, POWERS

WEIGHT = ("count", "total", "around", "squares", "low", "high", "zeros", "nonfinite")
GRADIENT = ("count", "squares", "low", "high", "nonfinite")
CHANGE = ("count", "squares")
START = ("count", "moved", "along", "squares", "started")
OUTPUT = ("count", "total", "around", "squares", "nonfinite")
COUNTED = (*(f"bin {number}" for number in range(BINS)), "sampled")

Array = NDArray[np.float64]
Rows = list[list[float]]
"""Sums on the host."""

SAMPLE = 2**13  # values of a tensor that its histogram looks at, at the most and roughly
_QUICK = 2**14  # from here on float32 pays
_QUICK_CHUNK = 2**20  # fewer calls, and still within the last cache
_QUICK_SQUARES = 2**19  # of more values a float32 sum of squares drifts
_CPU_CHUNK = 2**13  # stays in a core's cache, and is too little for torch or BLAS to wake another thread
_DEVICE_CHUNK = 2**22  # fewer kernels, and 32 MB of scratch memory
_TINY = 1e-30  # a mean square that float32 holds with all digits, and those of values 100 times smaller
_IDENTITY = {"low": float("inf"), "high": float("-inf")}


# ---- sums ----------------------------------------------------------------------------------------------------------


def weight_sums(tensors: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Sums of all that is measured of weights: a row for each tensor (and member), columns `WEIGHT`."""
    return _table([_sums(tensor, WEIGHT, stacked) for tensor in tensors], WEIGHT)


def gradient_sums(tensors: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Sums of all that is measured of gradients: a row for each tensor (and member), columns `GRADIENT`."""
    return _table([_sums(tensor, GRADIENT, stacked) for tensor in tensors], GRADIENT)


def square_sums(tensors: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Counts and sums of squares: a row for each tensor (and member), columns `CHANGE`."""
    return _table([_sums(tensor, CHANGE, stacked) for tensor in tensors], CHANGE)


def change_sums(after: Sequence[Tensor], before: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """Counts and sums of squares of `after - before`: a row for each pair (and member), columns `CHANGE`."""
    return _table([_changes(*pair, stacked) for pair in zip(after, before, strict=True)], CHANGE)


def start_sums(now: Tensor, start: Tensor, *, stacked: bool = False) -> Tensor:
    """Products of a tensor with its initial value, and of their difference: (members or 1, columns `START`)."""
    new, old = (_members(tensor, stacked) for tensor in (now, start))
    if not new.numel():
        return _nothing(new, START).expand(len(new), -1)
    if _is_read_alone(new):
        pairs = zip(new.unbind(), old.unbind(), strict=True)
        return torch.tensor([_exact_products(*pair) for pair in pairs], dtype=torch.float64)
    width = _chunk(new)
    parts = [_products(a, b) for a, b in zip(torch.split(new, width, 1), torch.split(old, width, 1), strict=True)]
    return joined(torch.stack(parts), START)


def output_sums(tensor: Tensor) -> Tensor:
    """Sums of all that is measured of a layer's output: (1, columns `OUTPUT`)."""
    return _table([_sums(tensor, OUTPUT, False)], OUTPUT)


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


def _table(parts: Sequence[Tensor | Rows], columns: tuple[str, ...]) -> Tensor:
    """Rows of all tensors one below the other; those that are on the host already become a tensor at once."""
    if all(isinstance(part, list) for part in parts):
        rows = [row for part in parts for row in part]
        return torch.tensor(rows, dtype=torch.float64) if rows else torch.zeros(0, len(columns))
    return torch.cat([torch.tensor(part, dtype=torch.float64) if isinstance(part, list) else part for part in parts])


def _members(tensor: Tensor, stacked: bool) -> Tensor:
    """The values as (members, values of each)."""
    members = len(tensor) if stacked else 1
    return tensor.detach().reshape(members, tensor.numel() // max(members, 1))


def _sums(tensor: Tensor, columns: tuple[str, ...], stacked: bool) -> Tensor | Rows:
    values = _members(tensor, stacked)
    if not values.numel():
        return _nothing(values, columns).expand(len(values), -1)
    if _is_read_alone(values):
        read = _quick_rows if _is_quick(values) else _exact_rows
        return [_joined_rows(read(member, columns), columns) for member in values.unbind()]
    return joined(torch.stack([_exact(part, columns) for part in torch.split(values, _chunk(values), dim=1)]), columns)


def _changes(after: Tensor, before: Tensor, stacked: bool) -> Tensor | Rows:
    new, old = (_members(tensor, stacked) for tensor in (after, before))
    if not new.numel():
        return _nothing(new, CHANGE).expand(len(new), -1)
    if _is_read_alone(new):
        read = _quick_changes if _is_quick(new) else _exact_changes
        pairs = zip(new.unbind(), old.unbind(), strict=True)
        return [_joined_rows(read(*pair), CHANGE) for pair in pairs]
    width = _chunk(new)
    parts = zip(torch.split(new, width, 1), torch.split(old, width, 1), strict=True)
    return joined(torch.stack([_exact(a.to(wide_type(a)) - b.to(wide_type(b)), CHANGE) for a, b in parts]), CHANGE)


def _nothing(like: Tensor, columns: tuple[str, ...]) -> Tensor:
    row = [_IDENTITY.get(column, 0.0) for column in columns]
    return torch.stack([torch.full((1,), value, dtype=wide_type(like), device=like.device) for value in row], dim=1)


def _chunk(values: Tensor) -> int:
    size = _CPU_CHUNK if values.device.type == "cpu" else _DEVICE_CHUNK
    return max(1, size // len(values))


def wide_type(tensor: Tensor) -> torch.dtype:
    """The type in which a tensor is summed."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # mps has no more


# ---- a chunk in float64 --------------------------------------------------------------------------------------------

_EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "count": lambda x: torch.full_like(x[:, 0], x.shape[1]),
    "total": lambda x: x.sum(1),
    "around": lambda x: (x - x.mean(1, keepdim=True)).square_().sum(1),
    "squares": lambda x: x.square().sum(1),
    "low": lambda x: x.amin(1),
    "high": lambda x: x.amax(1),
    "zeros": lambda x: (x == 0).sum(1).to(x.dtype),
    "nonfinite": lambda x: torch.count_nonzero(x - x, dim=1).to(x.dtype),  # x - x is 0 if x is finite, else NaN
}


def _exact(chunk: Tensor, columns: Iterable[str]) -> Tensor:
    """Sums of a chunk of each member, of shape (members, columns)."""
    wide = chunk.to(wide_type(chunk))
    return torch.stack([_EXACT[column](wide) for column in columns], dim=1)


def _products(new: Tensor, old: Tensor) -> Tensor:
    a, b = new.to(wide_type(new)), old.to(wide_type(new))
    parts = [(a - b).square().sum(1), (a * b).sum(1), a.square().sum(1), b.square().sum(1)]
    return torch.stack([torch.full_like(parts[0], a.shape[1]), *parts], dim=1)


# ---- on the CPU, where a value may be asked for --------------------------------------------------------------------


def _is_read_alone(values: Tensor) -> bool:
    """Whether members are read one by one, which many small ones are not."""
    return values.device.type == "cpu" and (len(values) == 1 or values.shape[1] >= _QUICK)


def _is_quick(values: Tensor) -> bool:
    return values.shape[1] >= _QUICK and values.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _joined_rows(rows: Rows, columns: tuple[str, ...]) -> list[float]:
    """`joined` for rows on the host: a few additions, for which calls to torch take longer than all passes."""
    if len(rows) == 1:
        return rows[0]
    of = dict(zip(columns, zip(*rows, strict=True), strict=True))
    found = {column: sum(values) for column, values in of.items()}
    if "around" in of:
        mean = found["total"] / found["count"]
        apart = [total / n - mean for n, total in zip(of["count"], of["total"], strict=True)]
        found["around"] += sum(n * a * a for n, a in zip(of["count"], apart, strict=True))
    if "low" in of:
        found["low"], found["high"] = min(of["low"]), max(of["high"])
        if any(map(isnan, of["low"])):  # which Python's min may pass over
            found["low"] = found["high"] = nan
    return [found[column] for column in columns]


def _exact_rows(values: Tensor, columns: tuple[str, ...]) -> Rows:
    """Sums of a flat tensor in float64, a row for each chunk; numpy's calls take a tenth of torch's time."""
    with np.errstate(all="ignore"):
        return [_exact_sums(chunk, columns) for chunk in _wide_chunks(values)]


def _exact_sums(x: Array, columns: tuple[str, ...]) -> list[float]:
    found = {"count": float(len(x)), "squares": float(x @ x)}
    if "low" in columns:
        found["low"], found["high"] = float(x.min()), float(x.max())
    if "total" in columns:
        found["total"] = float(x.sum())
        centred = x - found["total"] / len(x)
        found["around"] = float(centred @ centred)
    if "zeros" in columns:
        found["zeros"] = float(len(x) - np.count_nonzero(x))
    if "nonfinite" in columns:
        found["nonfinite"] = 0.0 if isfinite(found["squares"]) else float(len(x) - np.isfinite(x).sum())
    return [found[column] for column in columns]


def _exact_changes(after: Tensor, before: Tensor) -> Rows:
    pairs = zip(_wide_chunks(after), _wide_chunks(before), strict=True)
    with np.errstate(all="ignore"):
        return [_exact_sums(new - old, CHANGE) for new, old in pairs]


def _exact_products(new: Tensor, old: Tensor) -> list[float]:
    rows = []
    with np.errstate(all="ignore"):
        for a, b in zip(_wide_chunks(new), _wide_chunks(old), strict=True):
            moved = a - b
            rows.append([float(len(a)), float(moved @ moved), float(a @ b), float(a @ a), float(b @ b)])
    return _joined_rows(rows, START)


def _quick_rows(values: Tensor, columns: tuple[str, ...]) -> Rows:
    """Sums of a flat tensor, a row for each chunk, in float32 where it keeps its digits."""
    rows: Rows = []
    for chunk in torch.split(values, _QUICK_CHUNK):
        sums = _quick_sums(chunk.float(), columns)
        row = [sums[column] for column in columns]
        rows += _exact_rows(chunk, columns) if _has_lost_digits(sums) else [row]
    return rows


def _quick_sums(chunk: Tensor, columns: tuple[str, ...]) -> dict[str, float]:
    found = {"count": float(len(chunk)), "nonfinite": 0.0}
    if "low" in columns:
        found["low"], found["high"] = (value.item() for value in torch.aminmax(chunk))
    found["squares"] = _quick_squares(chunk)
    if "total" in columns:
        found["total"] = chunk.sum().item()
        found["around"] = found["squares"] - found["total"] ** 2 / len(chunk)
    if "zeros" in columns:  # as float32: half the time of `count_nonzero`
        found["zeros"] = torch.eq(chunk, 0, out=_scratch()[: len(chunk)]).sum().item()
    return found


def _quick_squares(chunk: Tensor) -> float:
    return sum(torch.dot(part, part).item() for part in torch.split(chunk, _QUICK_SQUARES))


def _quick_changes(after: Tensor, before: Tensor) -> Rows:
    rows: Rows = []
    for new, old in zip(torch.split(after, _QUICK_CHUNK), torch.split(before, _QUICK_CHUNK), strict=True):
        move = torch.sub(new.float(), old.float(), out=_scratch()[: len(new)])
        sums = {"count": float(len(new)), "squares": _quick_squares(move)}
        lost = _has_lost_digits(sums) and not torch.equal(new, old)
        rows += _exact_changes(new, old) if lost else [[sums[column] for column in CHANGE]]
    return rows


@cache
def _scratch() -> Tensor:
    """Memory for one chunk, kept: the system takes longer to give 4 MB than a pass over them."""
    with torch.inference_mode(False):
        return torch.empty(_QUICK_CHUNK)


def _has_lost_digits(sums: dict[str, float]) -> bool:
    """Whether a chunk's float32 sums are not to be trusted."""
    squares = sums["squares"]
    if sums.get("low", 1) == sums.get("high", 1) == 0:
        return False
    return (
        not isfinite(squares)  # non-finite values, or squares above the range
        or squares / sums["count"] < _TINY  # squares below it
        or sums.get("around", squares) < squares / 8  # a mean beside which the spread is small
    )


def _wide_chunks(values: Tensor) -> Iterable[Array]:
    parts = (values,) if values.numel() <= _CPU_CHUNK else torch.split(values, _CPU_CHUNK)
    return (part.double().numpy() for part in parts)


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
    return found


def weight_measures(sums: Tensor) -> Tensor:
    """Mean, std, rms, min, max, l2, fraction of zeros and non-finite count: (rows, 8), from columns `WEIGHT`."""
    count, total, around, squares, low, high, zeros, nonfinite = sums.unbind(1)
    n = count.clamp(min=1)
    found = [total / n, (around / n).sqrt(), (squares / n).sqrt(), low, high, squares.sqrt(), zeros / n, nonfinite]
    return torch.where((count > 0).unsqueeze(1), torch.stack(found, dim=1), 0.0)


def gradient_measures(sums: Tensor) -> Tensor:
    """Rms, greatest absolute value and non-finite count: (rows, 3), from columns `GRADIENT`."""
    count, squares, low, high, nonfinite = sums.unbind(1)
    found = [(squares / count.clamp(min=1)).sqrt(), torch.maximum(low.abs(), high.abs()), nonfinite]
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
