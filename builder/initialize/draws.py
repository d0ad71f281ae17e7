"""What each policy writes into a tensor.

A policy becomes a `Fill`: elementwise draws may be cut into chunks; the others (orthogonal, sparse, eye, dirac, values)
see the tensor whole. The scales are those of `torch.nn.init`: Xavier as in Glorot & Bengio 2010, eq. 12 and 16; Kaiming
as in He et al. 2015, eq. 10 and 14; orthogonal as in Saxe et al. 2013.

`trunc_normal` is the normal distribution given that it falls into [a, b]: the bounds are values, as in torch, not
numbers of standard deviations. It is exact: values outside are drawn again, and where the bounds hold little of the
normal's mass the draw is made inside them (`_tail`), so that it ends quickly wherever they lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from builder.initialize.streams import Draw, numpy_generator
from builder.names import paths_to
from builder.policies import POLICIES

if TYPE_CHECKING:
    from builder.module import Entry

LARGE = 2**19  # values of a parameter from which on uniform ones are drawn by numpy, in two thirds of torch's time
HUGE = 2**24  # values of a parameter from which on a compiled loop draws normal ones, in half of torch's time
LEAST_MASS = 0.25  # of the normal inside the bounds, for drawing again to pay


@dataclass(frozen=True)
class Fill:
    """How a tensor gets its values.

    Attributes:
        draw: `draw(part, generator, start)` writes into `part` in place. Of an elementwise fill, `part` is a flat piece
            of the parameter that begins at its flat index `start`; otherwise it is the parameter, and `start` is 0.
            Without a generator it draws from torch's global one, as `torch.nn.init` does, and `part` is the parameter.
        whole: Whether it must see the tensor whole rather than in chunks.
        beside: Whether a whole fill may run in a thread beside others: it touches nothing but its tensor.
    """

    draw: Draw
    whole: bool = False
    beside: bool = False


def fans(shape: Sequence[int], axes: Sequence[str] | None) -> tuple[int, int]:
    """Fan-in and fan-out of a parameter with at least two dimensions.

    Without `axes` the reading is that of `torch.nn.init`: shape (out, in, *field).

    >>> fans((3, 5), ["in", "out"])
    (3, 5)
    """
    named = list(axes or ["out", "in", *["field"] * (len(shape) - 2)])
    field = math.prod(size for size, axis in zip(shape, named, strict=True) if axis == "field")
    return shape[named.index("in")] * field, shape[named.index("out")] * field


def basic(
    policy: str, arguments: Mapping[str, Any], shape: Sequence[int], axes: Sequence[str] | None = None
) -> tuple[str, dict[str, Any]]:
    """A policy with all of its arguments, where those that scale by fans have become `uniform` or `normal`.

    >>> basic("xavier_normal", {}, (3, 5))
    ('normal', {'mean': 0.0, 'std': 0.5})
    >>> basic("zeros", {}, (3,))
    ('constant', {'val': 0.0})
    """
    given = {**POLICIES[policy].arguments, **arguments}
    match policy:
        case "xavier_uniform" | "xavier_normal":
            std = given["gain"] * math.sqrt(2.0 / float(sum(fans(shape, axes))))
        case "kaiming_uniform" | "kaiming_normal":
            fan = fans(shape, axes)[("fan_in", "fan_out").index(given["mode"])]
            std = nn.init.calculate_gain(given["nonlinearity"], given["a"]) / math.sqrt(fan)
        case "ones" | "zeros":
            return "constant", {"val": 1.0 if policy == "ones" else 0.0}
        case _:
            return policy, given
    if policy.endswith("uniform"):
        return _symmetric(math.sqrt(3.0) * std)
    return "normal", {"mean": 0.0, "std": std}


def _symmetric(bound: float) -> tuple[str, dict[str, Any]]:
    return "uniform", {"a": -bound, "b": bound}


def fill_of(policy: str, arguments: Mapping[str, Any], shape: Sequence[int], axes: Sequence[str] | None = None) -> Fill:
    """The fill of a policy with checked arguments, for a tensor of a shape."""
    policy, given = basic(policy, arguments, shape, axes)
    match policy:
        case "uniform":
            return _uniform(given["a"], given["b"], shape)
        case "normal":
            return _normal(given["mean"], given["std"], shape)
        case "trunc_normal":
            return _trunc_normal(given["mean"], given["std"], given["a"], given["b"], shape)
        case "constant":
            return Fill(lambda part, generator, start: part.fill_(given["val"]))
        case "orthogonal":
            return _orthogonal(given["gain"])
        case "sparse":
            return _sparse(given["sparsity"], given["std"])
        case "eye":
            return Fill(lambda part, generator, start: nn.init.eye_(part), whole=True)
        case "dirac":
            return Fill(lambda part, generator, start: nn.init.dirac_(part, int(given["groups"])), whole=True)
        case "values":
            return _values(given["values"])
        case "empty":
            return Fill(lambda part, generator, start: part)
    raise AssertionError(f"policy {policy!r} has no fill")


def zeroed(fill: Fill, first: int, last: int) -> Fill:
    """A fill that then writes zeros to the values from flat index `first` to below `last`."""

    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        fill.draw(part, generator, start)
        part.view(-1)[max(0, first - start) : max(0, last - start)].zero_()

    return Fill(draw, fill.whole, fill.beside)


# ---- elementwise ---------------------------------------------------------------------------------------------------


def _uniform(a: float, b: float, shape: Sequence[int]) -> Fill:
    large = math.prod(shape) >= LARGE

    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        if generator is None or not large or part.dtype == torch.float64:
            part.uniform_(a, b, generator=generator)
            return
        values = part.view(-1).numpy()
        numpy_generator(generator).random(out=values, dtype=np.float32)
        low, high, width = np.float32(a), np.float32(b), np.float32(b - a)
        np.add(np.multiply(values, width, out=values), low, out=values)
        if np.float32(1 - 2**-24) * width + low > high:  # the greatest value rounds beyond the bound
            np.minimum(values, high, out=values)

    return Fill(_in_float32(draw, a, b))


def _normal(mean: float, std: float, shape: Sequence[int]) -> Fill:
    huge = math.prod(shape) >= HUGE

    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        if generator is None or not huge or part.dtype != torch.float32:
            part.normal_(mean, std, generator=generator)
            return
        # Imported here: it takes half a second, which smaller parameters do not win back.
        from builder.initialize.normal import normal  # noqa: PLC0415

        normal(part.view(-1).numpy(), mean, std, numpy_generator(generator))

    return Fill(draw)


def _in_float32(draw: Draw, low: float = -math.inf, high: float = math.inf) -> Draw:
    """Half precision by way of float32, for torch has no such draw, or a biased one (the mean of a bfloat16 uniform).

    What rounds beyond a bound becomes the nearest value within. Not from the global generator, of which torch's own
    bits are asked.
    """

    def through(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        if generator is None or part.dtype not in (torch.float16, torch.bfloat16):
            draw(part, generator, start)
            return
        drawn = torch.empty(part.shape, dtype=torch.float32)
        draw(drawn, generator, start)
        part.copy_(drawn).clamp_(*_within(low, high, part.dtype))

    return through


def _within(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest value of a type within bounds; the bounds themselves where there is none."""
    ends = torch.tensor([low, high], dtype=dtype)
    inner = torch.nextafter(ends, ends.flip(0)).tolist()
    least, greatest = ends.tolist()
    least, greatest = least if least >= low else inner[0], greatest if greatest <= high else inner[1]
    return (least, greatest) if least <= greatest else (low, high)


