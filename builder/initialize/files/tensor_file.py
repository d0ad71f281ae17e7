"""The tensors of one file, uniformly: names, shapes and dtypes from its header, values when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Rows = slice | torch.Tensor | None
Read = Callable[[str, Rows], torch.Tensor]


class CheckpointError(Exception):
    """A file that is refused: what is wrong with it, and a remedy."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


@dataclass(frozen=True)
class Header:
    """What a file says of one tensor.

    Attributes:
        shape: Its sizes.
        dtype: Its element type; None where torch has none for it.
        mapped: Whether some rows can be read without the others.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    mapped: bool = True


class Checkpoint:
    """The tensors of one file.

    Attributes:
        path: The file.
        words: Word → row, for word vectors; empty otherwise.
    """

    def __init__(
        self, path: Path, headers: Mapping[str, Header], read: Read, words: Mapping[bytes, int] | None = None
    ) -> None:
        self.path = path
        self.words = words or {}
        self._headers = headers
        self._read = read

    def keys(self) -> tuple[str, ...]:
        """The names of the tensors, in the order of the file."""
        return tuple(self._headers)

    def shape(self, key: str) -> tuple[int, ...]:
        """The sizes of a tensor."""
        return self._headers[key].shape

    def dtype(self, key: str) -> torch.dtype | None:
        """The element type of a tensor, or None where torch has none for it."""
        return self._headers[key].dtype

    def mapped(self, key: str) -> bool:
        """Whether some rows of a tensor can be read without the others."""
        return self._headers[key].mapped

    def read(self, key: str, rows: Rows = None) -> torch.Tensor:
        """A tensor, or some of its rows; it may be a view of the file, and is never written to.

        Raises:
            CheckpointError: The file does not hold what its header says.
        """
        return self._read(key, rows)


def mapped_tensors(path: Path, headers: Mapping[str, Header], tensor: Callable[[str], torch.Tensor]) -> Checkpoint:
    """A checkpoint whose tensors are views of the file, so that a slice of one reads no more than itself."""

    def read(key: str, rows: Rows) -> torch.Tensor:
        return tensor(key) if rows is None else tensor(key)[rows]

    return Checkpoint(path, headers, read)
