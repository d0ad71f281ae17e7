"""Tensors in files: opens a checkpoint by its suffix, from its header alone.

Where the format allows it, tensors are views of the mapped file, so that a slice reads no more than itself. A header is
believed only after it was compared with the file, before anything is allocated.
"""

from __future__ import annotations

import itertools
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from builder.errors import did_you_mean
from builder.initialize.files.archives import read_npy, read_npz, read_torch
from builder.initialize.files.tensor_file import Checkpoint, CheckpointError, Header, Rows, mapped_tensors
from builder.initialize.files.word_vectors import WordVectors, WordVectorsError

MAX_INDEX = 100_000_000  # bytes of a sharded checkpoint's index
WORDS = (".txt", ".vec", ".glove")
TORCH = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (".safetensors", ".index.json", *TORCH, ".npy", ".npz", *WORDS)


def open_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a file, by its suffix; headers alone are read.

    Raises:
        CheckpointError: There is no such file, or it is not what its name says.
    """
    if not path.is_file():
        raise _not_found(path)
    stat = path.stat()
    return _opened(path, stat.st_size, (stat.st_ino, stat.st_mtime_ns))


def _not_found(path: Path) -> CheckpointError:
    if path.exists():
        return CheckpointError(f"{path} is not a file", "give the path of a checkpoint")
    return CheckpointError(f"no such file: {path}", neighbours(path))


def neighbours(path: Path) -> str:
    """A hint that names the files beside one that is not there."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}; a relative path begins at the working directory, {Path.cwd()}"
    near = [item.name for item in itertools.islice(path.parent.iterdir(), 1000)]
    return did_you_mean(path.name, near) or f"{path.parent} is empty"


@lru_cache(maxsize=8)
def _opened(path: Path, size: int, version: tuple[int, int]) -> Checkpoint:
    del version  # a file that was written anew is opened anew
    suffix = path.suffix.lower()
    try:
        if path.name.endswith(".index.json"):
            return _sharded(path, size)
        if suffix == ".safetensors":
            return _safetensors(path)
        if suffix in TORCH:
            return read_torch(path, size)
        if suffix == ".npy":
            return read_npy(path, size)
        if suffix == ".npz":
            return read_npz(path, size)
        if suffix in WORDS:
            return _word_vectors(path, size)
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror or err}", "mend the file or its rights") from err
    raise CheckpointError(f"{path.name}: unknown suffix {suffix!r}", did_you_mean(suffix, SUFFIXES, most=20))


# ---- safetensors ---------------------------------------------------------------------------------------------------

_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def _safetensors(path: Path) -> Checkpoint:
    try:
        file: Any = safe_open(str(path), framework="pt", device="cpu")  # compares all offsets with the file's size
    except SafetensorError as err:
        raise CheckpointError(f"{path.name} is not a safetensors file: {err}", "fetch or write it again") from err
    headers = {}
    for key in file.keys():  # noqa: SIM118 (a handle, not a mapping)
        piece = file.get_slice(key)
        headers[key] = Header(tuple(piece.get_shape()), _SAFETENSORS.get(str(piece.get_dtype())))
    return mapped_tensors(path, headers, file.get_tensor)  # get_tensor gives a view of the mapped file


def _sharded(path: Path, size: int) -> Checkpoint:
    remedy = 'an index is {"weight_map": {KEY: FILE}}, with its files beside it'
    if size > MAX_INDEX:
        raise CheckpointError(f"{path.name} has {size} bytes; the limit is {MAX_INDEX}", remedy)
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        named = {str(key): str(file) for key, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise CheckpointError(f"{path.name} is not the index of a sharded checkpoint", remedy) from err
    shards = {}
    for file in dict.fromkeys(named.values()):
        if Path(file).name != file or file.endswith(".index.json"):
            raise CheckpointError(f"{path.name} names {file!r}", remedy)
        shards[file] = open_checkpoint(path.parent / file)
    lost = [key for key, file in named.items() if key not in shards[file].keys()]  # noqa: SIM118
    if lost:
        raise CheckpointError(
            f"{named[lost[0]]} lacks {lost[0]!r}, which {path.name} promises ({len(lost)} keys lack)",
            "fetch all shards again",
        )
    headers = {key: shards[file]._headers[key] for key, file in named.items()}
    return Checkpoint(path, headers, lambda key, rows: shards[named[key]].read(key, rows))


# ---- word vectors --------------------------------------------------------------------------------------------------


def _word_vectors(path: Path, size: int) -> Checkpoint:
    try:
        vectors = WordVectors(path, size)
    except WordVectorsError as err:
        raise CheckpointError(
            f"{path.name}: {err}", "each line is a word and its numbers, with spaces between"
        ) from err

    def read(key: str, rows: Rows) -> torch.Tensor:
        wanted = rows.tolist() if isinstance(rows, torch.Tensor) else range(len(vectors))[rows or slice(None)]
        try:
            return vectors.read(wanted)
        except WordVectorsError as err:
            raise CheckpointError(f"{path.name}: {err}", "mend the line") from err

    return Checkpoint(path, {"vectors": Header(vectors.shape, torch.float64)}, read, vectors.words)
