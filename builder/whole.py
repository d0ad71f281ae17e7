"""Files that are whole or absent, wherever a process is killed and whatever a disk refuses.

A file is written beside its place, as `.NAME.PID.part`, synced, and put there by one atomic rename; then its folder is
synced, so that the new name outlives a power cut. A write that fails or is interrupted takes its part away and leaves
the old file. Only a kill leaves a part, which nothing reads, and `clear_parts` takes away.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.errors import BuilderError, Problem


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Writes a file, whole or not at all; its folder is made where it is missing.

    Args:
        file: Its place.
        write: Writes the path that it is given, and closes it.

    Raises:
        OSError: It cannot be written there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_text(file: Path, text: str) -> None:
    """Writes a text file in UTF-8, its line ends as given; else as `write_whole`."""
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8", newline=""))


@contextmanager
def refused(
    subject: str, file: Path, hint: str = "choose another place", kinds: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[None]:
    """A context in which what keeps a file from being written is a `BuilderError`.

    Args:
        subject: What is written, for the error.
        file: Its place.
        hint: What to do about it.
        kinds: What the writer raises where it cannot write.
    """
    try:
        yield
    except kinds as err:
        said = getattr(err, "strerror", None) or str(err)
        raise BuilderError(subject, [Problem(str(file), f"cannot be written: {said}", hint)]) from err


def clear_parts(folder: Path) -> None:
    """Takes away the parts that killed writers left in a folder, to which nobody else may be writing."""
    for part in folder.glob(".*.part"):
        part.unlink()
