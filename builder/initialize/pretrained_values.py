"""The values of one parameter, wherever in a file they stand: transposed, joined, or row by row for a vocabulary.

A part of the parameter reads that part of the file. A value that the parameter's dtype cannot hold is refused by name
and place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder.errors import BuilderError, Problem
from builder.initialize.draws import Fill
from builder.initialize.files.checkpoints import neighbours, open_checkpoint
from builder.initialize.files.tensor_file import Checkpoint, CheckpointError
from builder.initialize.files.word_vectors import read_words
from builder.module import is_continuous

PIECE = 2**18  # values that are converted at a time


def fill(arguments: Mapping[str, Any], shape: Sequence[int]) -> Fill:
    """The fill of a parameter, from the arguments that `resolve` gave for it.

    It reads the part of the file that it writes, and refuses values that the parameter's dtype cannot hold. With
    `absent: keep` it leaves the rows of absent words as they are.

    Raises:
        BuilderError: The file is no longer what it was when the rule was resolved.
    """
    try:
        checkpoint = open_checkpoint(Path(arguments["path"]))
        rows = rows_of(arguments.get("rows"), checkpoint)
    except (CheckpointError, RowsError) as err:
        raise _refused(arguments, err.what, err.hint) from err
    known = set(checkpoint.keys())
    if not known.issuperset(arguments["key"]):
        raise _refused(arguments, f"{checkpoint.path.name} no longer has {arguments['key']}", "build again")
    source = Source(arguments, shape, checkpoint, rows)
    problems = source.problems()
    if problems:
        raise BuilderError("pretrained", problems)
    return Fill(source.draw, whole=not source.mapped(), beside=True)


def _refused(arguments: Mapping[str, Any], what: str, hint: str) -> BuilderError:
    return BuilderError("pretrained", [Problem(arguments["address"], f"{arguments['parameter']!r}: {what}", hint)])


class Source:
    """The values of one parameter, wherever in a file they stand."""

    def __init__(self, arguments: Mapping[str, Any], shape: Sequence[int], checkpoint: Checkpoint, rows: Rows) -> None:
        self.arguments = arguments
        self.shape = tuple(shape)
        self.file = checkpoint
        self.rows = rows
        self.keys: list[str] = arguments["key"]
        self.dim: int = arguments.get("dim", 0)
        self.transpose: bool = arguments.get("transpose", False)

    # -- does it fit --

    def problems(self) -> list[Problem]:
        """What keeps the tensors of the file from filling the parameter."""
        name, address = self.arguments["parameter"], self.arguments["address"]
        for key in self.keys:
            if self.file.dtype(key) is None:
                what = f"{self._shown(key)} is of a dtype that torch cannot read"
                return [Problem(address, f"{name!r}: {what}", "write it as float32")]
        shapes = [self._turned(self.file.shape(key), self.transpose) for key in self.keys]
        words = self.rows.words
        if words is not None and (shapes[0] or ())[:1] != (words,):
            what = f"the source has {words} words, and {self._shown(self.keys[0])} has shape {shapes[0]}"
            return [Problem(f"{address}.rows.source", what, "give the vocabulary that the file was made with")]
        joined = self._joined(shapes)
        if joined == self.shape:
            return []
        given = " and ".join(str(self.file.shape(key)) for key in self.keys)
        what = f"{name!r} has shape {self.shape}; {', '.join(map(self._shown, self.keys))} has {given}"
        if joined is not None and (len(self.keys) > 1 or self.arguments.get("rows") is not None):
            what += f", which comes to {joined}"
        return [Problem(address, what, self._remedy())]

    def _remedy(self) -> str:
        turned = self._joined([self._turned(self.file.shape(key), not self.transpose) for key in self.keys])
        if turned == self.shape:
            return f"transpose: {'false' if self.transpose else 'true'} would fit"
        if len(self.keys) > 1:
            return "tensors that are joined differ in no axis but dim; dim: 0 is the first"
        return "choose another key, or rows: [LOW, HIGH]"

    def _shown(self, key: str) -> str:
        return repr(key) if key else self.file.path.name

    def _turned(self, shape: tuple[int, ...], transpose: bool) -> tuple[int, ...] | None:
        if transpose:
            return shape[::-1] if len(shape) == 2 else None
        return shape

    def _joined(self, shapes: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
        """The shape that tensors come to; None where they cannot be joined, or have not the rows."""
        known = [shape for shape in shapes if shape is not None]
        if len(known) < len(shapes):
            return None
        if len(known) > 1:
            rest = {(*shape[: self.dim], *shape[self.dim + 1 :]) for shape in known}
            if len(rest) > 1 or not all(self.dim < len(shape) for shape in known):
                return None
            extent = sum(shape[self.dim] for shape in known)
            return (*known[0][: self.dim], extent, *known[0][self.dim + 1 :])
        (shape,) = known
        if self.rows.index is not None and shape:
            return (len(self.rows.index), *shape[1:])
        if self.rows.high is not None:
            return (self.rows.high - self.rows.low, *shape[1:]) if shape and self.rows.high <= shape[0] else None
        return shape

    # -- values --

    def mapped(self) -> bool:
        """Whether a part can be read without the rest."""
        words_turned = bool(self.file.words) and self.transpose
        return not words_turned and all(self.file.mapped(key) for key in self.keys)

    def draw(self, part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        """Writes the values from flat index `start` on into a part of the parameter."""
        if not self.mapped() or not part.is_contiguous():
            self._write(part, start)
            return
        for low in range(0, part.numel(), PIECE):
            piece = part.view(-1)[low : low + PIECE]
            self._write(piece, start + low)

    def _write(self, piece: torch.Tensor, start: int) -> None:
        """Writes values from a flat index on, but for those of rows that are kept."""
        values = self._converted(self._values(start, start + piece.numel()), piece.dtype, start).reshape(piece.shape)
        if self.rows.keep and self.rows.index is not None:
            rows = torch.arange(start, start + piece.numel()) // math.prod(self.shape[1:])
            values = torch.where((self.rows.index < 0)[rows].view(piece.shape), piece, values)
        piece.copy_(values)

    def _values(self, start: int, stop: int) -> torch.Tensor:
        width = math.prod(self.shape[1:])
        first, last = start // width, -(-stop // width)
        return self._read(first, last).reshape(-1)[start - first * width : stop - first * width]

    def _read(self, first: int, last: int) -> torch.Tensor:
        """Some rows of the parameter, as the file has them."""
        try:
            if len(self.keys) == 1:
                return self._one(first, last)
            if self.dim:
                return torch.cat([self._rows(key, first, last) for key in self.keys], dim=self.dim)
            pieces, begin = [], 0
            for key in self.keys:
                count = self.file.shape(key)[-1 if self.transpose else 0]
                low, high = max(first - begin, 0), min(last - begin, count)
                if low < high:
                    pieces.append(self._rows(key, low, high))
                begin += count
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        except CheckpointError as err:
            raise _refused(self.arguments, err.what, err.hint) from err

    def _one(self, first: int, last: int) -> torch.Tensor:
        (key,) = self.keys
        if self.rows.index is None:
            return self._rows(key, self.rows.low + first, self.rows.low + last)
        index = self.rows.index[first:last]
        values = self._rows(key, index)  # a copy, in which -1 gave the last row
        values[index < 0] = 0
        return values

    def _rows(self, key: str, rows: Any, last: int | None = None) -> torch.Tensor:
        chosen = rows if last is None else slice(rows, last)
        if not self.file.shape(key):
            return self.file.read(key).reshape(1)
        return self.file.read(key).T[chosen] if self.transpose else self.file.read(key, chosen)

    def _converted(self, values: torch.Tensor, dtype: torch.dtype, start: int) -> torch.Tensor:
        """Values in the parameter's dtype.

        Raises:
            BuilderError: A finite value would become infinite, or a whole one another.
        """
        if values.dtype == dtype:
            return values
        if values.is_complex() and not dtype.is_complex:
            raise self._lossy(f"the file has {values.dtype}, the parameter {dtype}", "take its real part")
        converted = values.to(dtype)
        if is_continuous(values.dtype) and is_continuous(dtype):
            lost = ~torch.isfinite(converted)
            if lost.any():
                lost &= torch.isfinite(values)
        else:
            back = converted.real if dtype.is_complex else converted
            lost = back.to(values.dtype) != values
        if lost.any():
            at = int(lost.nonzero()[0, 0])
            place = ", ".join(str(int(i)) for i in np.unravel_index(start + at, self.shape))
            what = f"[{place}] is {values[at].item()} in {values.dtype}, which {dtype} cannot hold"
            raise self._lossy(what, "give the parameter a wider dtype")
        return converted

    def _lossy(self, what: str, hint: str) -> BuilderError:
        return _refused(self.arguments, what.replace("torch.", ""), hint)


# ---- rows by vocabulary --------------------------------------------------------------------------------------------


class RowsError(Exception):
    """`rows` that are refused: under which of their keys, what is wrong, and a remedy."""

    def __init__(self, key: str, what: str, hint: str) -> None:
        super().__init__(what)
        self.key, self.what, self.hint = key, what, hint


@dataclass(frozen=True)
class Rows:
    """Which rows of the file a parameter takes: a range, or an index with -1 for the row of an absent word.

    Such a row is zeros, or, with `keep`, what it was.
    """

    low: int = 0
    high: int | None = None
    index: torch.Tensor | None = None
    keep: bool = False
    words: int | None = None  # of `source`: how many rows the file must have


def rows_of(rows: Any, checkpoint: Checkpoint) -> Rows:
    """The rows that a rule's `rows` (checked) stand for in a file.

    Raises:
        RowsError: A word is absent, or a list of words cannot be read.
    """
    if rows is None:
        return Rows()
    if isinstance(rows, list):
        return Rows(rows[0], rows[1])
    wanted = _words(rows["vocabulary"], ".vocabulary")
    if checkpoint.words and "source" in rows:
        raise RowsError(".source", f"{checkpoint.path.name} brings its own words", "leave source out")
    if not checkpoint.words and "source" not in rows:
        raise RowsError(
            ".source",
            f"{checkpoint.path.name} says not which word a row stands for",
            "give source: FILE, a word a line",
        )
    listed = [] if checkpoint.words else _words(rows["source"], ".source")
    known = checkpoint.words or {word: row for row, word in reversed(list(enumerate(listed)))}
    absent = [word for word in wanted if word not in known]
    if absent and rows.get("absent", "refuse") == "refuse":
        shown = ", ".join(repr(word.decode(errors="replace")) for word in absent[:5])
        what = (
            f"{len(absent)} of {len(wanted)} words are absent from the source: {shown}{', ...' if absent[5:] else ''}"
        )
        hint = "absent: zeros gives them rows of zeros; absent: keep those that the rule below gives"
        raise RowsError(".vocabulary", what, hint)
    index = torch.tensor([known.get(word, -1) for word in wanted], dtype=torch.int64)
    keep = bool(absent) and rows.get("absent") == "keep"
    return Rows(index=index, keep=keep, words=None if checkpoint.words else len(listed))


def _words(file: str, key: str) -> list[bytes]:
    path = Path(file).expanduser().absolute()
    try:
        return read_words(path)
    except OSError as err:
        raise RowsError(key, f"{path} cannot be read: {err.strerror}", neighbours(path)) from err
