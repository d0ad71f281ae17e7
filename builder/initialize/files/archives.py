"""Archives of tensors: what `torch.save` writes, `.npy` and `.npz`, believed only after a comparison with the file.

Entries that claim more than the archive holds, shapes beyond their entry, and pickles that name anything but what plain
tensors are made of are refused before anything is allocated.
"""

from __future__ import annotations

import math
import pickletools
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from builder.initialize.files.tensor_file import Checkpoint, CheckpointError, Header, mapped_tensors

MAX_NPY_HEADER = 10_000  # bytes, as in numpy
DEFLATE = 1032  # how many bytes one byte of deflated data can stand for, at most
NESTED = ("state_dict", "model")  # where training programs keep the tensors of a checkpoint

# ---- torch.save ----------------------------------------------------------------------------------------------------

# weights_only keeps code out, but lets a file call torch.FloatTensor(10**12) or bytearray(10**10).
_PLAIN = frozenset(
    {
        "collections OrderedDict",
        "collections Counter",
        "__builtin__ set",
        "__builtin__ complex",
        "_codecs encode",
        "torch Size",
        "torch device",
        "torch.serialization _get_layout",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.nn.parameter Parameter",
        *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
        *(f"torch {kind.__name__}" for kind in torch._storage_classes if kind.__module__ == "torch"),
    }
)


def read_torch(path: Path, size: int) -> Checkpoint:
    """The tensors that `torch.save` wrote, as a mapping, or under `state_dict` or `model` of one."""
    remedy = "save its tensors alone: torch.save(model.state_dict(), FILE), or better safetensors"
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path.name} is not an archive as torch.save writes it (since torch 1.6)",
            "load it with the torch that wrote it, and save its state_dict again",
        )
    entries = _entries(path, size)
    pickled = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickled) != 1 or any(name.rpartition("/")[2] == "constants.pkl" for name in entries):
        raise CheckpointError(f"{path.name} is an archive, but not one of tensors", remedy)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise CheckpointError(f"{path.name} is compressed, which torch.save never does", remedy)
    _refuse_objects(path, pickled[0], remedy)
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as err:  # an unpickler raises whatever a wrong file makes it raise
        first = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise CheckpointError(f"{path.name} cannot be read with weights_only: {first}", remedy) from err
    tensors = _dense(found)
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors, not under {' or '.join(NESTED)} either", remedy)
    sizes = {entry.file_size for entry in entries.values()}
    for key, tensor in tensors.items():
        claimed = tensor.untyped_storage().nbytes()
        if claimed not in sizes:
            raise CheckpointError(
                f"{path.name}: {key!r} claims {claimed} bytes, and no entry of the archive holds so many",
                "fetch or write it again",
            )
    headers = {key: Header(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}
    return mapped_tensors(path, headers, tensors.__getitem__)


def _refuse_objects(path: Path, entry: str, remedy: str) -> None:
    """Refuses a pickle that names anything but what plain tensors are made of."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(entry)
        for code, argument, _ in pickletools.genops(data):
            if code.name in ("STACK_GLOBAL", "INST") or (code.name == "GLOBAL" and argument not in _PLAIN):
                shown = str(argument).replace(" ", ".") if argument else "an object"
                raise CheckpointError(f"{path.name} holds pickled objects: {shown}", remedy)
    except (ValueError, zipfile.BadZipFile) as err:
        raise CheckpointError(f"{path.name}: its pickle is broken: {err}", remedy) from err


def _dense(found: Any) -> dict[str, torch.Tensor]:
    """The dense tensors of what a file holds, or of what it keeps under `state_dict` or `model`."""
    if isinstance(found, torch.Tensor):
        found = {"": found}
    if not isinstance(found, Mapping):
        return {}
    tensors = {
        str(key): value.detach()
        for key, value in found.items()
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    }
    inner = (_dense(found[name]) for name in NESTED if isinstance(found.get(name), Mapping))
    return tensors or next((nested for nested in inner if nested), {})


# ---- archives and arrays -------------------------------------------------------------------------------------------


def _entries(path: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of an archive, none of which claims more than the file can hold."""
    remedy = "fetch or write it again"
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as err:
        raise CheckpointError(f"{path.name} is not an archive: {err}", remedy) from err
    entries = {entry.filename: entry for entry in listed}
    if len(entries) < len(listed):
        raise CheckpointError(f"{path.name} has two entries of one name", remedy)
    for entry in listed:
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        if not deflated and entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path.name}: {entry.filename} is packed in an unknown way", "write it with numpy")
        most = entry.compress_size * DEFLATE if deflated else entry.compress_size
        if entry.header_offset + entry.compress_size > size or entry.file_size > most:
            raise CheckpointError(
                f"{path.name}: {entry.filename} claims {entry.file_size} bytes; "
                f"the file has room for {max(0, min(most, size - entry.header_offset))}",
                remedy,
            )
    if sum(entry.compress_size for entry in listed) > size:
        raise CheckpointError(f"{path.name}: its entries claim more bytes than the file has", remedy)
    return entries


