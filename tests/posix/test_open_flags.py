"""The flags of open(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from calls import fails_with


def test_access_modes(here: Path) -> None:
    """A descriptor does what it was opened for, and nothing else."""
    path = here / "file"
    path.write_bytes(b"content")
    reader = os.open(path, os.O_RDONLY)
    fails_with(errno.EBADF, os.write, reader, b"x")
    writer = os.open(path, os.O_WRONLY)
    fails_with(errno.EBADF, os.read, writer, 1)
    nothing = os.open(path, os.O_PATH)
    for call in (lambda: os.read(nothing, 1), lambda: os.fchmod(nothing, 0o600), lambda: os.ftruncate(nothing, 0)):
        fails_with(errno.EBADF, call)
    assert os.fstat(nothing).st_size == 7
    for descriptor in (reader, writer, nothing):
        os.close(descriptor)


def test_making(here: Path) -> None:
    """O_CREAT makes what is missing, with O_EXCL only that; never in a missing directory, never a directory."""
    path = here / "file"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
    fails_with(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o777))
    assert path.stat().st_mode & 0o777 == 0o640
    fails_with(errno.ENOENT, os.open, here / "missing" / "file", os.O_CREAT | os.O_WRONLY)
    fails_with(errno.ENOENT, os.open, here / "missing", os.O_WRONLY)
    fails_with(errno.EISDIR, os.open, here, os.O_WRONLY)
    fails_with(errno.ENOTDIR, os.open, path / "x", os.O_CREAT | os.O_WRONLY)


def test_flags_that_can_be_changed_later(here: Path) -> None:
    """O_APPEND and O_DIRECT by fcntl: from then on writes go to the end, or need aligned buffers."""
    import fcntl
    import mmap

    path = here / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 4096)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b"y" * 4096)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    assert os.preadv(descriptor, [page], 4096) == 4096
    assert page[:] == b"y" * 4096
    os.close(descriptor)
    assert path.read_bytes() == b"x" * 4096 + b"y" * 4096


def test_truncating_flags(here: Path) -> None:
    """O_TRUNC needs the right to write, and leaves everything but size and times."""
    path = here / "file"
    path.write_bytes(b"content")
    path.chmod(0o640)
    os.chown(path, 12, 34)
    os.link(path, here / "second")
    number = path.stat().st_ino
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    status = (here / "second").stat()
    assert (status.st_size, status.st_ino, status.st_uid, status.st_mode & 0o777) == (0, number, 12, 0o640)


def test_nonblocking_and_others(here: Path) -> None:
    """Flags that mean nothing for files are accepted: O_NONBLOCK, O_NOCTTY, O_NOATIME, O_CLOEXEC."""
    path = here / "file"
    path.write_bytes(b"content")
    for flag in (os.O_NONBLOCK, os.O_NOCTTY, os.O_NOATIME, os.O_CLOEXEC, os.O_LARGEFILE):
        descriptor = os.open(path, os.O_RDONLY | flag)
        assert os.read(descriptor, 10) == b"content"
        os.close(descriptor)
