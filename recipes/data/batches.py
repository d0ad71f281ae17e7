"""Batches cut from tensors in memory, whole, without collating one example after another.

A default loader over a `TensorDataset` spends 0.2 ms on collating a batch of 64, a large part of a small model's step.
Here the data set is indexed once a batch. The loader stays an ordinary one, so that Lightning can still give it a
distributed sampler. Every loader has its own generator: the global one is left alone, so that looking at data
never moves a dropout mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

Batch = tuple[Tensor, Tensor]


class Rows(Dataset[Batch]):
    """Rows of two tensors of equal length.

    Args:
        x: Inputs, (examples, ...).
        y: Targets, (examples, ...).
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        assert len(x) == len(y), f"{len(x)} inputs for {len(y)} targets"
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Batch:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.tensor(indices)
        return self.x[chosen], self.y[chosen]


class Windows(Dataset[Batch]):
    """Windows of a sequence, each with the same window one place further on as its target.

    Args:
        ids: The sequence, (length,).
        context: Length of a window.
        stride: From the start of one window to the start of the next; `context` for windows that do not overlap.
    """

    def __init__(self, ids: Tensor, context: int, stride: int) -> None:
        assert len(ids) > context, f"{len(ids)} ids hold no window of {context} and its successor"
        self.ids, self.stride = ids, stride
        self.offsets = torch.arange(context + 1)

    def __len__(self) -> int:
        return (len(self.ids) - len(self.offsets)) // self.stride + 1

    def __getitem__(self, index: int) -> Batch:
        window = self.ids[index * self.stride + self.offsets]
        return window[:-1], window[1:]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        windows = self.ids[torch.tensor(indices)[:, None] * self.stride + self.offsets]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


class EpochSampler(RandomSampler):
    """Indices in random order; Lightning calls `set_epoch` before each epoch, after a resume too."""

    def __init__(self, dataset: Rows | Windows, seed: int, examples: int | None = None) -> None:
        super().__init__(dataset, examples is not None, examples, torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Puts the generator at the start of an epoch (torch reads the low 32 bits of a seed alone)."""
        self.generator.manual_seed((1_000_003 * self.seed + epoch) % 2**32)


def whole(batch: Any) -> Any:
    """The batch as it is: `__getitems__` has stacked it already."""
    return batch


def ordered(dataset: Rows | Windows, batch_size: int) -> DataLoader[Batch]:
    """A loader over all examples in their order."""
    return _loader(dataset, SequentialSampler(dataset), batch_size, torch.Generator())


def shuffled(dataset: Rows | Windows, batch_size: int, seed: int, examples: int | None = None) -> DataLoader[Batch]:
    """A loader in random order, another one in each epoch, the same ones for the same seed.

    Args:
        dataset: What to draw from.
        batch_size: Examples a batch; the last batch of an epoch may be smaller.
        seed: An epoch has its order from this and from its number, so that a resumed run sees what it would have.
        examples: How many to draw for an epoch, with replacement; each example once where not given.
    """
    sampler = EpochSampler(dataset, seed, examples)
    return _loader(dataset, sampler, batch_size, torch.Generator())


def _loader(
    dataset: Rows | Windows, sampler: Sampler[int], batch_size: int, generator: torch.Generator
) -> DataLoader[Batch]:
    return DataLoader(dataset, batch_size, sampler=sampler, generator=generator, collate_fn=whole)
