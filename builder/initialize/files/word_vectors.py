"""Word vectors as text: `word v1 v2 ...`, a line each, with or without a first line `count dim`.

The file is scanned once for its words and for where each line begins; numbers are parsed only for the rows that are
asked for, so that a vocabulary of thirty thousand words reads that many lines of two million.
"""

from __future__ import annotations

import itertools
from array import array
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

import torch

MAX_LINE = 1_000_000  # bytes


class WordVectorsError(Exception):
    """A file that is not word vectors, with the line that is wrong."""


class WordVectors:
    """The words of a file, and their vectors on demand.

    Attributes:
        words: Word → row; of a word that stands there twice, the first.
        shape: Number of lines, and of numbers in each.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.words: dict[bytes, int] = {}
        self._path = path
        self._offsets = array("q")
        self._first_line = 1
        self._scan(size)

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of lines, and of numbers in each."""
        return len(self._offsets), self._width

    def _scan(self, size: int) -> None:
        with self._path.open("rb") as file:
            begin = len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0
            file.seek(begin)
            count = self._read_count(file.readline(MAX_LINE), size - begin)
            if count is None:
                file.seek(begin)
            while True:
                offset = file.tell()
                line = file.readline(MAX_LINE)
                if not line:
                    break
                self._add(line, offset)
        if count is not None and count != len(self):
            raise WordVectorsError(f"line 1 promises {count} words, and {len(self)} lines follow")
        if not len(self):
            raise WordVectorsError("holds no words")

    def _read_count(self, line: bytes, size: int) -> int | None:
        """Sets the width, and gives the number of words where the first line states both."""
        fields = line.split()
        if len(fields) == 2 and all(field.isdigit() for field in fields):
            if len(line) > 40:
                raise WordVectorsError("line 1 promises more words than there are")
            count, self._width = int(fields[0]), int(fields[1])
            self._first_line = 2
            if not self._width or count * (2 * self._width + 2) - 1 > size - len(line):
                what = f"{count} words of {self._width} numbers"
                raise WordVectorsError(f"line 1 promises {what}, and {size - len(line)} bytes follow")
            return count
        self._width = sum(1 for _ in itertools.takewhile(_is_number, reversed(fields[1:])))
        return None

    def _add(self, line: bytes, offset: int) -> None:
        text = line.rstrip()
        spaces = text.count(b" ")
        if not 0 < self._width <= spaces or (len(line) == MAX_LINE and line[-1:] != b"\n"):
            number = len(self) + self._first_line
            raise WordVectorsError(f"line {number} is not a word and {self._width or 'its'} numbers")
        word = text.partition(b" ")[0] if spaces == self._width else _split(line, self._width)[0]
        self.words.setdefault(word, len(self))
        self._offsets.append(offset)

    def read(self, rows: Sequence[int]) -> torch.Tensor:
        """The vectors of some rows, float64 of shape (len(rows), width).

        Raises:
            WordVectorsError: Something in one of these lines is not a number.
        """
        values = torch.empty(len(rows), self._width, dtype=torch.float64)
        with self._path.open("rb") as file:
            for i, row in enumerate(rows):
                file.seek(self._offsets[row])
                try:
                    numbers = [float(field) for field in _split(file.readline(MAX_LINE), self._width)[1:]]
                    values[i] = torch.tensor(numbers, dtype=torch.float64)
                except (ValueError, RuntimeError) as err:
                    raise WordVectorsError(f"line {row + self._first_line}: {err}") from err
        return values


def _split(line: bytes, width: int) -> list[bytes]:
    """A line's word, in which spaces may stand, and its numbers."""
    return line.rstrip().rsplit(b" ", width)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def read_words(path: Path) -> list[bytes]:
    """The words of a vocabulary file, one a line; lines end as those of word vectors do, and a byte order mark is none.

    Raises:
        OSError: The file cannot be read.
    """
    lines = path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines if lines[-1] else lines[:-1])]
