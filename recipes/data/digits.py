"""Handwritten digits of 8 x 8 pixels from scikit-learn: the smallest real data on which an init shows.

1,797 images in ten classes. The split is stratified and belongs to the data, not to the run: `seed` changes the order
of batches only, so that a spread over seeds is a spread of training and not of test sets. Refuses shares that leave no
training data.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from builder.errors import Problem, raise_all
from recipes.arguments import check_installed, check_seed, check_share, check_whole
from recipes.data.batches import Batch, Rows, ordered, shuffled

SUBJECT = "data digits"


class Splits(NamedTuple):
    """The three parts of the data, disjoint and together all of it."""

    train: Rows
    validation: Rows
    test: Rows


class Digits(pl.LightningDataModule):
    """Images as float32 (batch, 64) in [0, 1], classes as int64 (batch,).

    Args:
        batch_size: Images a batch, in all three parts.
        seed: Of the order of training batches.
        validation: Share of all images for validation.
        test: Share of all images for the test.
        split_seed: Of the split itself; leave it alone to compare runs.

    Raises:
        BuilderError: An argument is out of range, or scikit-learn is not installed.
    """

    def __init__(
        self, batch_size: int = 64, seed: int = 0, validation: float = 0.15, test: float = 0.2, split_seed: int = 0
    ) -> None:
        super().__init__()
        raise_all(
            SUBJECT,
            [
                *check_whole("data.batch_size", batch_size),
                *check_seed("data.seed", seed),
                *_check_shares(validation, test),
                *check_seed("data.split_seed", split_seed),
            ],
        )
        check_installed(SUBJECT, "data._target_", module="sklearn", package="scikit-learn")
        self.batch_size, self.seed, self.split_seed = batch_size, seed, split_seed
        self.shares = (validation, test)

    @cached_property
    def splits(self) -> Splits:
        """The images of each part, read on first use."""
        return _split(*self.shares, seed=self.split_seed)

    @property
    def references(self) -> dict[str, float]:
        """What a model has to beat: the test accuracy of always naming the most frequent training class."""
        most_frequent = self.splits.train.y.mode().values
        return {"majority class accuracy": (self.splits.test.y == most_frequent).float().mean().item()}

    def train_dataloader(self) -> DataLoader[Batch]:
        """A loader that begins anew from `seed`; its order differs from epoch to epoch."""
        return shuffled(self.splits.train, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation images in their order."""
        return ordered(self.splits.validation, self.batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images in their order."""
        return ordered(self.splits.test, self.batch_size)


def _check_shares(validation: float, test: float) -> list[Problem]:
    problems = [*check_share("data.validation", validation), *check_share("data.test", test)]
    if not problems and validation + test >= 1:
        what = f"validation {validation} and test {test} leave nothing to train on"
        problems.append(Problem("data.validation", what, hint="their sum has to be less than 1"))
    return problems


def _split(validation: float, test: float, seed: int) -> Splits:
    # Imported here: an extra, and a second of start-up.
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(classes, dtype=torch.int64)
    rest, last = train_test_split(range(len(y)), test_size=test, stratify=y, random_state=seed)
    share = validation / (1 - test)
    first, middle = train_test_split(rest, test_size=share, stratify=y[rest], random_state=seed)
    return Splits(_rows(x, y, first), _rows(x, y, middle), _rows(x, y, last))


def _rows(x: Tensor, y: Tensor, indices: list[int]) -> Rows:
    return Rows(x[indices], y[indices])