@dataclass(frozen=True)
class _Array:
    """The header of a .npy file, and where its values begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    def header(self, *, mapped: bool) -> Header:
        """The header of its tensor."""
        try:
            kind = torch.from_numpy(np.empty(0, self.dtype.newbyteorder("="))).dtype
        except TypeError:
            kind = None
        return Header(self.shape, kind, mapped and self.dtype.isnative)

    def of(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        """The tensor of an array; a view of it where the machine has the same byte order."""
        return torch.from_numpy(values if self.dtype.isnative else values.astype(self.dtype.newbyteorder("=")))

    def map(self, path: Path, start: int) -> torch.Tensor:
        """The tensor of the array that begins at a byte of a file; numpy cannot map an empty one."""
        order: Any = "F" if self.fortran else "C"
        return self.of(np.memmap(path, self.dtype, "c", start + self.offset, self.shape, order))


def _array(file: IO[bytes], name: str, size: int) -> _Array:
    """The header of a .npy file of a size in bytes, compared with that size."""
    remedy = "write it again with numpy.save(FILE, array, allow_pickle=False)"
    begin = file.read(12)
    version = begin[6:8]
    wide = version == b"\x02\x00"
    length = int.from_bytes(begin[8:12] if wide else begin[8:10], "little")
    if begin[:6] != b"\x93NUMPY" or not (wide or version == b"\x01\x00") or length > MAX_NPY_HEADER:
        raise CheckpointError(f"{name} has no header of a .npy file", remedy)
    head = BytesIO(begin + file.read(length))
    head.seek(8)
    parse = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = parse(head)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as err:
        raise CheckpointError(f"{name}: its header cannot be read: {str(err).splitlines()[0]}", remedy) from err
    if dtype.hasobject:
        raise CheckpointError(f"{name} holds pickled objects", remedy)
    if any(extent < 0 for extent in shape) or math.prod(shape) * dtype.itemsize > size - head.tell():
        raise CheckpointError(
            f"{name} claims shape {shape} of {dtype}; {size - head.tell()} bytes follow its header", remedy
        )
    return _Array(dtype, tuple(shape), fortran, head.tell())


def read_npy(path: Path, size: int) -> Checkpoint:
    """The one array of a `.npy` file, under the key `""`."""
    with path.open("rb") as file:
        array = _array(file, path.name, size)
    return mapped_tensors(path, {"": array.header(mapped=True)}, lambda key: array.map(path, 0))


def read_npz(path: Path, size: int) -> Checkpoint:
    """The arrays of a `.npz` file; those that are compressed are read whole."""
    arrays: dict[str, tuple[_Array, zipfile.ZipInfo, int]] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for name, entry in _entries(path, size).items():
                with archive.open(entry) as inside:
                    array = _array(inside, f"{path.name}: {name}", entry.file_size)
                file.seek(
                    entry.header_offset + 26
                )  # lengths of name and extra field, which differ from the directory's
                lengths = file.read(4)
                begin = entry.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
                arrays[name.removesuffix(".npy")] = (array, entry, begin)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as err:
        raise CheckpointError(f"{path.name} is not an archive of arrays: {err}", "write it with numpy.savez") from err

    def tensor(key: str) -> torch.Tensor:
        array, entry, begin = arrays[key]
        if entry.compress_type == zipfile.ZIP_STORED:
            return array.map(path, begin)
        try:
            with zipfile.ZipFile(path) as archive, archive.open(entry) as inside:
                return array.of(np.lib.format.read_array(inside, allow_pickle=False))
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as err:
            raise CheckpointError(f"{path.name}: {key} cannot be unpacked: {err}", "fetch or write it again") from err

    headers = {
        key: array.header(mapped=entry.compress_type == zipfile.ZIP_STORED) for key, (array, entry, _) in arrays.items()
    }
    return mapped_tensors(path, headers, tensor)
