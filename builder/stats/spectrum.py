"""The largest singular value, and how many singular values there are in effect.

A tensor of more than two axes is a matrix of its first axis by all others, as a convolution's weight is. What is not
finite gives NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from builder.initialize.streams import generator


def start_vector(name: str, matrix: Tensor) -> Tensor:
    """A random unit vector to iterate from, of the length of a matrix's rows; its generator is its own."""
    drawn = torch.randn(_matrix(matrix).shape[1], generator=generator(0, name), dtype=torch.float32)
    unit: Tensor = drawn / drawn.norm()
    return unit.to(matrix.device, non_blocking=True)


def spectral_norm(matrix: Tensor, vector: Tensor, rounds: int) -> Tensor:
    """The largest singular value by power iteration, from below: of shape ().

    Args:
        matrix: Two axes or more.
        vector: Where the iteration begins; in place it becomes where it ends, so that it goes on at the next step.
        rounds: How many products with the matrix and its transpose.
    """
    whole = _matrix(matrix)
    found = vector
    for _ in range(rounds):
        image = whole @ found
        back = whole.T @ (image / image.norm().clamp(min=torch.finfo(torch.float32).tiny))
        found = back / back.norm().clamp(min=torch.finfo(torch.float32).tiny)
    norm: Tensor = (whole @ found).norm()
    usable = found.isfinite().all() & (found.norm() > 0.5)  # a matrix of zeros, or one with a NaN, leaves no direction
    vector.copy_(torch.where(usable, found, vector))
    return norm.double()


def effective_rank(matrix: Tensor) -> Tensor:
    """The exponential of the entropy of the singular values' shares (Roy and Vetterli 2007, equation 3): of shape ().

    From 1, one direction, to the smaller side, all alike; a matrix of zeros has 0. On CUDA this waits for the device.
    """
    whole = _matrix(matrix)
    finite = whole.isfinite().all()
    values = torch.linalg.svdvals(torch.where(finite, whole, 0.0)).double()
    share = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    rank = torch.exp(-torch.special.xlogy(share, share).sum()) * (values.sum() > 0)
    return torch.where(finite, rank, float("nan"))


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(len(tensor), -1).float()
