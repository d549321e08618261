"""Reading directories, also while they change."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path

from calls import fails_with, libc, tick


def test_reading_a_directory_that_changes(here: Path) -> None:
    """While entries come and go, all others are seen exactly once."""
    for number in range(3000):
        (here / f"stays{number}").touch()
        if number % 3 == 0:
            (here / f"goes{number}").touch()
    seen = []
    with os.scandir(here) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 10 == 0 and (here / f"goes{number}").exists():
                (here / f"goes{number}").unlink()
            if number % 50 == 0:
                (here / f"new{number}").touch()
            if number % 97 == 0 and 0 < number < 3000:
                (here / f"stays{number}").rename(here / f"renamed{number}")
                (here / f"renamed{number}").rename(here / f"stays{number}")
    moved = {f"stays{n}" for n in range(97, 3000, 97)}  # these may be seen at their old and at their new place
    assert sorted(n for n in seen if n.startswith("stays") and n not in moved) == sorted(
        {f"stays{n}" for n in range(3000)} - moved
    )
    assert moved <= set(seen)


def test_removing_while_reading(here: Path) -> None:
    """10,000 entries are removed by a single pass over the directory, as each is seen; then it is empty."""
    big = here / "big"
    big.mkdir()
    (here / "file").touch()
    for number in range(10_000):
        os.link(here / "file", big / f"name {number}")
    removed = 0
    with os.scandir(big) as entries:
        for entry in entries:
            os.unlink(entry.path)
            removed += 1
    assert removed == 10_000
    big.rmdir()


def test_rm_rf(here: Path) -> None:
    """rm -rf of a tree leaves nothing."""
    for number in range(300):
        deep = here / "tree" / f"{number % 7}" / f"{number % 5}"
        deep.mkdir(parents=True, exist_ok=True)
        (deep / f"{number}").touch()
    subprocess.run(["rm", "-rf", here / "tree"], check=True)
    assert os.listdir(here) == []


def test_positions_in_a_directory(here: Path) -> None:
    """telldir and seekdir: a position leads to the same entry, although others were removed meanwhile."""
    for number in range(500):
        (here / f"{number}").touch()

    class Entry(ctypes.Structure):
        _fields_ = [
            ("ino", ctypes.c_uint64),
            ("off", ctypes.c_int64),
            ("length", ctypes.c_ushort),
            ("kind", ctypes.c_ubyte),
            ("name", ctypes.c_char * 256),
        ]

    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(here)))

    def following() -> str | None:
        entry = libc.readdir(stream)
        return Entry.from_address(entry).name.decode() if entry else None

    order, places = [], []
    while True:
        places.append(libc.telldir(stream))
        name = following()
        if name is None:
            break
        order.append(name)
    assert set(order) - {".", ".."} == {str(n) for n in range(500)}
    for at in (10, 499, 3, 250, 400, 0):
        libc.seekdir(stream, ctypes.c_long(places[at + 1]))
        if order[at] not in (".", ".."):
            (here / order[at]).unlink(missing_ok=True)
        rest = []
        while (name := following()) is not None:
            rest.append(name)
        assert [name for name in rest if (here / name).exists()] == [n for n in order[at + 1 :] if (here / n).exists()]
    libc.closedir(stream)


def test_types_and_numbers_in_a_listing(here: Path) -> None:
    """What readdir tells of type and inode number is what stat says; `.` and `..` are there."""
    (here / "file").touch()
    (here / "directory").mkdir()
    os.symlink("file", here / "link")
    os.mkfifo(here / "fifo")
    with os.scandir(here) as entries:
        for entry in entries:
            status = (here / entry.name).lstat()
            assert entry.inode() == status.st_ino
            assert entry.is_file(follow_symlinks=False) == (entry.name == "file")
            assert entry.is_dir(follow_symlinks=False) == (entry.name == "directory")
            assert entry.is_symlink() == (entry.name == "link")
    listed = subprocess.run(["ls", "-ai1", here], check=True, capture_output=True, text=True).stdout.split()
    numbers = dict(zip(listed[1::2], map(int, listed[::2]), strict=True))
    assert numbers["."] == here.stat().st_ino
    assert numbers[".."] == here.parent.stat().st_ino


def test_link_counts_and_times_of_directories(here: Path) -> None:
    """A directory's mtime and ctime change with its entries, its nlink with its subdirectories."""
    before = here.stat()
    tick()
    (here / "sub").mkdir()
    after = here.stat()
    assert after.st_nlink == before.st_nlink + 1
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns == after.st_mtime_ns
    tick()
    (here / "sub").rmdir()
    assert here.stat().st_nlink == before.st_nlink
    assert here.stat().st_mtime_ns > after.st_mtime_ns


def test_directories_are_no_files(here: Path) -> None:
    """They cannot be read, written, or opened for writing; a file cannot be listed."""
    (here / "file").touch()
    descriptor = os.open(here, os.O_RDONLY)
    fails_with(errno.EISDIR, os.read, descriptor, 10)
    os.close(descriptor)
    fails_with(errno.EISDIR, os.open, here, os.O_WRONLY)
    fails_with(errno.EISDIR, os.open, here, os.O_RDONLY | os.O_CREAT)
    fails_with(errno.ENOTDIR, os.listdir, here / "file")
    fails_with(errno.ENOTDIR, os.open, here / "file", os.O_RDONLY | os.O_DIRECTORY)
