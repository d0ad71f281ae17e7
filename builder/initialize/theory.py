"""What a policy's values are in theory: mean, std, bounds; and how far drawn values lie from that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STEPS = 20_001  # points of the integrals of a truncated normal: exact to about 1e-8


@dataclass(frozen=True)
class Theory:
    """Moments of one value.

    Attributes:
        mean: Expected value.
        std: Standard deviation.
        low: Least possible value.
        high: Greatest possible value.
        kurtosis: Fourth central moment over the squared variance, or None where values depend on each other.
    """

    mean: float
    std: float
    low: float = -math.inf
    high: float = math.inf
    kurtosis: float | None = None

    def z_scores(self, values: Tensor) -> tuple[float, float] | None:
        """How many standard errors mean and std of drawn values lie from theory; None where that says nothing.

        It says nothing of a distribution so narrow that the values' dtype cannot resolve it.

        The standard error of a mean of n values is std / sqrt(n), that of their std is
        std sqrt((kurtosis - 1) / (4 n)) for large n (Kenney and Keeping 1951, section 7.12).
        """
        count = values.numel()
        coarse = torch.finfo(values.dtype).eps * abs(self.mean)
        if self.kurtosis is None or self.std <= 16 * coarse or count < 2:
            return None
        values = values.double()
        mean = (float(values.mean()) - self.mean) / (self.std / math.sqrt(count))
        spread = (float(values.std()) - self.std) / (self.std * math.sqrt((self.kurtosis - 1) / (4 * count)))
        return mean, spread


def theory_of(policy: str, arguments: Mapping[str, Any], shape: Sequence[int]) -> Theory | None:
    """The theory of a basic policy (see `draws.basic`); None where there is none."""
    match policy:
        case "uniform":
            a, b = arguments["a"], arguments["b"]
            return Theory((a + b) / 2, (b - a) / math.sqrt(12), a, b, kurtosis=1.8)
        case "normal":
            return Theory(arguments["mean"], arguments["std"], kurtosis=3.0)
        case "trunc_normal":
            return _truncated(**arguments)
        case "constant":
            value = arguments["val"]
            return Theory(value, 0.0, value, value)
        case "orthogonal":
            rows = shape[0]
            longest = max(rows, math.prod(shape[1:]))
            return Theory(0.0, arguments["gain"] / math.sqrt(longest), -arguments["gain"], arguments["gain"])
        case "sparse":
            zeros = math.ceil(arguments["sparsity"] * shape[0]) / shape[0]
            return Theory(0.0, arguments["std"] * math.sqrt(1 - zeros))
    return None


def _truncated(mean: float, std: float, a: float, b: float) -> Theory:
    """Moments of a normal distribution within bounds, wherever these lie.

    In units of std, and from the point within the bounds that is nearest to the mean: the density falls off from there
    at least as fast as exp(-nearest x), so that beyond 40 / nearest nothing of it is left.
    """
    if not std:
        return Theory(min(max(mean, a), b), 0.0, a, b)
    low, high = (a - mean) / std, (b - mean) / std
    nearest = min(max(0.0, low), high)
    span = 40.0 / max(1.0, abs(nearest))
    left, right = max(low - nearest, -span), min(high - nearest, span)
    x = torch.linspace(0.0, 1.0, STEPS, dtype=torch.float64)  # from left to right
    density = torch.exp(-((left + x * (right - left)) ** 2 / 2 + nearest * (left + x * (right - left))))
    density /= torch.trapezoid(density, x)
    centre = float(torch.trapezoid(x * density, x))
    variance = float(torch.trapezoid((x - centre) ** 2 * density, x))
    fourth = float(torch.trapezoid((x - centre) ** 4 * density, x))
    at = (b if nearest == high else a) if nearest else mean
    expected = at + std * (left + centre * (right - left))
    return Theory(expected, std * (right - left) * math.sqrt(variance), a, b, kurtosis=fourth / variance**2)
