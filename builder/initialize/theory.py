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

        The standard error of a mean of n values is std / sqrt(n), that of their std is
        std sqrt((kurtosis - 1) / (4 n)) for large n (Kenney and Keeping 1951, section 7.12).
        """
        count = values.numel()
        if self.kurtosis is None or not self.std or count < 2:
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
    if not std:
        return Theory(mean, 0.0, a, b)
    x = torch.linspace(max(a, mean - 12 * std), min(b, mean + 12 * std), STEPS, dtype=torch.float64)
    density = torch.exp(-((x - mean) ** 2) / (2 * std**2))
    density /= torch.trapezoid(density, x)
    centre = float(torch.trapezoid(x * density, x))
    variance = float(torch.trapezoid((x - centre) ** 2 * density, x))
    fourth = float(torch.trapezoid((x - centre) ** 4 * density, x))
    return Theory(centre, math.sqrt(variance), a, b, kurtosis=fourth / variance**2)
