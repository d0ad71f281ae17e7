"""English text that ships with CPython, `pydoc_data/topics.py`, as characters for a language model.

The language reference's help topics, some 465,000 characters. The alphabet is fixed at 96: newline and printable
ASCII; the few other characters become `?`. So a model's vocabulary does not depend on the version of Python, though
the text does. The three parts are contiguous: neighbouring windows overlap in meaning, and a random split would let a
model see its test text.
"""

from __future__ import annotations

from functools import cached_property
from pydoc_data.topics import topics
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from builder.errors import Problem, raise_all
from recipes.arguments import check_seed, check_whole
from recipes.data.batches import Batch, Windows, ordered, shuffled

SUBJECT = "data text"
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
REPLACEMENT = "?"
TRAIN_SHARE, VALIDATION_SHARE = 0.90, 0.05  # the rest is for the test


class Parts(NamedTuple):
    """The three parts of the text as ids, contiguous and in this order."""

    train: Tensor
    validation: Tensor
    test: Tensor


class Text(pl.LightningDataModule):
    """Windows of characters as int64 (batch, context), and the same windows one character further on.

    Training windows start anywhere, drawn with replacement; validation and test windows are fixed and do not overlap.
    Meant for one process: a distributed sampler would walk through all windows instead of drawing some.

    Args:
        context: Characters a window.
        batch_size: Windows a batch, in all three parts.
        seed: Of the draw of training windows.
        windows_per_epoch: Training windows drawn for an epoch.

    Raises:
        BuilderError: An argument is out of range, or a part of the text holds no window of that size.
    """

    def __init__(self, context: int = 64, batch_size: int = 32, seed: int = 0, windows_per_epoch: int = 6400) -> None:
        super().__init__()
        raise_all(
            SUBJECT,
            [
                *check_whole("data.context", context),
                *check_whole("data.batch_size", batch_size),
                *check_seed("data.seed", seed),
                *check_whole("data.windows_per_epoch", windows_per_epoch),
            ],
        )
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.windows_per_epoch = windows_per_epoch
        longest = min(map(len, self.parts)) - 1
        if context > longest:
            what = f"{context} given, but the shortest part of the text holds windows of at most {longest}"
            raise_all(SUBJECT, [Problem("data.context", what)])

    @cached_property
    def parts(self) -> Parts:
        """The text as ids in its three parts, read on first use."""
        ids = encode("\n".join(topics[name] for name in sorted(topics)))
        first, second = int(len(ids) * TRAIN_SHARE), int(len(ids) * (TRAIN_SHARE + VALIDATION_SHARE))
        return Parts(ids[:first], ids[first:second], ids[second:])

    @property
    def references(self) -> dict[str, float]:
        """What a model has to beat: the entropy of the test characters' own frequencies.

        No model that looks at single characters without their context reaches a lower loss on this text, not even one
        that knows the test text's frequencies beforehand.
        """
        return {"unigram entropy (nats)": unigram_entropy(self.parts.test)}

    def train_dataloader(self) -> DataLoader[Batch]:
        """A loader that begins anew from `seed`; its windows differ from epoch to epoch."""
        windows = Windows(self.parts.train, self.context, stride=1)
        return shuffled(windows, self.batch_size, self.seed, examples=self.windows_per_epoch)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation windows in their order."""
        return ordered(Windows(self.parts.validation, self.context, stride=self.context), self.batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test windows in their order."""
        return ordered(Windows(self.parts.test, self.context, stride=self.context), self.batch_size)


def encode(text: str) -> Tensor:
    r"""Ids of characters, int64 (length,), as places in the alphabet.

    >>> encode("\n a…?")
    tensor([ 0,  1, 66, 32, 32])
    """
    places = {character: place for place, character in enumerate(ALPHABET)}
    return torch.tensor([places.get(character, places[REPLACEMENT]) for character in text])


def unigram_entropy(ids: Tensor) -> float:
    """Entropy of the ids' own frequencies, in nats.

    >>> round(unigram_entropy(torch.tensor([0, 1, 0, 1])), 4)
    0.6931
    """
    frequencies = torch.bincount(ids).double() / len(ids)
    return float(torch.special.entr(frequencies).sum())
