"""A file written whole: all of it, or what stood there before."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from builder.errors import BuilderError
from builder.whole import clear_parts, refused, write_text, write_whole


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in order: `sync` of a file or a folder, and `rename`, with the name."""
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        done.append(("sync", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        fsync(descriptor)

    def renamed(part, file):
        done.append(("rename", Path(file).name))
        replace(part, file)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return done


def half(fault):
    """A writer that stops after some bytes."""

    def write(part):
        part.write_bytes(b"half")
        raise fault

    return write


def test_file_is_written_with_its_folder_and_nothing_else(tmp_path):
    file = tmp_path / "new" / "a.txt"
    write_whole(file, lambda part: part.write_bytes(b"\0all"))
    assert file.read_bytes() == b"\0all"
    assert os.listdir(file.parent) == ["a.txt"]


def test_text_is_utf8_and_keeps_its_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "é\r\n\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\r\n\n"


def test_part_stands_beside_the_file_under_a_name_of_its_process(tmp_path):
    seen = []
    write_whole(tmp_path / "a.txt", lambda part: (seen.append(part), part.touch()))
    assert seen == [tmp_path / f".a.txt.{os.getpid()}.part"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not tell which file a descriptor is")
def test_file_is_on_the_disk_before_it_has_its_name_and_the_name_thereafter(tmp_path, calls):
    write_text(tmp_path / "a.txt", "new")
    assert calls == [("sync", f".a.txt.{os.getpid()}.part"), ("rename", "a.txt"), ("sync", tmp_path.name)]


@pytest.mark.parametrize("fault", [OSError("disk full"), ValueError("no such value"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("old", [None, "old"])
def test_writer_that_fails_leaves_what_was_there(tmp_path, fault, old):
    file = tmp_path / "a.txt"
    if old is not None:
        file.write_text(old)
    with pytest.raises(type(fault)) as raised:
        write_whole(file, half(fault))
    assert raised.value is fault
    assert {found.name: found.read_text() for found in tmp_path.iterdir()} == ({} if old is None else {"a.txt": old})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_disk_that_fails_leaves_what_was_there(tmp_path, monkeypatch, step):
    def fail(*args):
        raise OSError("disk full")

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "a.txt", "new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "old"}


def test_writer_that_wrote_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "a.txt", lambda part: None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), EOFError("No space left on device")])
def test_refused_write_names_its_place_and_a_way_out(tmp_path, fault):
    with (
        pytest.raises(BuilderError, match=r"export: 1 problem\n.*file: cannot be written: No space.*\n      elsewhere"),
        refused("export", tmp_path / "file", "elsewhere", kinds=(OSError, EOFError)),
    ):
        raise fault


def test_no_descriptor_stays_open(tmp_path):
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        write_text(tmp_path / "a.txt", "new")
    assert len(os.listdir("/dev/fd")) == before


def test_killed_writer_leaves_the_old_file_and_a_part_that_can_be_cleared(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "not.part").write_text("of somebody else")
    code = """
import os, signal, sys
from pathlib import Path
from builder.whole import write_whole
def write(part):
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[1]), write)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.glob(".a.txt.*.part"))) == 1
    clear_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "not.part"]