# ---- truncated normal ----------------------------------------------------------------------------------------------


def _trunc_normal(mean: float, std: float, a: float, b: float, shape: Sequence[int]) -> Fill:
    normal = _normal(mean, std, shape)

    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        if generator is None:
            nn.init.trunc_normal_(part, mean, std, a, b)
        elif std == 0:
            part.fill_(min(max(mean, a), b))
        elif (mass := _mass((a - mean) / std, (b - mean) / std)) >= LEAST_MASS:
            normal.draw(part, generator, start)
            _redraw(part, generator, mean, std, a, b, mass)
        else:
            part.copy_(_tail(part.numel(), generator, mean, std, a, b))

    return Fill(_in_float32(draw, a, b))


def _mass(low: float, high: float) -> float:
    """The part of the standard normal distribution between two bounds, without cancellation in either tail."""
    if low > 0:
        low, high = -high, -low
    return 0.5 * (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2)))


def _redraw(
    part: torch.Tensor, generator: torch.Generator, mean: float, std: float, a: float, b: float, mass: float
) -> None:
    """Draws again what falls outside. By numpy: its comparisons take a sixth of torch's time, `flatnonzero` a third."""

    def outside(values: NDArray[Any]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.less(values, low)
        np.logical_or(found, np.greater(values, high), out=found)
        return found

    kind = np.float64 if part.dtype == torch.float64 else np.float32
    most = float(np.finfo(kind).max)
    low, high = (kind(min(max(bound, -most), most)) for bound in (a, b))
    values = part.view(-1).numpy()
    places = np.flatnonzero(outside(values))
    for _ in range(99):
        if not places.size:
            return
        enough = int(1.1 * places.size / mass) + 16  # nearly always
        more = torch.empty(enough, dtype=part.dtype).normal_(mean, std, generator=generator).numpy()
        inside = more[~outside(more)][: places.size]
        values[places[: inside.size]] = inside
        places = places[inside.size :]
    values.clip(low, high, out=values)  # the type is too coarse to tell the mean from a bound


def _tail(count: int, generator: torch.Generator, mean: float, std: float, a: float, b: float) -> torch.Tensor:
    """Values of a normal distribution within bounds that hold little of it: narrow ones, or ones far out.

    The method of Robert 1995 (Simulation of truncated normal variables, section 2): the excess y over the bound that is
    nearer to the mean comes from an exponential distribution whose rate is that bound's distance, and stays with
    probability exp(-y²/2); or, where the mean is inside, from a uniform one, and x stays with probability exp(-x²/2).
    All in float64 and in units of std; at least half stay.
    """
    low, high = (a - mean) / std, (b - mean) / std
    nearest, side = a, 1.0
    if low + high < 0:
        low, high, nearest, side = -high, -low, b, -1.0
    rate, width = max(low, 0.0), high - low
    found: list[torch.Tensor] = []
    missing = count
    while missing > 0:
        u, v = torch.rand(2, 2 * missing + 16, dtype=torch.float64, generator=generator)
        y = u * width if rate * width < 1e-9 else -torch.log1p(u * math.expm1(-rate * width)) / rate
        beyond = y if low > 0 else low + y
        kept = y[v <= torch.exp(-0.5 * beyond**2)]
        found.append(kept[:missing])
        missing -= len(found[-1])
    return (nearest + side * std * torch.cat(found)).clamp_(a, b)


# ---- whole ---------------------------------------------------------------------------------------------------------


def _values(values: Any) -> Fill:
    return Fill(lambda part, generator, start: part.copy_(torch.as_tensor(values, dtype=part.dtype)), whole=True)


def _orthogonal(gain: float) -> Fill:
    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        nn.init.orthogonal_(part, gain, generator=generator)

    return Fill(_in_float32(draw), whole=True, beside=True)


def _sparse(sparsity: float, std: float) -> Fill:
    """As `torch.nn.init.sparse_`, whose choice of the zeros leaves its generator aside and takes the global one."""

    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        rows, columns = part.shape
        zeros = math.ceil(sparsity * rows)
        part.normal_(0, std, generator=generator)
        for column in range(columns):
            part[torch.randperm(rows, generator=generator)[:zeros], column] = 0

    return Fill(draw, whole=True, beside=True)


# ---- the layer classes' own defaults -------------------------------------------------------------------------------


def default_fill(module: nn.Module, entry: Entry) -> Fill | None:
    """What a layer class of `torch.nn` itself does to one of its parameters; None where that is not known here."""
    found = default_policy(module, entry)
    return None if found is None else fill_of(*found, entry.shape)


def default_policy(module: nn.Module, entry: Entry) -> tuple[str, dict[str, Any]] | None:
    """The policy, and its arguments, by which a layer class fills one of its parameters; None where it is not known.

    It is known of a class of torch, and of one derived from it that fills itself in torch's way, as far as the
    parameter is torch's own.

    Args:
        module: The model, which may be on meta.
        entry: The parameter.
    """
    owner, local = module.get_submodule(entry.owner), entry.local
    around = [module.get_submodule(path) for path in paths_to(entry.owner)]
    if entry.ndim > 1 and any(isinstance(m, nn.Transformer) and not _fills_otherwise(m) for m in around):
        return "xavier_uniform", {}  # of all matrices in it
    if _fills_otherwise(owner):
        return None
    match owner:
        case nn.modules.linear.NonDynamicallyQuantizableLinear() if local == "bias":
            return "zeros", {}  # the output layer of MultiheadAttention
        case nn.Linear() | nn.modules.conv._ConvNd() if local in _AFFINE:
            return _symmetric(1 / math.sqrt(fans(tuple(owner.weight.shape), None)[0]))
        case nn.Bilinear() if local in _AFFINE:
            return _symmetric(1 / math.sqrt(owner.weight.shape[1]))
        case nn.Embedding() | nn.EmbeddingBag() if local == "weight":
            return "normal", {}
        case nn.RNNBase() | nn.RNNCellBase() if local.startswith(_RECURRENT):
            return _symmetric(1 / math.sqrt(owner.hidden_size) if owner.hidden_size else 0.0)
        case nn.LayerNorm() | nn.RMSNorm() | nn.GroupNorm() | nn.modules.batchnorm._NormBase() if local in _AFFINE:
            return ("ones" if local == "weight" else "zeros"), {}
        case nn.PReLU() if local == "weight":
            return "constant", {"val": owner.init}
        case nn.MultiheadAttention() if local in _PROJECTIONS:
            return "xavier_uniform", {}
        case nn.MultiheadAttention() if local in ("in_proj_bias", "bias_k", "bias_v"):
            return ("zeros" if local == "in_proj_bias" else "xavier_normal"), {}
    return None


_AFFINE = ("weight", "bias")
_RECURRENT = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")
_PROJECTIONS = frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})
RESETS = ("reset_parameters", "_reset_parameters")


def torch_class(layer: nn.Module) -> type[nn.Module]:
    """The class of torch that a layer is of, or that its class is derived from."""
    return next(cls for cls in type(layer).__mro__ if cls.__module__.startswith("torch.nn.modules."))


def _fills_otherwise(layer: nn.Module) -> bool:
    """Whether a layer's class has another method in the place of the one by which torch's class fills itself."""
    own, theirs = type(layer), torch_class(layer)
    return any(hasattr(theirs, name) and getattr(own, name) is not getattr(theirs, name) for name in RESETS)
