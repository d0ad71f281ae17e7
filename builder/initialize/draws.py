"""What each policy writes into a tensor.

A policy becomes a `Fill`: elementwise draws may be cut into chunks; the others (orthogonal, sparse, eye, dirac, values)
see the tensor whole. The scales are those of `torch.nn.init`: Xavier as in Glorot & Bengio 2010, eq. 12 and 16; Kaiming
as in He et al. 2015, eq. 10 and 14; orthogonal as in Saxe et al. 2013.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from builder.initialize.streams import Draw
from builder.policies import POLICIES


@dataclass(frozen=True)
class Fill:
    """How a tensor gets its values.

    Attributes:
        draw: Writes into a tensor in place; takes a generator, or None for torch's global one.
        whole: Whether it must see the tensor whole rather than in chunks.
    """

    draw: Draw
    whole: bool = False


def fans(shape: Sequence[int], axes: Sequence[str] | None) -> tuple[int, int]:
    """Fan-in and fan-out of a parameter with at least two dimensions.

    Without `axes` the reading is that of `torch.nn.init`: shape (out, in, *field).

    >>> fans((3, 5), ["in", "out"])
    (3, 5)
    """
    named = list(axes or ["out", "in", *["field"] * (len(shape) - 2)])
    field = math.prod(size for size, axis in zip(shape, named, strict=True) if axis == "field")
    return shape[named.index("in")] * field, shape[named.index("out")] * field


def fill_of(policy: str, arguments: Mapping[str, Any], shape: Sequence[int], axes: Sequence[str] | None = None) -> Fill:
    """The fill of a policy with checked arguments, for a tensor of a shape."""
    given = {**{k: v for k, v in POLICIES[policy].arguments.items()}, **arguments}
    match policy:
        case "uniform":
            return _uniform(given["a"], given["b"])
        case "normal":
            return _normal(given["mean"], given["std"])
        case "trunc_normal":
            return Fill(lambda t, g: nn.init.trunc_normal_(t, **given, generator=g))
        case "constant" | "ones" | "zeros":
            value = float({"ones": 1.0, "zeros": 0.0}.get(policy, given.get("val", 0.0)))
            return Fill(lambda t, g: nn.init.constant_(t, value))
        case "xavier_uniform":
            return _symmetric(math.sqrt(3.0) * given["gain"] * math.sqrt(2.0 / float(sum(fans(shape, axes)))))
        case "xavier_normal":
            return _normal(0.0, given["gain"] * math.sqrt(2.0 / float(sum(fans(shape, axes)))))
        case "kaiming_uniform" | "kaiming_normal":
            fan = fans(shape, axes)[("fan_in", "fan_out").index(given["mode"])]
            std = nn.init.calculate_gain(given["nonlinearity"], given["a"]) / math.sqrt(fan)
            return _symmetric(math.sqrt(3.0) * std) if policy == "kaiming_uniform" else _normal(0.0, std)
        case "orthogonal":
            return Fill(lambda t, g: nn.init.orthogonal_(t, given["gain"], generator=g), whole=True)
        case "sparse":
            return Fill(lambda t, g: nn.init.sparse_(t, given["sparsity"], given["std"], generator=g), whole=True)
        case "eye":
            return Fill(lambda t, g: nn.init.eye_(t), whole=True)
        case "dirac":
            return Fill(lambda t, g: nn.init.dirac_(t, int(given["groups"])), whole=True)
        case "values":
            return Fill(lambda t, g: t.copy_(torch.as_tensor(given["values"], dtype=t.dtype)), whole=True)
        case "empty":
            return Fill(lambda t, g: t)
    raise AssertionError(f"policy {policy!r} has no fill")


def _uniform(a: float, b: float) -> Fill:
    return Fill(lambda t, g: t.uniform_(a, b, generator=g))


def _symmetric(bound: float) -> Fill:
    return _uniform(-bound, bound)


def _normal(mean: float, std: float) -> Fill:
    return Fill(lambda t, g: t.normal_(mean, std, generator=g))


# ---- the layer classes' own defaults -------------------------------------------------------------------------------


def default_fill(owner: nn.Module, local: str, shape: Sequence[int]) -> Fill | None:
    """What a layer class of `torch.nn` itself does to one of its parameters; None where that is not known here."""
    if isinstance(owner, nn.modules.linear.NonDynamicallyQuantizableLinear) and local == "bias":
        return fill_of("zeros", {}, shape)  # the output layer of MultiheadAttention
    if isinstance(owner, nn.Linear | nn.modules.conv._ConvNd):
        weight = owner.weight
        if local == "weight" or (local == "bias" and weight is not None):
            return _symmetric(1 / math.sqrt(fans(tuple(weight.shape), None)[0]))
    if isinstance(owner, nn.Bilinear):
        return _symmetric(1 / math.sqrt(owner.weight.shape[1]))
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return _normal(0.0, 1.0)
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return _symmetric(1 / math.sqrt(owner.hidden_size) if owner.hidden_size else 0.0)
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | nn.modules.batchnorm._NormBase):
        return fill_of("ones" if local == "weight" else "zeros", {}, shape)
    if isinstance(owner, nn.PReLU):
        return fill_of("constant", {"val": owner.init}, shape)
    if isinstance(owner, nn.MultiheadAttention):
        if local.endswith("proj_weight"):
            return fill_of("xavier_uniform", {}, shape)
        return fill_of("zeros", {}, shape) if local == "in_proj_bias" else fill_of("xavier_normal", {}, shape)
    return None
